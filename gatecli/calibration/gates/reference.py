"""What a drop in accuracy is counted from: the best val top-1 that is known.

All gates open are not always that. Where gates were trained with many of them closed, weights and
BatchNorm statistics are those of the gated network, and opening all may cost most of its accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Reference", "best_known", "open_notes"]

NEAR = 1.0  # points of val top-1 that all gates open may be below the gates as they were, unsaid


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A val top-1 that a drop is counted from.

    Attributes:
        top1: Percent.
        of: What has it: the source, before it was gated; all gates open; or the gates as they were.
    """

    top1: float
    of: str


def best_known(source: float | None, opened: float, present: float) -> Reference:
    """The highest of what is known, in percent; of equals the first.

    Args:
        source: The recorded baseline; None where there is none on the same images.
        opened: With all gates open.
        present: With the thresholds that the gates had.
    """
    known = [] if source is None else [Reference(top1=source, of="the source")]
    known.append(Reference(top1=opened, of="all gates open"))
    known.append(Reference(top1=present, of="the gates as they were"))
    return max(known, key=lambda reference: reference.top1)


def open_notes(opened: float, present: float) -> list[str]:
    """What to say where all gates open are much worse than the gates as they were."""
    if opened >= present - NEAR:
        return []
    return [
        f"all gates open reach {opened:.2f} % on val, the gates as they were {present:.2f} %: the"
        " network was trained with gates closed, so opening more of them than it knows may cost"
        " accuracy"
    ]
