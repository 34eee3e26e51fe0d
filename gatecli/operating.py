"""Operating points of a network with exits, as calibrate records them in a checkpoint.

Which one meets a target or a budget. Plain data, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gatecli.errors import CheckpointError, SettingError
from gatecli.traced.recipe import Recipe

Recorded = dict[
    str, Any
    # thresholds {exit: number, None for never}, top1 (percent, val), macs, ms (or None), shares [of
    # samples, by exit, the network's end last]
]


def choose_recorded(
    recipe: Recipe,
    exits: Sequence[str],
    target_acc: float | None,
    max_gmacs: float | None,
    max_ms: float | None = None,
) -> Recorded:
    """The point that the recorded frontier has for a target or a budget, its thresholds finite or
    infinite numbers.

    Raises: SettingError where neither or both are given, none is recorded, or none meets it;
    CheckpointError where the record is damaged.
    """
    if sum(value is not None for value in (target_acc, max_gmacs, max_ms)) != 1:
        raise SettingError(
            "expected either a target accuracy or a budget, of GMACs or of milliseconds"
        )
    step = recipe.last("calibrate")
    points = (
        [_read(point, exits) for point in step.results.get("exit_frontier") or []]
        if step is not None
        else []
    )
    if not points:
        raise SettingError(
            "no frontier is recorded in this checkpoint: calibrate it on data first (gatecli"
            " calibrate --target-acc A --data ...)"
        )
    if target_acc is not None:
        good = [point for point in points if point["top1"] >= target_acc - 1e-9]
        if not good:
            raise SettingError(
                f"no recorded point reaches {target_acc:g} percent on val: the highest is"
                f" {max(point['top1'] for point in points):.2f}"
            )
        return min(
            good,
            key=lambda point: (
                point["macs"] if point["ms"] is None else point["ms"],
                -point["top1"],
            ),
        )
    price, budget, scale, unit = (
        ("ms", max_ms, 1.0, "ms") if max_ms is not None else ("macs", max_gmacs, 1e9, "GMACs")
    )
    assert budget is not None
    if any(point[price] is None for point in points):
        raise SettingError(
            "the recorded frontier holds no milliseconds: calibrate with --cost latency first"
        )
    good = [point for point in points if point[price] <= budget * scale]
    if not good:
        raise SettingError(
            f"no recorded point costs at most {budget:g} {unit}: the cheapest takes"
            f" {min(point[price] for point in points) / scale:.4g}"
        )
    return max(good, key=lambda point: (point["top1"], -point[price]))


def _read(point: Any, exits: Sequence[str]) -> Recorded:
    try:
        thresholds = {
            site: (
                math.inf if point["thresholds"][site] is None else float(point["thresholds"][site])
            )
            for site in exits
        }
        shares = [float(share) for share in point["shares"]]
        if len(shares) != len(exits) + 1 or any(math.isnan(value) for value in thresholds.values()):
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
