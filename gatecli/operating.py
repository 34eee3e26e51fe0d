"""Operating points of a network with exits, as calibrate records them in a checkpoint: which one meets a target or a budget. Plain data, no torch."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gatecli.errors import CheckpointError, SettingError
from gatecli.recipe import Recipe

Recorded = dict[str, Any]  # thresholds {exit: number, None for never}, top1 (percent, val), macs, shares [of samples, by exit, the network's end last]


def choose_recorded(recipe: Recipe, exits: Sequence[str], target_acc: float | None, max_gmacs: float | None) -> Recorded:
    """The point that the recorded frontier has for a target or a budget, its thresholds finite or infinite numbers.

    Raises: SettingError where neither or both are given, none is recorded, or none meets it; CheckpointError where the record is damaged.
    """
    if (target_acc is None) == (max_gmacs is None):
        raise SettingError("expected either a target accuracy or a budget of GMACs")
    step = recipe.last("calibrate")
    points = [_read(point, exits) for point in (step.results.get("exit_frontier") or [])] if step is not None else []
    if not points:
        raise SettingError("no frontier is recorded in this checkpoint: calibrate it on data first (gatecli calibrate --target-acc A --data ...)")
    if target_acc is not None:
        good = [point for point in points if point["top1"] >= target_acc - 1e-9]
        if not good:
            raise SettingError(f"no recorded point reaches {target_acc:g} percent on val: the highest is {max(point['top1'] for point in points):.2f}")
        return min(good, key=lambda point: (point["macs"], -point["top1"]))
    assert max_gmacs is not None
    good = [point for point in points if point["macs"] <= max_gmacs * 1e9]
    if not good:
        raise SettingError(f"no recorded point costs at most {max_gmacs:g} GMACs: the cheapest takes {min(point['macs'] for point in points) / 1e9:.4g}")
    return max(good, key=lambda point: (point["top1"], -point["macs"]))


def _read(point: Any, exits: Sequence[str]) -> Recorded:
    try:
        thresholds = {site: math.inf if point["thresholds"][site] is None else float(point["thresholds"][site]) for site in exits}
        shares = [float(share) for share in point["shares"]]
        if len(shares) != len(exits) + 1 or any(math.isnan(value) for value in thresholds.values()):
            raise ValueError
        return {"thresholds": thresholds, "top1": float(point["top1"]), "macs": float(point["macs"]), "shares": shares}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"expected the recipe's frontier to hold thresholds of {', '.join(exits)}, but it has {point!r}: the file is damaged") from error
