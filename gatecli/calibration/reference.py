"""What a drop in accuracy is counted from: the best val top-1 that is known.

All gates open are not always that. Where gates were trained with many of them closed, weights and
BatchNorm statistics are those of the gated network, and opening all may cost most of its accuracy.
Nor is nobody leaving, where exits stand on a network that was pruned.
"""

from __future__ import annotations

from dataclasses import dataclass

from gatecli.data import DataSet
from gatecli.traced.recipe import Recipe

__all__ = ["Reference", "best_known", "open_notes"]

NEAR = 1.0  # points of val top-1 that all gates open may be below the gates as they were, unsaid


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A val top-1 that a drop is counted from.

    Attributes:
        top1: Percent.
        of: What has it: the source, before it was gated; all gates open, or the gates as they were;
            nobody leaving early.
    """

    top1: float
    of: str

    def less(self, drop: float) -> float:
        """What is left of it, `drop` points below, in percent."""
        return max(0.0, self.top1 - drop)

    def said(self, drop: float) -> str:
        """That, and how it was asked for."""
        counted = f"--max-drop {drop:g} below {self.top1:.2f}, of {self.of}"
        return f"{self.less(drop):.2f} ({counted})"


def best_known(recipe: Recipe, data: DataSet, measured: list[Reference]) -> Reference:
    """The highest of what is known; of equals the first.

    Args:
        recipe: Its baseline is the source's, where it is of the same images.
        data: On whose val split it is counted.
        measured: What was measured there now.
    """
    source = recipe.known_top1(data.spec)
    known = [] if source is None else [Reference(top1=source, of="the source")]
    return max([*known, *measured], key=lambda reference: reference.top1)


def open_notes(opened: float, present: float) -> list[str]:
    """What to say where all gates open are much worse than the gates as they were."""
    if opened >= present - NEAR:
        return []
    return [
        f"all gates open reach {opened:.2f} % on val, the gates as they were {present:.2f} %: the"
        " network was trained with gates closed, so opening more of them than it knows may cost"
        " accuracy"
    ]
