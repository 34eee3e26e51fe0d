"""What an exported file says of itself: one record, written by export and checked by run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields

from gatecli import limits
from gatecli.data import forms
from gatecli.errors import ExportError
from gatecli.network import Network
from gatecli.traced.images import InputSpec, read_input
from gatecli.traced.recipe import checked, parsed

__all__ = ["KEY", "Facts", "facts_of"]

KEY = "gatecli"  # of the file's metadata


@dataclass(frozen=True)
class Facts:
    """The facts, as JSON has them.

    Attributes:
        arch: the architecture; empty where it has no name.
        num_classes: how many logits there are.
        input_size: height and width of the images in pixels.
        channels: of the images.
        mean: of values in [0, 1], one number or one a channel; None: ImageNet's.
        std: likewise.
        classes: their names; None: not known.
        batch: 1 where the file takes one image at a time; None: any number.
        crop: whether images are scaled to cover more than their size, and cut.
        exits: their sites, in the order of their numbers.
        gates: the other sites that decide at run time.
        resize: what an image is scaled to before it is cropped, (shorter side) or (height, width);
            None, as in older files: so that the size / 0.875 is covered.
        crop_share: the share that is cut out, where it was said so.
        crop_mode: as in `InputSpec`.
        interpolation: likewise.
        class_order: likewise.
        origin: where these come from, by the names in `InputSpec`.
        precision: of what the file computes: fp32 or int8.
        processor: the kind that the file was laid out for; empty: any.
    """

    arch: str
    num_classes: int
    input_size: list[int]
    channels: int
    mean: list[float] | None
    std: list[float] | None
    classes: list[str] | None
    batch: int | None
    crop: bool
    exits: list[str]
    gates: list[str]
    resize: list[int] | None = None
    crop_share: float | None = None
    crop_mode: str = "center"
    interpolation: str = "bilinear"
    class_order: str | None = None
    origin: dict[str, str] = field(default_factory=dict)
    precision: str = "fp32"
    processor: str = ""

    def input(self) -> InputSpec:
        """How the network wants its images.

        Raises:
            ValueError: a value is out of its range.
        """
        return read_input(
            {
                "size": self.input_size,
                "channels": self.channels,
                "mean": self.mean,
                "std": self.std,
                "resize": self.resize,
                "crop": self.crop_share,
                "crop_mode": self.crop_mode,
                "interpolation": self.interpolation,
                "class_order": self.class_order,
                "origin": self.origin,
            }
        )

    def to_metadata(self) -> dict[str, str]:
        """The facts as metadata of a file: one entry, JSON."""
        return {KEY: json.dumps(asdict(self))}

    @classmethod
    def from_json(cls, text: str, where: str) -> Facts:
        """Read facts out of a file's metadata.

        Args:
            text: JSON; entries that are not known are ignored.
            where: names the file in errors.

        Raises:
            ExportError: a fact is missing, or cannot be so.
        """
        try:
            raw = parsed(text)
            if not isinstance(raw, dict):
                raise TypeError(f"it is a {type(raw).__name__}")
            facts = checked(cls(**{name: raw[name] for name in _wanted(raw)}))
            _check_images(facts)
            facts.input()
            _check_classes(facts)
        except KeyError as error:
            raise ExportError(_refusal(where, f"it has no {error}")) from error
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            reason = " ".join((str(error) or type(error).__name__).split())[:160]
            raise ExportError(_refusal(where, reason)) from error
        return facts


def facts_of(network: Network, *, single: bool, classes: Sequence[str] = ()) -> Facts:
    """Collect the facts of a network.

    Args:
        network: the network.
        single: the file takes one image at a time.
        classes: their names; none: not known.
    """
    spec = network.input
    data = (network.recipe.data or {}).get("spec")
    exits = list(network.site_exits)
    return Facts(
        arch=network.recipe.source.arch,
        num_classes=network.num_classes,
        input_size=list(spec.size),
        channels=spec.channels,
        mean=None if spec.mean is None else list(spec.mean),
        std=None if spec.std is None else list(spec.std),
        classes=list(classes) or _recorded(network),
        batch=1 if single else None,
        crop=data is None or forms.is_cropped(data),
        exits=exits,
        gates=[site for site in network.site_gates if site not in exits],
        resize=None if spec.resize is None else list(spec.resize),
        crop_share=spec.crop,
        crop_mode=spec.crop_mode,
        interpolation=spec.interpolation,
        class_order=spec.class_order,
        origin=dict(spec.origin),
    )


def _recorded(network: Network) -> list[str] | None:
    """The classes' names that the recipe has; None: none, or of another number of classes."""
    names = network.input.classes or ()
    return list(names) if len(names) == network.num_classes else None


def _wanted(raw: dict[str, object]) -> list[str]:
    """The facts to read: those that older files lack have defaults."""
    names = []
    for each in fields(Facts):
        has_default = each.default is not MISSING or each.default_factory is not MISSING
        if each.name in raw or not has_default:
            names.append(each.name)
    return names


def _refusal(where: str, reason: str) -> str:
    return (
        f"expected {where} to say how its images are to be prepared, as gatecli export writes it, "
        f"but its metadata cannot be read ({reason}): export it again"
    )


def _check_images(facts: Facts) -> None:
    """Raise ValueError where images cannot be so, or their numbers do not fit each other."""
    sides = facts.input_size
    if len(sides) != 2 or min(sides) < 1 or sides[0] * sides[1] > limits.INPUT_PIXELS:
        raise ValueError(f"input_size is {sides}")
    if facts.channels not in (1, 3):
        raise ValueError(f"channels is {facts.channels}, but image files have 1 or 3")
    for name in ("mean", "std"):
        values = getattr(facts, name)
        if values is not None and len(values) not in (1, facts.channels):
            raise ValueError(f"{name} has {len(values)} numbers for {facts.channels} channels")
    if not all(0 < value < math.inf for value in facts.std or ()):
        raise ValueError(f"std is {facts.std}")


def _check_classes(facts: Facts) -> None:
    """Raise ValueError where there are no classes, or not as many names."""
    names = facts.classes or ()
    if facts.num_classes < 1 or len(names) not in (0, facts.num_classes):
        raise ValueError(f"there are {len(names)} names for {facts.num_classes} classes")
