"""The network drawn as its sites: what went, what stays, what the image decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from gatecli.report.blocks import Table
from gatecli.report.drawing import COLORS, Picture, draw
from gatecli.report.fates import ALIKE, ALWAYS, EXIT, GONE, IMAGE, Fate, fates
from gatecli.report.material import Material
from gatecli.report.sections.base import Found, Part, each
from gatecli.words import gmacs, printable

__all__ = ["PART"]

COLOR = {
    ALWAYS: COLORS["on"],
    ALIKE: COLORS["second"],
    IMAGE: COLORS["image"],
    EXIT: COLORS["image"],
    GONE: COLORS["gone"],
}
ROW = 0.24  # inches


def _drawn(material: Material, key: str) -> Found:
    found = fates(material.subject)
    if not found:
        return None
    counts = Counter(fate.state for fate in found)
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    figure = draw(
        key,
        _bars(found),
        title=f"Sites of {material.name} and how often each runs",
        description=f"{len(found)} sites from the network's start to its end: {told}.",
        size=(8, 1.1 + ROW * len(found)),
        foot=(
            f"In order: {told}. A bar's length is the share of images for which a site's units run;"
            " an exit's is the share of images that leave there."
        ),
    )
    return figure, _table(found)


def _table(found: Sequence[Fate]) -> Table:
    rows = []
    for fate in found:
        rows.append(
            (
                fate.name,
                fate.kind,
                fate.state,
                f"{fate.rate:.3f}",
                f"{fate.units} of {fate.before}" if fate.before else "0",
                gmacs(fate.macs) if fate.macs else "",
                fate.method or "",
            )
        )
    return Table(
        caption="The same in numbers",
        columns=("<site", "<kind", "<state", "rate", "units left", "GMACs decided", "<gated by"),
        rows=rows,
        closed=True,
    )


def _bars(found: Sequence[Fate]) -> Picture:
    def picture(axes: Any) -> None:
        for place, fate in enumerate(found):
            _draw_bar(axes, place, fate)
        names = [printable(fate.name) for fate in found]
        axes.set_yticks(range(len(found)), names, fontsize=8)
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_xlim(0, 1.25)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.set_xlabel("rate")
        for state, color in COLOR.items():
            if state not in (EXIT, *_absent(found)):
                axes.barh([0], [0], color=color, label=state)
        axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=4, fontsize=8)

    return picture


def _absent(found: Sequence[Fate]) -> set[str]:
    """The states that no site is in."""
    return set(COLOR) - {fate.state for fate in found}


def _draw_bar(axes: Any, place: int, fate: Fate) -> None:
    color = COLOR[fate.state]
    if fate.state == GONE:
        axes.barh(place, 1, height=0.7, facecolor="none", edgecolor=color, hatch="////")
    else:
        axes.barh(place, 1, height=0.7, color=color, alpha=0.15)
        axes.barh(place, fate.rate, height=0.7, color=color)
    axes.text(1.02, place, _label(fate), va="center", fontsize=8)


def _label(fate: Fate) -> str:
    if fate.state == GONE:
        return "gone"
    if fate.state == EXIT:
        return f"{fate.rate:.2f} leave"
    left = f", {fate.units} of {fate.before} left" if fate.units < fate.before else ""
    return f"{fate.rate:.2f}{left}"


PART = Part(
    key="sites",
    title="The network",
    about="What went, what stays, and what is decided by the image.",
    build=each(_drawn),
)
