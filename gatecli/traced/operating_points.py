"""Operating points of a network with exits, as calibrate records them in a checkpoint.

Which one meets a target or a budget. Plain data, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gatecli.errors import CheckpointError, SettingError
from gatecli.traced.recipe import Recipe

__all__ = ["choose_recorded"]

# thresholds {exit: number}, top1 (percent, val), macs, ms (or None), shares (of samples, by exit,
# the final classifier's last)
Recorded = dict[str, Any]


def choose_recorded(
    recipe: Recipe,
    exits: Sequence[str],
    target_acc: float | None,
    max_gmacs: float | None,
    max_ms: float | None = None,
) -> Recorded:
    """The point that the recorded frontier has for a target or a budget.

    Args:
        recipe: Of the calibrated network.
        exits: The network's.
        target_acc: Val top-1 to reach, in percent, at the least cost.
        max_gmacs: The highest val top-1 for at most so many GMACs an image.
        max_ms: For at most so many milliseconds.

    Returns:
        The point; its thresholds are finite or infinite numbers.

    Raises:
        SettingError: Not exactly one of the three is given, no frontier is recorded, or none of
            its points will do.
        CheckpointError: The record is damaged.
    """
    given = [value for value in (target_acc, max_gmacs, max_ms) if value is not None]
    if len(given) != 1:
        raise SettingError(
            "expected either a target accuracy or a budget, of GMACs or of milliseconds"
        )
    points = _recorded(recipe, exits)
    if target_acc is not None:
        return _cheapest(points, target_acc)
    if max_ms is not None:
        return _most_accurate(points, "ms", max_ms, "ms")
    return _most_accurate(points, "macs", given[0], "GMACs", scale=1e9)


def _recorded(recipe: Recipe, exits: Sequence[str]) -> list[Recorded]:
    """The frontier of the latest calibration."""
    step = recipe.last("calibrate")
    frontier = step.results.get("exit_frontier") if step is not None else None
    if not frontier:
        raise SettingError(
            "no frontier is recorded in this checkpoint: calibrate it on data first (gatecli"
            " calibrate --target-acc A --data ...)"
        )
    return [_read(point, exits) for point in frontier]


def _cheapest(points: Sequence[Recorded], target_acc: float) -> Recorded:
    def order(point: Recorded) -> tuple[float, float]:
        cost = point["macs"] if point["ms"] is None else point["ms"]
        return cost, -point["top1"]

    good = [point for point in points if point["top1"] >= target_acc - 1e-9]
    if not good:
        raise SettingError(
            f"no recorded point reaches {target_acc:g} percent on val: the highest is"
            f" {max(point['top1'] for point in points):.2f}"
        )
    return min(good, key=order)


def _most_accurate(
    points: Sequence[Recorded], price: str, budget: float, unit: str, scale: float = 1.0
) -> Recorded:
    """The point of highest top-1 whose `price` is at most `budget` times `scale`."""
    if any(point[price] is None for point in points):
        raise SettingError(
            "the recorded frontier holds no milliseconds: calibrate with --cost latency first"
        )
    good = [point for point in points if point[price] <= budget * scale]
    if not good:
        cheapest = min(point[price] for point in points) / scale
        raise SettingError(
            f"no recorded point costs at most {budget:g} {unit}: the cheapest takes {cheapest:.4g}"
        )
    return max(good, key=lambda point: (point["top1"], -point[price]))


def _read(point: Any, exits: Sequence[str]) -> Recorded:
    """A point of a recipe, checked."""
    try:
        thresholds = {site: _threshold(point["thresholds"][site]) for site in exits}
        shares = [float(share) for share in point["shares"]]
        if len(shares) != len(exits) + 1:
            raise ValueError
        return {
            "thresholds": thresholds,
            "top1": float(point["top1"]),
            "macs": float(point["macs"]),
            "ms": None if point.get("ms") is None else float(point["ms"]),
            "shares": shares,
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"expected the recipe's frontier to hold thresholds of {', '.join(exits)}, but it has"
            f" {point!r}: the file is damaged"
        ) from error


def _threshold(value: Any) -> float:
    """A threshold as it is compared with; null stands for never."""
    threshold = math.inf if value is None else float(value)
    if math.isnan(threshold):
        raise ValueError
    return threshold
