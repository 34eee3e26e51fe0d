"""What a gatecli checkpoint says of itself: where it came from, and the ordered steps that made it. Plain data, no torch.

The recipe is stored as JSON in the safetensors metadata under the key `gatecli`. Structural steps (attach, prune) are
replayed on load; the others are provenance with their results.
"""
from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from gatecli.errors import CheckpointError

FORMAT = 1
STRUCTURAL = ("attach", "prune")


@dataclass(frozen=True)
class Source:
    """The checkpoint that everything began with; bytes and MACs are its own, for the tables' first row."""

    arch: str
    arch_args: dict[str, Any]
    names: dict[str, str] = field(default_factory=dict)  # canonical part of a module's path -> the source's spelling
    file: str = ""
    sha256: str = ""
    file_bytes: int = 0
    params: int = 0
    macs: int = 0
    num_classes: int = 0
    leaves: list[str] = field(default_factory=list)  # patterns of module paths that tracing keeps whole


@dataclass(frozen=True)
class InputSpec:
    """How the network wants its images: size in pixels (height, width), channels, and the normalisation of values in [0, 1]."""

    size: tuple[int, int]
    channels: int = 3
    mean: tuple[float, ...] | None = None  # None: not known yet; taken from the first data set seen
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Step:
    """One thing that was done: `op` names the command, `settings` what it was told, `results` what it measured."""

    op: str
    settings: dict[str, Any]
    results: dict[str, Any] = field(default_factory=dict)
    at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class Recipe:
    """Source, input, data and steps of a checkpoint."""

    source: Source
    input: InputSpec
    steps: tuple[Step, ...] = ()
    data: dict[str, Any] | None = None  # {"spec": "npz:FILE", "val": how the val split was cut}
    baseline: dict[str, Any] | None = None  # {"top1": percent, "split": "val"}: the source's accuracy

    def with_step(self, step: Step) -> Recipe:
        return replace(self, steps=(*self.steps, step))

    def last(self, *ops: str) -> Step | None:
        """The latest step that is one of `ops`."""
        return next((step for step in reversed(self.steps) if step.op in ops), None)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, where: str) -> Recipe:
        """Read a recipe; `where` names the file in errors. Raises CheckpointError if it is damaged or of a newer format."""
        try:
            raw = json.loads(text)
            version = raw.pop("format")
            if version > FORMAT:
                raise CheckpointError(f"{where} has format version {version}, but this gatecli reads up to {FORMAT}: upgrade gatecli (pip install -U gatecli)")
            given = raw["input"]
            pair = tuple(given["size"])
            if len(pair) != 2 or not all(isinstance(side, int) and 0 < side <= 65536 for side in pair):
                raise ValueError(f"input size {pair}")
            channels = given["channels"]
            if not isinstance(channels, int) or not 0 < channels <= 65536:
                raise ValueError(f"input channels {channels!r}")
            mean, std = (None if given[key] is None else tuple(float(v) for v in given[key]) for key in ("mean", "std"))
            return cls(
                source=Source(**raw["source"]),
                input=InputSpec((pair[0], pair[1]), channels, mean, std),
                steps=tuple(Step(**step) for step in raw["steps"]),
                data=raw["data"],
                baseline=raw["baseline"],
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{where} has gatecli metadata that cannot be read ({error!r}): the file is damaged or not gatecli's") from error


def finite(value: float) -> float | None:
    """Strict JSON has no infinity: an unreachable threshold, say, becomes null."""
    return value if math.isfinite(value) else None
