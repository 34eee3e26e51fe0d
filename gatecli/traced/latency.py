"""What a network's gated units save in milliseconds, as a checkpoint keeps it. Plain data.

A table holds for one machine, one runtime, one precision and one number of threads, for single
images. Sites are taken to save independently of each other, which is checked when it is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gatecli.errors import CheckpointError
from gatecli.traced.recipe import Recipe
from gatecli.traced.strict import checked

__all__ = ["OP", "LatencyTable", "SiteTimes", "cheapest", "curve_at", "in_grains", "recorded_table"]

OP = "price"  # of the step that keeps a table
ROUNDING = 1e-6  # of a grain
CHANGES = ("attach", "prune")  # steps behind which a table is of another network
Curve = list[list[float]]  # [share of units that run, milliseconds], by rising share


@dataclass(frozen=True, kw_only=True)
class SiteTimes:
    """Milliseconds of one site, against all of its units running without a gate.

    Attributes:
        static: By the share of its units that stay where the others are gone for good; without
            share 0 where the site cannot be removed.
        dynamic: By the share of its units that its gate lets run, the gate included; empty for
            gates that do not look at images: prune and export decide these for good.
        grain: How many units are computed at a time, where they are decided for good: so many
            take as long as the next multiple, or longer.
    """

    static: Curve
    dynamic: Curve
    grain: int = 1


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """What was measured.

    Attributes:
        machine: As gatecli.runtimes.machine says it.
        runtime: Its name.
        precision: Of the weights while it runs.
        threads: That computed.
        all_on_ms: A call with one image, all units running and none gated, nobody leaving early.
        shared_ms: What gates cost together, beyond what each costs by itself.
        sites: By name; a site that is not there saves nothing.
        estimated_ms: With every second site closed, or half of its units where each saves by
            itself, by this table.
        measured_ms: The same, measured.
    """

    machine: str
    runtime: str
    precision: str
    threads: int
    all_on_ms: float
    shared_ms: float
    sites: dict[str, SiteTimes]
    estimated_ms: float = 0.0
    measured_ms: float = 0.0

    @property
    def where(self) -> str:
        """What it holds for, in words."""
        threads = f"{self.threads} thread" + ("s" if self.threads > 1 else "")
        return f"{self.runtime}, {self.precision}, {threads} of {self.machine}"

    def facts(self) -> dict[str, Any]:
        """The table as JSON has it."""
        return asdict(self)


def curve_at(curve: Curve, share: float) -> float:
    """Milliseconds at a share of running units: straight between the points, level outside."""
    before = curve[0]
    for point in curve:
        if share <= point[0]:
            return _between(before, point, share)
        before = point
    return before[1]


def in_grains(count: float, grain: int, units: int) -> int:
    """So many running units, or their mean, as the next multiple of a grain: of `units` at most."""
    return min(units, math.ceil(count / grain - ROUNDING) * grain)


def cheapest(curve: Curve) -> float:
    """The share of running units that takes least; of several the lowest.

    It need not be 0: a runtime may have a quick way for whole layers alone.
    """
    return min(curve, key=lambda point: point[1])[0]


def _between(left: Sequence[float], right: Sequence[float], share: float) -> float:
    width = right[0] - left[0]
    if width <= 0:
        return right[1]
    return left[1] + (right[1] - left[1]) * (share - left[0]) / width


def recorded_table(recipe: Recipe) -> LatencyTable | None:
    """The latest table that a checkpoint keeps; None where the network has changed since.

    Raises:
        CheckpointError: The record is damaged.
    """
    step = recipe.last(OP, *CHANGES)
    if step is None or step.op != OP:
        return None
    try:
        facts = dict(step.results)
        sites = {name: checked(SiteTimes(**times)) for name, times in facts.pop("sites").items()}
        table = checked(LatencyTable(**facts, sites=sites))
        _check_curves(table)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"expected the recipe to hold a latency table, but it cannot be read ({error!r:.200}):"
            " the file is damaged; gatecli price measures another"
        ) from error
    return table


def _check_curves(table: LatencyTable) -> None:
    """Raises ValueError where a curve is no curve."""
    for name, times in table.sites.items():
        for curve in (times.static, times.dynamic):
            shares = [point[0] for point in curve if len(point) == 2]
            if len(shares) < len(curve) or shares != sorted(shares):
                raise ValueError(f"curve of {name}")
        if times.grain < 1:
            raise ValueError(f"grain of {name}")
        if not times.static:
            raise ValueError(f"no times of {name}")
