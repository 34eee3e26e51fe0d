"""What a gatecli checkpoint says of itself: where it came from, and the steps that made it.

The recipe is stored as JSON in the safetensors metadata under the key `gatecli`. Structural steps
(attach, prune) are replayed on load; the others are provenance with their results.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from gatecli import limits
from gatecli.errors import CheckpointError
from gatecli.traced.images import InputSpec, SaidInput, read_input, written_input
from gatecli.traced.strict import checked, finite, finite_number, is_a, parsed

__all__ = [
    "FORMAT",
    "RULES",
    "InputSpec",
    "Recipe",
    "SaidInput",
    "Source",
    "Step",
    "checked",
    "finite",
    "finite_number",
    "is_a",
    "parsed",
]

# 1: a method's settings are numbers, words or null; 2: also true and false, lists and mappings
FORMAT = 2
# of finding and numbering sites, and of deciding them; 1: exits as the first release places them;
# 2: attention as tracing leaves it; 3: convolutions read zeros where an addition beside them does
RULES = 4
LATER = ("key", "prefix", "assumed", "softmax")  # of Source: older gatecli do not know them
BROKEN = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


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
        assumed: what was assumed of it because no tensor tells it: what, instead, option.
        softmax: whether a softmax at its end was taken off.
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
    assumed: list[dict[str, str]] = field(default_factory=list)
    softmax: bool = False


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
        baseline: the source's accuracy, {"top1": percent, "split": "val", "data": spec, "images":
            `InputSpec.key` of the images that it was measured on}.
        rules: the version of the rules by which its sites were found.
    """

    source: Source
    input: InputSpec
    steps: tuple[Step, ...] = ()
    data: dict[str, Any] | None = None
    baseline: dict[str, Any] | None = None
    rules: int = RULES

    def with_step(self, step: Step) -> Recipe:
        """The same with one step more."""
        return replace(self, steps=(*self.steps, step))

    def last(self, *ops: str) -> Step | None:
        """The latest step that is one of `ops`."""
        return next((step for step in reversed(self.steps) if step.op in ops), None)

    def known_top1(self, data: str) -> float | None:
        """The baseline's percentage, unless it is of other data or images prepared otherwise."""
        now = {"data": data, "images": self.input.key()}
        known = self.baseline
        if known is None or any(known.get(name, now[name]) != now[name] for name in now):
            return None
        return float(known["top1"])

    def to_json(self) -> str:
        """The recipe as strict JSON, in the oldest format that can say it.

        So an older gatecli reads what it understands, and asks to be upgraded for the rest.
        """
        version = FORMAT if any(map(_has_typed_settings, self.steps)) else 1
        told = asdict(self)
        for name in LATER:  # left out where they say nothing, as older files have it
            if not told["source"][name]:
                del told["source"][name]
        if self.rules == 1:
            del told["rules"]
        facts = {"format": version, **told, "input": written_input(self.input)}
        return json.dumps(facts, allow_nan=False)

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
            given = read_input(raw["input"])
            if len(raw["steps"]) > limits.STEPS:
                raise ValueError(f"more than {limits.STEPS} steps")
            recipe = cls(
                source=checked(Source(**raw["source"])),
                input=given,
                steps=tuple(checked(Step(**step)) for step in raw["steps"]),
                data=raw["data"],
                baseline=raw["baseline"],
                rules=raw.get("rules", 1),
            )
            return checked(recipe)
        except BROKEN as error:
            reason = f"{error!r}"[:200]
            raise CheckpointError(
                f"{where} has gatecli metadata that cannot be read ({reason}): the file is damaged"
                " or not gatecli's"
            ) from error


def _has_typed_settings(step: Step) -> bool:
    """Whether a method's settings hold what format 1 has no words for."""
    settings = step.settings.get("settings")
    values = settings.values() if isinstance(settings, dict) else ()
    return any(isinstance(value, (bool, list, dict)) for value in values)


def _check_format(raw: Any, where: str) -> None:
    """Raises CheckpointError or ValueError where the document is no recipe of a known format."""
    is_export = isinstance(raw, dict) and "format" not in raw
    if is_export and {"arch", "batch", "gates"} <= raw.keys():
        raise CheckpointError(
            f"{where} is a weights file that gatecli export wrote, no checkpoint: run it with the"
            " Python file beside it, or give the checkpoint that it was exported from"
        )
    for name, version, newest in (
        ("format", raw["format"], FORMAT),
        ("rules", raw.get("rules", 1), RULES),
    ):
        if not is_a(version, int) or version < 1:
            raise ValueError(f"{name} {version!r}")
        if version > newest:
            raise CheckpointError(
                f"{where} has {name} version {version}, but this gatecli reads up to {newest}:"
                " upgrade gatecli (pip install -U gatecli)"
            )
