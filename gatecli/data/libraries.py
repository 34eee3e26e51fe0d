"""What torchvision and timm say of the images of their own networks' weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gatecli.architectures.arguments import split_arch
from gatecli.traced.images import CROP_MODES, INTERPOLATIONS, SaidInput

__all__ = ["library_input"]


def library_input(arch: str, args: Mapping[str, Any]) -> SaidInput | None:
    """The evaluation transform that a library states for an architecture; None: it states none.

    The library is asked, not the network: nothing is built or downloaded.

    Args:
        arch: its name, as `torchvision:resnet50`.
        args: its arguments; with a stem for small images the library's numbers are not meant.
    """
    library, name = split_arch(arch)
    if args.get("stem") == "cifar":
        return None
    if library == "torchvision":
        return _torchvision(name)
    return _timm(name) if library == "timm" else None


def _torchvision(name: str) -> SaidInput | None:
    """The transform of the DEFAULT weights."""
    from torchvision import models

    try:
        transform = models.get_model_weights(name).DEFAULT.transforms()
    except (ValueError, AttributeError):  # no such network, or one without weights
        return None
    side = int(transform.crop_size[0])
    return SaidInput(
        where="torchvision",
        size=(side, side),
        resize=tuple(map(int, transform.resize_size)),
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )


def _timm(name: str) -> SaidInput | None:
    """The evaluation part of a `pretrained_cfg`, as timm's `resolve_data_config` reads it."""
    try:
        from timm.models import get_pretrained_cfg

        config = get_pretrained_cfg(name)
    except (ImportError, RuntimeError, ValueError, KeyError):  # not installed, or no such network
        return None
    if config is None:
        return None
    _, height, width = config.input_size
    mode = config.crop_mode if config.crop_mode in CROP_MODES else "center"
    known = config.interpolation in INTERPOLATIONS
    return SaidInput(
        where="timm",
        size=(int(height), int(width)),
        crop=float(config.crop_pct or 0.875),
        crop_mode=mode,
        interpolation=config.interpolation if known else "bicubic",
        mean=tuple(config.mean),
        std=tuple(config.std),
    )
