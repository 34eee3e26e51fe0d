"""What exits shall be calibrated to, as users ask for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gatecli.calibration.exits.result import stored
from gatecli.calibration.reference import Reference
from gatecli.errors import SettingError
from gatecli.traced.recipe import finite

__all__ = ["Goal", "option"]

COSTS = ("macs", "latency")
LIMITS = ("target_acc", "max_drop", "max_gmacs", "max_ms")
HIGHEST = {"target_acc": 100.0, "max_drop": 100.0, "confidence": 1.0}


@dataclass(frozen=True)
class Goal:
    """An accuracy to reach at the least cost, a cost to keep at the highest, or thresholds.

    Attributes:
        target_acc: Val top-1 to reach, in percent.
        max_drop: The same, in points below the best that is known: the source, or nobody leaving.
        max_gmacs: GMACs of an image, at most.
        max_ms: Milliseconds of an image, at most.
        confidence: With which probability the accuracy shall hold on unseen data.
        cost: What counts as cost, one of COSTS.
        thresholds: Of exits, by name, as the user wants them; others keep theirs.
    """

    target_acc: float | None = None
    max_drop: float | None = None
    max_gmacs: float | None = None
    max_ms: float | None = None
    confidence: float | None = None
    cost: str = "macs"
    thresholds: Mapping[str, float] | None = None

    def check(self) -> None:
        """Check that exactly one limit is given, that it is in range, and that all go together.

        Raises:
            SettingError: They do not.
        """
        limits = {option(name): getattr(self, name) for name in (*LIMITS, "thresholds")}
        given = [name for name, value in limits.items() if value is not None]
        if len(given) != 1:
            raise SettingError(
                f"expected one of {', '.join(limits)}, but got {' and '.join(given) or 'none'}"
            )
        self._check_ranges()
        self._check_together(given[0])

    def _check_ranges(self) -> None:
        for name in (*LIMITS, "confidence"):
            value = getattr(self, name)
            high = HIGHEST.get(name, math.inf)
            if value is not None and not 0 <= value <= high:
                raise SettingError(
                    f"expected {option(name)} to be between 0 and {high:g}, but got {value}"
                )

    def _check_together(self, given: str) -> None:
        """Check the confidence and the cost against the limit's option."""
        if self.confidence is not None and given not in ("--target-acc", "--max-drop"):
            raise SettingError(
                "--confidence is about an accuracy: expected it with --target-acc or --max-drop,"
                f" but got {given}"
            )
        if self.cost not in COSTS:
            raise SettingError(
                f"expected --cost to be one of {', '.join(COSTS)}, but got `{self.cost}`"
            )
        if self.cost == "macs" and given == "--max-ms":
            raise SettingError("--max-ms is no budget for --cost macs: add --cost latency")
        if self.cost == "latency" and given == "--max-gmacs":
            raise SettingError("--max-gmacs is no budget for --cost latency: expected --max-ms")

    def target_top1(self, reference: Reference | None) -> float | None:
        """The top-1 to reach, in percent, a drop counted from `reference`.

        None where a cost is limited instead.
        """
        if reference is None or self.max_drop is None:
            return self.target_acc
        return reference.less(self.max_drop)

    def said(self, reference: Reference | None) -> str:
        """That, and how it was asked for."""
        if reference is None or self.max_drop is None:
            return f"--target-acc {self.target_acc:g}"
        return reference.said(self.max_drop)

    def by_hand(self, exits: Mapping[str, float]) -> list[float] | None:
        """The thresholds that the user wants, for exits that have these now, in their order.

        As the network's own type has them, so that it compares as was measured. None: the user
        names none.

        Raises:
            SettingError: There is no exit of a name, or a threshold is no number.
        """
        if self.thresholds is None:
            return None
        for site, value in self.thresholds.items():
            if site not in exits:
                raise SettingError(
                    f"expected --thresholds to name exits of the network ({', '.join(exits)}), but"
                    f" got `{site}`"
                )
            if math.isnan(value):
                raise SettingError(
                    f"expected the threshold of {site} to be a number, inf for nobody leaves, but"
                    " got nan"
                )
        wanted = torch.tensor(list({**exits, **self.thresholds}.values()), dtype=torch.float32)
        values: list[float] = wanted.tolist()
        return values

    def recorded(self) -> dict[str, Any]:
        """The goal as a recipe records it; an infinite threshold is null."""
        record = asdict(self)
        if self.thresholds is not None:
            named = self.thresholds.items()
            record["thresholds"] = {site: finite(stored(value)) for site, value in named}
        return record


def option(name: str) -> str:
    """The command line's spelling: max_ms -> --max-ms."""
    return "--" + name.replace("_", "-")
