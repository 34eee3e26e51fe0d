"""What gatecli calibrate shall reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from gatecli.cli.render import percent

if TYPE_CHECKING:
    from gatecli.calibration import Reference

__all__ = ["Goal", "said_asked"]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The options that say what to reach, one goal of five, and by which measure."""

    target_acc: Annotated[
        Optional[float], typer.Option(help="Top-1 accuracy to reach on val, in percent.")
    ] = None
    max_drop: Annotated[
        Optional[float],
        typer.Option(
            help=(
                "The same, in points below the best that is known: the source, all gates open, or"
                " the gates as they were (exits: the source, or nobody leaving early)."
            )
        ),
    ] = None
    max_gmacs: Annotated[
        Optional[float],
        typer.Option(help="The highest accuracy for at most so many GMACs an image."),
    ] = None
    max_ms: Annotated[
        Optional[float],
        typer.Option(
            help=(
                "The highest accuracy for at most so many milliseconds an image (gates: by the"
                " table of gatecli price; exits: with --cost latency)."
            )
        ),
    ] = None
    thresholds: Annotated[
        Optional[str],
        typer.Option(
            metavar="EXIT=NUMBER,...",
            help=(
                "Exits: these thresholds, as exit1=0,exit2=1.5; inf: nobody leaves. Exits not named"
                " keep theirs."
            ),
        ),
    ] = None
    cost: Annotated[
        str,
        typer.Option(
            help=(
                "What thresholds shall save: macs, or latency of single images as measured on this"
                " machine."
            )
        ),
    ] = "macs"
    confidence: Annotated[
        Optional[float],
        typer.Option(
            help="Exits: the accuracy shall hold on unseen data with this probability, as 0.95."
        ),
    ] = None
    reuse: Annotated[
        bool,
        typer.Option(
            "--reuse",
            help=(
                "Exits: move along the frontier that an earlier calibrate has recorded; needs no"
                " data."
            ),
        ),
    ] = False

    @property
    def for_exits(self) -> bool:
        """Whether anything is asked for that only exits can do."""
        given = (self.confidence, self.thresholds)
        return any(each is not None for each in given) or self.reuse

    @property
    def in_ms(self) -> bool:
        """Whether gates shall be chosen by milliseconds."""
        return self.max_ms is not None or self.cost == "latency"


def said_asked(target_top1: float | None, counted_from: Reference | None) -> str:
    """The top-1 asked for, and what it is counted from; empty for a budget."""
    if target_top1 is None:
        return ""
    asked = f"{percent(target_top1)} asked"
    if counted_from is None:
        return asked
    return f"{asked}, counted from {percent(counted_from.top1)} of {counted_from.of}"
