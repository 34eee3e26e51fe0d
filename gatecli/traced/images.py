"""How a network wants its images: one record, each field with where it comes from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gatecli import limits
from gatecli.traced.strict import is_a, number

__all__ = [
    "CROP",
    "CROP_MODES",
    "INTERPOLATIONS",
    "ORDERS",
    "ORIGINS",
    "InputSpec",
    "SaidInput",
    "read_input",
    "read_origin",
    "written_input",
]

ORIGINS = ("told", "file", "library", "data", "assumed")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
CROP_MODES = ("center", "squash", "border")
ORDERS = ("names", "natural", "file")
CROP = 0.875  # where nothing is said: the middle 224 of 256


@dataclass(frozen=True, kw_only=True)
class SaidInput:
    """What a file, or what lies beside it, says of the images; None: nothing.

    Attributes:
        where: "config.json", as notes name it.
        size: (height, width) in pixels.
        resize: one number: the shorter side; two: exactly so.
        crop: share of the resized side that is cut out; 1: no crop.
        interpolation: one of INTERPOLATIONS.
        mean: of values in [0, 1].
        std: the standard deviation of the same.
        channels: how many.
        classes: their names, in the order of the logits.
        crop_mode: one of CROP_MODES, where it is another than `resize` implies.
    """

    where: str
    size: tuple[int, int] | None = None
    resize: tuple[int, ...] | None = None
    crop: float | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: int | None = None
    classes: tuple[str, ...] | None = None
    crop_mode: str | None = None


@dataclass(frozen=True)
class InputSpec:
    """How the network wants its images.

    Attributes:
        size: (height, width) in pixels.
        channels: how many.
        mean: of values in [0, 1]; None: not known yet, taken from the first data set seen.
        std: the standard deviation of the same.
        resize: what image files are scaled to before the middle is cut out: (shorter side,), or
            (height, width); None: so that size / 0.875 is just covered.
        crop: the share that is cut out, where it was said so; else it follows from `resize`.
        crop_mode: "center": both sides are scaled alike and cover `resize`; "squash": each side to
            `resize` exactly; "border": the picture fits into `resize`, the rest is filled.
        interpolation: one of INTERPOLATIONS.
        class_order: of an image folder's classes, one of ORDERS; None: not known yet.
        classes: the classes' names in the order of the logits; None: not known.
        origin: where a field comes from, one of ORIGINS.
    """

    size: tuple[int, int]
    channels: int = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: tuple[int, ...] | None = None
    crop: float | None = None
    crop_mode: str = "center"
    interpolation: str = "bilinear"
    class_order: str | None = None
    classes: tuple[str, ...] | None = None
    origin: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def box(self) -> tuple[int, int]:
        """The (height, width) that a picture is scaled to cover, to have, or to fit into."""
        if self.resize is None:
            return round(self.size[0] / CROP), round(self.size[1] / CROP)
        return self.resize[0], self.resize[-1]

    @property
    def share(self) -> float:
        """The share of the scaled picture's side that is cut out."""
        return self.crop or round(self.size[0] / self.box[0], 4)

    @property
    def crops_arrays(self) -> bool:
        """Whether pictures out of arrays are cropped like image files: only where that was told."""
        return "told" in (self.origin.get("resize"), self.origin.get("crop"))

    def whence(self, name: str) -> str:
        """Where a field comes from; of older checkpoints: recorded in the file, or not at all."""
        recorded = name in ("size", "channels") or (
            name in ("mean", "std") and getattr(self, name) is not None
        )
        return self.origin.get(name, "file" if recorded else "assumed")

    def key(self) -> str:
        """What an accuracy depends on: two specs with different keys are two evaluations."""
        parts = (self.size, self.channels, self.mean, self.std, self.box, self.crop_mode)
        text = repr((*parts, self.interpolation, self.crops_arrays, self.classes))
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def written_input(spec: InputSpec) -> dict[str, Any]:
    """The images as a recipe has them; what is as in older recipes is left out."""
    usual = InputSpec(size=spec.size)
    written = {}
    for name, value in asdict(spec).items():
        if name in ("size", "channels", "mean", "std") or value != getattr(usual, name):
            written[name] = value
    return written


def read_input(given: Mapping[str, Any]) -> InputSpec:
    """The images in a recipe; what an older one does not say is as it was then.

    Raises:
        ValueError: a value is out of its range.
        TypeError, KeyError: it is of another type, or missing.
    """
    size = tuple(given["size"])
    if len(size) != 2 or not all(map(_is_side, size)):
        raise ValueError(f"input size {size}")
    channels = given["channels"]
    if not is_a(channels, int) or not 0 < channels <= 65536:
        raise ValueError(f"input channels {channels!r}")
    return InputSpec(
        size=(size[0], size[1]),
        channels=channels,
        mean=_numbers(given["mean"]),
        std=_numbers(given["std"]),
        resize=_resize(given.get("resize")),
        crop=_share(given.get("crop")),
        crop_mode=_one_of(given.get("crop_mode", "center"), CROP_MODES),
        interpolation=_one_of(given.get("interpolation", "bilinear"), INTERPOLATIONS),
        class_order=_one_of(given.get("class_order"), (None, *ORDERS)),
        classes=_names(given.get("classes")),
        origin=read_origin(given.get("origin", {})),
    )


def read_origin(given: Any) -> dict[str, str]:
    """Where fields come from, by name. Raises ValueError where it is something else."""
    if not is_a(given, dict[str, str]) or not set(given.values()) <= set(ORIGINS):
        raise ValueError(f"origin {given!r}")
    return dict(given)


def _is_side(value: Any) -> bool:
    return is_a(value, int) and 0 < value <= limits.INPUT_SIDE


def _numbers(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(number, values))


def _resize(given: Any) -> tuple[int, ...] | None:
    if given is None:
        return None
    sides = tuple(given)
    if len(sides) not in (1, 2) or not all(map(_is_side, sides)):
        raise ValueError(f"resize {sides}")
    return sides


def _share(given: Any) -> float | None:
    if given is None:
        return None
    share = number(given)
    if not (math.isfinite(share) and 0 < share <= 1):
        raise ValueError(f"crop {share}")
    return share


def _one_of(given: Any, choices: tuple[Any, ...]) -> Any:
    if not isinstance(given, (str, type(None))) or given not in choices:
        raise ValueError(f"{given!r} is none of {choices}")
    return given


def _names(given: Any) -> tuple[str, ...] | None:
    if given is None:
        return None
    if not is_a(given, list[str]):
        raise ValueError("class names that are no list of words")
    return tuple(given)
