"""Compare a checkpoint's tensors with an architecture's, in whatever spelling they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gatecli.architectures.shapes import CHANNELS, CLASSES, POSITIONS, Shape
from gatecli.errors import ArchitectureError

__all__ = ["SPELLINGS", "Comparison", "Spelt", "canonical", "compare", "spell"]

# What other people's networks of a family, or old files, call the same parts: (theirs,
# torchvision's). A dot is a module more.
SPELLINGS = {
    "resnet": (("shortcut", "downsample"), ("linear", "fc"), ("classifier", "fc")),
    "densenet": (
        ("norm.1", "norm1"),
        ("conv.1", "conv1"),
        ("norm.2", "norm2"),
        ("conv.2", "conv2"),
    ),
    "": (),
}
# Tensors under the names that torchvision gives them in a family, and the spelling that was
# replaced for each changed part.
Spelt = tuple[dict[str, Shape], dict[str, str]]


class Unfit(ArchitectureError):
    """The tensors are those of no known network, or not of the one that is named."""


@dataclass
class Comparison:
    """How a checkpoint differs from a row.

    Attributes:
        differing: how many tensors do.
        first: the first of them: canonical name, expected shape, shape there.
        counts: the numbers that stand for CLASSES, CHANNELS and POSITIONS.
    """

    differing: int = 0
    first: tuple[str, Shape | None, Shape | None] | None = None
    counts: dict[int, int] = field(default_factory=dict)

    def differ(self, name: str, expected: Shape | None, got: Shape | None) -> None:
        """Note that a tensor differs; None where there is none of that name."""
        self.differing += 1
        self.first = self.first or (name, expected, got)

    def describe(self, names: Mapping[str, str]) -> str:
        """How many tensors differ, and the first of them in the checkpoint's spelling."""
        name, expected, got = self.first or ("", None, None)
        many = "1 tensor differs" if self.differing == 1 else f"{self.differing} tensors differ"
        return (
            f"{many}, first `{spell(name, names)}`: expected {_dimensions(expected)} but got"
            f" {_dimensions(got)}"
        )


def compare(expected: Mapping[str, Shape], got: Mapping[str, Shape]) -> Comparison:
    """Compare names and shapes with those expected, counts that these leave open aside."""
    result = Comparison()
    for name, shape in expected.items():
        mine = got.get(name)
        if mine != shape and (mine is None or not _fits(shape, mine, result.counts)):
            result.differ(name, shape, mine)
    for name, shape in got.items():
        if name not in expected:
            result.differ(name, None, shape)
    return result


def _fits(shape: Shape, mine: Shape, counts: dict[int, int]) -> bool:
    """Whether only the open counts differ, and as in the tensors before."""
    if len(shape) != len(mine):
        return False
    for a, b in zip(shape, mine, strict=True):
        is_count = a < 0 < b
        if a != b and not (is_count and counts.setdefault(a, b) == b):
            return False
    return True


def canonical(shapes: dict[str, Shape], family: str) -> Spelt:
    """Tensors under the names that torchvision gives them in a family."""
    dotted = {f".{name}.": shape for name, shape in shapes.items()}
    names: dict[str, str] = {}
    for theirs, canonical in SPELLINGS[family]:
        if canonical in names or _has_part(dotted, canonical) or not _has_part(dotted, theirs):
            continue
        names[canonical] = theirs
        renamed = {}
        for name, shape in dotted.items():
            renamed[name.replace(f".{theirs}.", f".{canonical}.")] = shape
        dotted = renamed
    if not names:
        return shapes, {}
    return {name[1:-1]: shape for name, shape in dotted.items()}, names


def _has_part(dotted: Iterable[str], part: str) -> bool:
    return any(f".{part}." in name for name in dotted)


def spell(name: str, names: Mapping[str, str]) -> str:
    """A canonical dotted name in the checkpoint's spelling: "fc.weight" -> "linear.weight"."""
    return ".".join(names.get(part, part) for part in name.split("."))


def _dimensions(shape: Shape | None) -> str:
    """(64, 3, 7, 7), or (N, 2048) where N is any class count."""
    if shape is None:
        return "no such tensor"
    words = {CLASSES: "N", CHANNELS: "C", POSITIONS: "L"}
    sizes = ", ".join(words.get(size, str(size)) for size in shape)
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"
