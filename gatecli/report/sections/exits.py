"""Exits: who leaves where, how often the answers are right, and some of the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gatecli.report.blocks import Block, Gallery, Table, Text
from gatecli.report.drawing import COLORS, Picture, draw
from gatecli.report.encoding import picture_of
from gatecli.report.looking import END, Leaving, Seen
from gatecli.report.material import Material
from gatecli.report.sections.base import Found, Part, data_command, each
from gatecli.words import percent, printable

__all__ = ["PART"]


def _exits(material: Material, key: str) -> Found:
    exits = material.network.site_exits
    seen = material.seen
    if not exits:
        return None
    if seen is None:
        words = f"{material.blind} With images: {data_command(material)}"
        return _recorded(material), Text(words=words)
    figure = draw(
        key,
        _bars(seen.leaving, seen.images),
        title=f"Who leaves where, {seen.images} images of {seen.split}",
        description="; ".join(_told(place, seen.images) for place in seen.leaving),
        size=(8, 1.2 + 0.4 * len(seen.leaving)),
        foot=f"Looked at for this report: {seen.counted}.",
    )
    return figure, _table(material, seen), *_galleries(seen)


def _recorded(material: Material) -> Table:
    rows = []
    for site in material.network.site_exits:
        share = 100 * material.subject.rates[site][0]
        rows.append((site, percent(share), _threshold(material, site)))
    return Table(
        caption="Who leaves where, as recorded on val",
        columns=("<exit", "percent of images", "leaves from a score of"),
        rows=rows,
    )


def _table(material: Material, seen: Seen) -> Table:
    rows = []
    for place in seen.leaving:
        right = percent(100 * place.right / place.images) if place.images else ""
        threshold = "" if place.place == END else _threshold(material, place.place)
        share = percent(100 * place.images / seen.images)
        rows.append((place.place, str(place.images), share, right, threshold))
    return Table(
        caption="The same in numbers",
        columns=("<exit", "images", "percent of images", "right, percent", "from a score of"),
        rows=rows,
    )


def _threshold(material: Material, site: str) -> str:
    """From which score on images leave, as the network has it."""
    threshold = float(material.network.site_exits[site].threshold)
    if threshold == float("inf"):
        return "never"
    return "any" if threshold < -1e38 else f"{threshold:.4g}"


def _told(place: Leaving, images: int) -> str:
    return f"{place.place}: {percent(100 * place.images / images)} percent"


def _bars(leaving: Sequence[Leaving], images: int) -> Picture:
    def picture(axes: Any) -> None:
        for row, place in enumerate(leaving):
            right = 100 * place.right / images
            wrong = 100 * (place.images - place.right) / images
            axes.barh(row, right, color=COLORS["on"], label="right" if row == 0 else None)
            axes.barh(
                row, wrong, left=right, color=COLORS["image"], label="wrong" if row == 0 else None
            )
            axes.text(right + wrong + 1, row, percent(right + wrong), va="center", fontsize=9)
        axes.set_yticks(range(len(leaving)), [printable(place.place) for place in leaving])
        axes.invert_yaxis()
        axes.set_xlim(0, 110)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.set_xlabel("percent of the images")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=9)

    return picture


def _galleries(seen: Seen) -> list[Block]:
    galleries: list[Block] = []
    for place in seen.leaving:
        if place.examples:
            pictures = [picture_of(example, seen.classes) for example in place.examples]
            caption = f"Some that leave at {place.place}"
            galleries.append(Gallery(caption=caption, pictures=pictures))
    return galleries


PART = Part(
    key="exits",
    title="Exits",
    about="Who leaves where, and how many of them with the right answer.",
    build=each(_exits),
)
