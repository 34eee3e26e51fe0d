"""What a gatecli checkpoint says of itself: where it came from, and the steps that made it.

The recipe is stored as JSON in the safetensors metadata under the key `gatecli`. Structural steps
(attach, prune) are replayed on load; the others are provenance with their results.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from gatecli import limits
from gatecli.errors import CheckpointError

FORMAT = 1
LATER = ("key", "prefix")  # of the source, left out where empty: earlier versions know them not
BROKEN = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
R = TypeVar("R")


@dataclass(frozen=True)
class Source:
    """The checkpoint that everything began with.

    Attributes:
        arch: the architecture.
        arch_args: its arguments.
        names: part of a module's path as the library has it -> the source's spelling.
        file: the file's name.
        sha256: of the file, empty where there was none.
        file_bytes: its size.
        params: numbers in its parameters.
        macs: multiply-accumulates of one image.
        num_classes: how many it tells apart.
        leaves: patterns of module paths that tracing keeps whole.
        key: the keys in the file that led to the network, joined by dots.
        prefix: what was taken off its tensors' names.
    """

    arch: str
    arch_args: dict[str, Any]
    names: dict[str, str] = field(default_factory=dict)
    file: str = ""
    sha256: str = ""
    file_bytes: int = 0
    params: int = 0
    macs: int = 0
    num_classes: int = 0
    leaves: list[str] = field(default_factory=list)
    key: str = ""
    prefix: str = ""


@dataclass(frozen=True)
class InputSpec:
    """How the network wants its images.

    Attributes:
        size: (height, width) in pixels.
        channels: how many.
        mean: of values in [0, 1]; None: not known yet, taken from the first data set seen.
        std: the standard deviation of the same.
    """

    size: tuple[int, int]
    channels: int = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Step:
    """One thing that was done.

    Attributes:
        op: names the command.
        settings: what it was told.
        results: what it measured.
        at: when, in UTC.
    """

    op: str
    settings: dict[str, Any]
    results: dict[str, Any] = field(default_factory=dict)
    at: str = field(default_factory=_now)


@dataclass(frozen=True)
class Recipe:
    """What a checkpoint says of itself.

    Attributes:
        source: what everything began with.
        input: how the network wants its images.
        steps: what was done, in order.
        data: {"spec": "npz:FILE", "val": how the val split was cut}.
        baseline: the source's accuracy, {"top1": percent, "split": "val", "data": spec}.
    """

    source: Source
    input: InputSpec
    steps: tuple[Step, ...] = ()
    data: dict[str, Any] | None = None
    baseline: dict[str, Any] | None = None

    def with_step(self, step: Step) -> Recipe:
        """The same with one step more."""
        return replace(self, steps=(*self.steps, step))

    def last(self, *ops: str) -> Step | None:
        """The latest step that is one of `ops`."""
        return next((step for step in reversed(self.steps) if step.op in ops), None)

    def to_json(self) -> str:
        """The recipe as strict JSON."""
        document = {"format": FORMAT, **asdict(self)}
        for name in LATER:
            if not document["source"][name]:
                del document["source"][name]
        return json.dumps(document, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str) -> Recipe:
        """Read a recipe.

        Args:
            text: the JSON.
            where: the file's name, for errors.

        Raises:
            CheckpointError: it is damaged or of a newer format.
        """
        try:
            raw = parsed(text)
            _check_format(raw, where)
            given = _input(raw["input"])
            if len(raw["steps"]) > limits.STEPS:
                raise ValueError(f"more than {limits.STEPS} steps")
            recipe = cls(
                source=checked(Source(**raw["source"])),
                input=given,
                steps=tuple(checked(Step(**step)) for step in raw["steps"]),
                data=raw["data"],
                baseline=raw["baseline"],
            )
            return checked(recipe)
        except BROKEN as error:
            reason = f"{error!r}"[:200]
            raise CheckpointError(
                f"{where} has gatecli metadata that cannot be read ({reason}): the file is damaged"
                " or not gatecli's"
            ) from error


def _check_format(raw: Any, where: str) -> None:
    """Raises CheckpointError or ValueError where the document is no recipe of a known format."""
    is_export = isinstance(raw, dict) and "format" not in raw
    if is_export and {"arch", "batch", "gates"} <= raw.keys():
        raise CheckpointError(
            f"{where} is a weights file that gatecli export wrote, no checkpoint: run it with the"
            " Python file beside it, or give the checkpoint that it was exported from"
        )
    version = raw["format"]
    if not is_a(version, int) or version < 1:
        raise ValueError(f"format {version!r}")
    if version > FORMAT:
        raise CheckpointError(
            f"{where} has format version {version}, but this gatecli reads up to {FORMAT}:"
            " upgrade gatecli (pip install -U gatecli)"
        )


def _input(given: dict[str, Any]) -> InputSpec:
    """The images in a recipe. Raises ValueError where a number is out of its range."""
    size = tuple(given["size"])
    if len(size) != 2 or not all(map(_is_side, size)):
        raise ValueError(f"input size {size}")
    channels = given["channels"]
    if not is_a(channels, int) or not 0 < channels <= 65536:
        raise ValueError(f"input channels {channels!r}")
    mean = _numbers(given["mean"])
    std = _numbers(given["std"])
    return InputSpec(size=(size[0], size[1]), channels=channels, mean=mean, std=std)


def _is_side(value: Any) -> bool:
    return is_a(value, int) and 0 < value <= limits.INPUT_SIDE


def _numbers(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(_number, values))


def parsed(text: str) -> Any:
    """What strict JSON with numbers of 64 bits holds.

    Raises:
        ValueError: it is something else.
        RecursionError: it is nested without end.
    """
    return json.loads(
        text, parse_int=_whole, parse_float=finite_number, parse_constant=finite_number
    )


def checked(record: R) -> R:
    """The dataclass instance itself, if each of its fields has the type that its annotation says.

    Raises:
        TypeError: one has another.
    """
    for name, hint in get_type_hints(type(record)).items():
        value = getattr(record, name)
        if not is_a(value, hint):
            raise TypeError(f"{name} is {value!r}")
    return record


def is_a(value: Any, hint: Any) -> bool:
    """Whether a value out of JSON is what a type says; true and false are no numbers."""
    kinds = get_args(hint)
    if isinstance(hint, UnionType):
        return any(is_a(value, kind) for kind in kinds)
    origin = get_origin(hint)
    if origin is dict:
        return isinstance(value, dict) and _all_are(value.values(), kinds[1])
    if origin is list:
        return isinstance(value, list) and _all_are(value, kinds[0])
    if hint is float and type(value) is int:
        return True
    return hint is Any or type(value) is (origin or hint)


def _all_are(values: Iterable[Any], hint: Any) -> bool:
    return all(is_a(value, hint) for value in values)


def _whole(text: str) -> int | str:
    """A whole number of at most 64 bits.

    A longer one stays text, which nothing takes for a number.
    """
    if len(text) > len(str(-(2**63))):
        return text
    value = int(text)
    return value if -(2**63) <= value < 2**63 else text


def _number(value: Any) -> float:
    if not is_a(value, float):
        raise ValueError(f"number {value!r}")
    return float(value)


def finite_number(text: str) -> float:
    """The number that a file's text says; ValueError where it is not finite."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text}")
    return value


def finite(value: float) -> float | None:
    """Strict JSON has no infinity: an unreachable threshold, say, becomes null."""
    return value if math.isfinite(value) else None
