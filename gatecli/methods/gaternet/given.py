"""Which gater a backbone gets: the paper's, or the trained classifier that the user gives."""

from __future__ import annotations

from gatecli.architectures.arguments import is_callable_name
from gatecli.errors import SettingError
from gatecli.network import Network

__all__ = ["check_fits", "check_known", "usual"]

SMALL_IMAGES = 64  # pixels: up to here the paper's gater is a CIFAR ResNet-20, else a ResNet-18


def usual(network: Network) -> str:
    """The architecture of the paper's gater for these images."""
    small = max(network.input.size) <= SMALL_IMAGES
    return "cifar:resnet20" if small else "torchvision:resnet18"


def check_known(arch: str) -> None:
    """Make sure that an architecture is a library's: others are code, which no file may name.

    Raises:
        SettingError: It is not.
    """
    if is_callable_name(arch):
        raise SettingError(
            f"expected the gater to be torchvision:NAME, cifar:NAME or timm:NAME, but got {arch}"
        )


def check_fits(network: Network, gater: Network, asked: str | None) -> None:
    """Make sure that a trained classifier can be the gater of a backbone.

    Args:
        network: The backbone.
        gater: The classifier.
        asked: The gater's architecture, where the user has named one.

    Raises:
        SettingError: It cannot; the message says why.
    """
    source = gater.recipe.source
    what = f"the gater {source.file or source.arch}"
    if asked is not None and asked != source.arch:
        raise SettingError(
            f"expected --set gater to say what {what} is, {source.arch}, but got {asked}: leave it"
            " out"
        )
    if gater.recipe.steps:
        raise SettingError(
            f"expected {what} to be a plain classifier's checkpoint, but gatecli has changed it"
            f" ({', '.join(step.op for step in gater.recipe.steps)})"
        )
    if source.sha256 and source.sha256 == network.recipe.source.sha256:
        raise SettingError(
            f"{what} is the backbone's own file: train a smaller network for the same classes and"
            " give that"
        )
    check_known(source.arch)
    if _images(gater) != _images(network):
        raise SettingError(
            f"expected a gater for the backbone's images, {_images(network)}, but {what} takes"
            f" {_images(gater)}"
        )
    if gater.num_classes != network.num_classes:
        raise SettingError(
            f"expected a gater trained for the backbone's {network.num_classes} classes, but"
            f" {what} has {gater.num_classes}"
        )


def _images(network: Network) -> str:
    spec = network.input
    return f"{spec.channels} x {spec.size[0]} x {spec.size[1]}"
