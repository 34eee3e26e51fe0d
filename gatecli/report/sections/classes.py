"""The map of classes and sites: how often each site runs for the images of each class."""

from __future__ import annotations

from gatecli.report.blocks import Missing, Table
from gatecli.report.drawing import draw
from gatecli.report.material import Material
from gatecli.report.sections.base import Found, Part, data_command, each
from gatecli.stages.class_rates import ClassRates
from gatecli.stages.plots import NAMED, class_map
from gatecli.words import printable

__all__ = ["PART"]

COLUMNS = 12  # sites in the table of numbers, those that differ most


def _map(material: Material, key: str) -> Found:
    gated = material.network.gated_by.keys() - material.network.site_exits.keys()
    if not gated:
        return None
    seen = material.seen
    if seen is None or seen.rates is None:
        return Missing(words=material.blind, command=data_command(material))
    rates = seen.rates
    names = [printable(seen.classes[number]) for number in rates.classes]
    varied = rates.most_varied(COLUMNS)
    shown = ", ".join(rates.sites[site] for site in varied) or "none: all classes are alike"
    figure = draw(
        key,
        class_map(rates, names),
        title="How often each site runs for each class",
        description=(
            f"{len(names)} classes by {len(rates.sites)} sites. The sites that differ most between"
            f" classes: {shown}."
        ),
        size=(8, 2.2 + 0.2 * min(len(names), NAMED)),
        foot=f"{seen.counted}, nobody leaving by an exit.",
    )
    return (figure, _table(rates, names, varied)) if varied else (figure,)


def _table(rates: ClassRates, names: list[str], varied: list[int]) -> Table:
    rows = []
    for name, images, units in zip(names, rates.images, rates.rates, strict=True):
        rows.append((name, str(images), *(f"{units[site].item():.2f}" for site in varied)))
    return Table(
        caption="The same in numbers, for the sites that differ most between classes",
        columns=("<class", "images", *(rates.sites[site] for site in varied)),
        rows=rows,
        closed=True,
    )


PART = Part(
    key="classes",
    title="Classes and sites",
    about="Stripes that differ from row to row are sites that serve some classes alone.",
    build=each(_map),
)
