"""What a gatecli checkpoint says of itself.

Where it came from, and the ordered steps that made it. Plain data, no torch.

The recipe is stored as JSON in the safetensors metadata under the key `gatecli`. Structural steps
(attach, prune) are replayed on load; the others are provenance with their results.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from gatecli import limits
from gatecli.errors import CheckpointError

FORMAT = 1
STRUCTURAL = ("attach", "prune")
R = TypeVar("R")


@dataclass(frozen=True)
class Source:
    """The checkpoint that everything began with.

    Bytes and MACs are its own, for the tables' first row.
    """

    arch: str
    arch_args: dict[str, Any]
    names: dict[str, str] = field(
        default_factory=dict
    )  # canonical part of a module's path -> the source's spelling
    file: str = ""
    sha256: str = ""
    file_bytes: int = 0
    params: int = 0
    macs: int = 0
    num_classes: int = 0
    leaves: list[str] = field(
        default_factory=list
    )  # patterns of module paths that tracing keeps whole


@dataclass(frozen=True)
class InputSpec:
    """How the network wants its images.

    Size in pixels (height, width), channels, and the normalisation of values in [0, 1].
    """

    size: tuple[int, int]
    channels: int = 3
    mean: tuple[float, ...] | None = None  # None: not known yet; taken from the first data set seen
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Step:
    """One thing that was done.

    `op` names the command, `settings` what it was told, `results` what it measured.
    """

    op: str
    settings: dict[str, Any]
    results: dict[str, Any] = field(default_factory=dict)
    at: str = field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds")
    )


@dataclass(frozen=True)
class Recipe:
    """Source, input, data and steps of a checkpoint."""

    source: Source
    input: InputSpec
    steps: tuple[Step, ...] = ()
    data: dict[str, Any] | None = None  # {"spec": "npz:FILE", "val": how the val split was cut}
    baseline: dict[str, Any] | None = (
        None  # {"top1": percent, "split": "val", "data": spec}: the source's accuracy
    )

    def with_step(self, step: Step) -> Recipe:
        return replace(self, steps=(*self.steps, step))

    def last(self, *ops: str) -> Step | None:
        """The latest step that is one of `ops`."""
        return next((step for step in reversed(self.steps) if step.op in ops), None)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str) -> Recipe:
        """Read a recipe; `where` names the file in errors.

        Raises CheckpointError if it is damaged or of a newer format.
        """
        try:
            raw = parsed(text)
            if (
                isinstance(raw, dict)
                and "format" not in raw
                and {"arch", "batch", "gates"} <= raw.keys()
            ):
                raise CheckpointError(
                    f"{where} is a weights file that gatecli export wrote, no checkpoint: run it"
                    " with the Python file beside it, or give the checkpoint that it was exported"
                    " from"
                )
            version = raw.pop("format")
            if not is_a(version, int) or version < 1:
                raise ValueError(f"format {version!r}")
            if version > FORMAT:
                raise CheckpointError(
                    f"{where} has format version {version}, but this gatecli reads up to {FORMAT}:"
                    " upgrade gatecli (pip install -U gatecli)"
                )
            given = raw["input"]
            pair = tuple(given["size"])
            if len(pair) != 2 or not all(
                is_a(side, int) and 0 < side <= limits.INPUT_SIDE for side in pair
            ):
                raise ValueError(f"input size {pair}")
            if len(raw["steps"]) > limits.STEPS:
                raise ValueError(f"more than {limits.STEPS} steps")
            channels = given["channels"]
            if not is_a(channels, int) or not 0 < channels <= 65536:
                raise ValueError(f"input channels {channels!r}")
            mean, std = (
                None if given[key] is None else tuple(map(_number, given[key]))
                for key in ("mean", "std")
            )
            return checked(
                cls(
                    source=checked(Source(**raw["source"])),
                    input=InputSpec((pair[0], pair[1]), channels, mean, std),
                    steps=tuple(checked(Step(**step)) for step in raw["steps"]),
                    data=raw["data"],
                    baseline=raw["baseline"],
                )
            )
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            reason = f"{error!r}"[:200]
            raise CheckpointError(
                f"{where} has gatecli metadata that cannot be read ({reason}): the file is damaged"
                " or not gatecli's"
            ) from error


def parsed(text: str) -> Any:
    """What strict JSON with numbers of 64 bits holds.

    Raises ValueError, or RecursionError where it is nested without end.
    """
    return json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite)


def checked(record: R) -> R:
    """The dataclass instance itself, if each of its fields has the type that its annotation says.

    Raises TypeError.
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
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(is_a(part, kinds[1]) for part in value.values())
    if get_origin(hint) is list:
        return isinstance(value, list) and all(is_a(part, kinds[0]) for part in value)
    return (
        hint is Any
        or type(value) is (get_origin(hint) or hint)
        or (hint is float and type(value) is int)
    )


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


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text}")
    return value


def finite(value: float) -> float | None:
    """Strict JSON has no infinity: an unreachable threshold, say, becomes null."""
    return value if math.isfinite(value) else None
