"""What gates do for single images: units on, MACs, and how often each unit is on."""

from __future__ import annotations

from gatecli.report.blocks import Block, Missing, Table
from gatecli.report.drawing import draw
from gatecli.report.material import Material
from gatecli.report.sections.base import Found, Part, data_command, each
from gatecli.stages.analyse import Use
from gatecli.stages.plots import histogram, per_image
from gatecli.words import gmacs

__all__ = ["PART"]


def _gates(material: Material, key: str) -> Found:
    gates = material.network.site_gates
    by_image = [
        site
        for site, gate in gates.items()
        if gate.data_dependent and site not in material.network.site_exits
    ]
    if not by_image:
        return None
    seen = material.seen
    if seen is None or seen.use is None:
        return Missing(words=material.blind, command=data_command(material))
    use = seen.use
    units = sum(site.units for site in use.sites)
    least, mean, most = use.per_image
    foot = f"{seen.counted}, nobody leaving by an exit."
    blocks: list[Block] = [
        draw(
            f"{key}-on",
            per_image(use),
            title="Units on for an image",
            description=f"Of {units} units {least:g} to {most:g} are on, {mean:.1f} on average.",
            size=(8, 3),
            foot=f"Of {units} units {least:g} to {most:g}, {mean:.1f} on average. {foot}",
        )
    ]
    dependent = sum(use.histogram)
    if dependent:
        told = f"{dependent} of {units} units are on for some images and off for others."
        blocks.append(
            draw(
                f"{key}-share",
                histogram(use),
                title="How often the units that depend on the image are on",
                description=told,
                size=(8, 3),
                foot=told,
            )
        )
    blocks.append(_spread(use))
    return blocks


def _spread(use: Use) -> Table:
    names = ("min", "p05", "p25", "median", "p75", "p95", "max", "mean", "std")
    return Table(
        caption="GMACs of single images, nobody leaving by an exit",
        columns=("<", *names),
        rows=[("GMACs", *(gmacs(use.macs[name]) for name in names))],
    )


PART = Part(
    key="gates",
    title="Gates on for an image",
    about="How much the images differ in what runs for them.",
    build=each(_gates),
)
