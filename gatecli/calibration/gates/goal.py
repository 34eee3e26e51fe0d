"""What gates shall be calibrated to: an accuracy at the least cost, or a cost at the best accuracy.

The cost is what the price says (gatecli.network.price): MACs, or milliseconds by a table.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gatecli.calibration.gates.points import Point, choose
from gatecli.calibration.reference import Reference
from gatecli.errors import SettingError
from gatecli.network import Network
from gatecli.network.price import Price

__all__ = ["Asked", "Budget", "Goal", "Target", "check_target"]

WORTH = 0.002  # of the cost: gaps that can save less come last
ROUNDING = 1e-9  # of a budget


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The goal as users name it: one of the four.

    Attributes:
        target_acc: Val top-1 to reach, in percent.
        max_drop: The same, in points below the best that is known: the source, all gates open, or
            the gates as they were.
        max_gmacs: GMACs of an image, at most.
        max_ms: Milliseconds of an image, at most.
    """

    target_acc: float | None = None
    max_drop: float | None = None
    max_gmacs: float | None = None
    max_ms: float | None = None

    @property
    def budget(self) -> float | None:
        """The cost that is limited, if one is."""
        return self.max_gmacs if self.max_ms is None else self.max_ms

    def check(self) -> None:
        """Check that exactly one is given, in range.

        Raises:
            SettingError: It is not so.
        """
        limits = {"--max-gmacs": self.max_gmacs, "--max-ms": self.max_ms}
        given = {name: value for name, value in limits.items() if value is not None}
        if not given:
            check_target(self.target_acc, self.max_drop)
            return
        if len(given) > 1 or self.target_acc is not None or self.max_drop is not None:
            raise SettingError(
                "expected one of --target-acc, --max-drop, --max-gmacs and --max-ms, but got"
                " several"
            )
        for name, value in given.items():
            if not 0 <= value < math.inf:
                raise SettingError(f"expected {name} to be a number of at least 0, but got {value}")


def check_target(target_acc: float | None, max_drop: float | None = None) -> None:
    """Check that exactly one is given, in range.

    Args:
        target_acc: A percentage.
        max_drop: Points of one.

    Raises:
        SettingError: It is not so.
    """
    if (target_acc is None) == (max_drop is None):
        raise SettingError(
            "expected one of --target-acc, --max-drop, --max-gmacs and --max-ms, but got"
            f" {'neither' if target_acc is None else 'both'}"
        )
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise SettingError(
            f"expected --max-drop to be between 0 and 100 points, but got {max_drop}"
        )
    if target_acc is None:
        return
    if not 0 <= target_acc <= 100:
        raise SettingError(
            "expected --target-acc to be a top-1 accuracy between 0 and 100 percent, but got"
            f" {target_acc}"
        )
    if 0 < target_acc < 1:
        raise SettingError(
            f"expected --target-acc in percent, but got {target_acc:g}: was {100 * target_acc:g}"
            " meant?"
        )


class Goal(ABC):
    """Which of the points measured is the best, and where a better one may lie."""

    def __init__(self, price: Price) -> None:
        self.price = price

    @abstractmethod
    def choose(self, points: Iterable[Point]) -> Point | None:
        """The best point; of equals the first. None where none will do."""

    @abstractmethod
    def is_hopeful(self, left: Point, right: Point, best: Point | None) -> bool:
        """Whether thresholds between those of two points, the lower first, may give a better one.

        Args:
            left: What the lower threshold gives.
            right: What the higher one gives.
            best: The best point so far.
        """

    def is_little(self, right: Point, best: Point | None) -> bool:
        """Whether what is hoped for is not worth much."""
        return False

    @abstractmethod
    def out_of_reach(self, points: Sequence[Point], network: Network) -> str:
        """What to say where none of the points measured will do."""


class Target(Goal):
    """At least `top1` percent at the least cost.

    Args:
        price: Says what things cost.
        top1: Percent.
        said: How it was asked for.
    """

    def __init__(self, price: Price, top1: float, said: str = "") -> None:
        super().__init__(price)
        self.top1 = top1
        self.said = said or f"--target-acc {top1:g}"

    @classmethod
    def below(cls, price: Price, reference: Reference, drop: float) -> Target:
        """At most `drop` points below what is known."""
        return cls(price, reference.less(drop), reference.said(drop))

    def choose(self, points: Iterable[Point]) -> Point | None:
        return choose(points, self.top1)

    def is_hopeful(self, left: Point, right: Point, best: Point | None) -> bool:
        return best is None or right.cost < best.cost

    def is_little(self, right: Point, best: Point | None) -> bool:
        return best is not None and right.cost > (1 - WORTH) * best.cost

    def out_of_reach(self, points: Sequence[Point], network: Network) -> str:
        highest = max(points, key=lambda point: (point.top1, -point.cost))
        reachable = math.floor(highest.top1 * 100) / 100  # rounded up, it would be out of reach
        return (
            f"no threshold measured reaches {self.said} on val: the highest top-1 is"
            f" {reachable:.2f}, at {highest.macs / 1e9:.4g} GMACs of"
            f" {network.macs_dense / 1e9:.4g}; ask for at most that (--target-acc), or train on"
            " with gatecli finetune"
        )


class Budget(Goal):
    """The highest accuracy at a cost of at most `limit`, in the price's unit."""

    def __init__(self, price: Price, limit: float) -> None:
        super().__init__(price)
        self.limit = limit * price.scale

    def check(self, network: Network) -> None:
        """Make sure that it is not below what is left with nothing running.

        Raises:
            SettingError: It is.
        """
        least = self.price.least(network)
        if self.limit < least:
            raise SettingError(
                f"{self._said()} is out of reach: with everything off that gates decide about,"
                f" {self.price.said(least)} are left"
            )

    def _said(self) -> str:
        return f"{self.price.option} {self.limit / self.price.scale:g}"

    def _affords(self, point: Point) -> bool:
        return point.cost <= self.limit * (1 + ROUNDING)

    def choose(self, points: Iterable[Point]) -> Point | None:
        affordable = [point for point in points if self._affords(point)]
        return min(affordable, key=lambda point: (-point.top1, point.cost), default=None)

    def is_hopeful(self, left: Point, right: Point, best: Point | None) -> bool:
        highest = max(left.top1, right.top1)
        return self._affords(right) and (best is None or highest > best.top1)

    def out_of_reach(self, points: Sequence[Point], network: Network) -> str:
        cheapest = min(points, key=lambda point: (point.cost, -point.top1))
        return (
            f"no threshold measured keeps {self._said()} on val: the cheapest takes"
            f" {self.price.said(cheapest.cost)}, at top-1 {cheapest.top1:.2f}; ask for that, or"
            " train on with gatecli finetune"
        )
