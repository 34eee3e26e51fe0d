"""Where a training run is, in plain numbers that a state file can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Position"]


@dataclass
class Position:
    """Where a run is.

    Attributes:
        baseline: Val top-1 before the first step, all gates open; None where the recipe knows it.
        step: Steps done.
        closed: Epochs closed, that is, validated.
        sums: What the open epoch's batches add up to, by name; `batches` is their number.
        history: The closed epochs' figures.
        best: Index of the best epoch in `history`.
        targets: The gates' targets in the open epoch, by site.
        goal: What the goal has learnt.
        processes: How many trained when this was saved.
    """

    baseline: float | None = None
    step: int = 0
    closed: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: int | None = None
    targets: dict[str, float] = field(default_factory=dict)
    goal: dict[str, float] = field(default_factory=dict)
    processes: int = 1

    def add(self, figures: Mapping[str, float]) -> None:
        """Add a batch's figures to the open epoch's sums."""
        for name, value in {"batches": 1.0, **figures}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """The means over the open epoch's batches."""
        return {name: total / self.sums["batches"] for name, total in self.sums.items()}

    def close(self, row: dict[str, Any]) -> None:
        """Close the open epoch with these figures."""
        self.history.append(row)
        self.closed += 1
        self.sums = {}

    def best_row(self) -> dict[str, Any] | None:
        """The best epoch's figures."""
        return None if self.best is None else self.history[self.best]

    def check(self, epochs: int, steps_per_epoch: int) -> None:
        """Check that this is a place in a training of so many epochs and steps.

        Raises:
            TypeError: What should be a number is none.
            ValueError: The place lies outside the training, or contradicts itself.
        """
        first = self.closed * steps_per_epoch
        numbers = [self.baseline or 0.0, self.step, self.closed, self.processes]
        for by_name in (self.sums, self.targets, self.goal):
            numbers.extend(by_name.values())
        if not all(isinstance(number, int | float) for number in numbers):
            raise TypeError("position without numbers")
        inside = 0 <= self.closed <= epochs and first <= self.step <= first + steps_per_epoch
        if not inside or len(self.history) != self.closed:
            raise ValueError(f"step {self.step}, {self.closed} epochs closed")
        if self.best is not None and self.best not in range(self.closed):
            raise ValueError(f"best epoch {self.best}")
