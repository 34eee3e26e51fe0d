"""Which branches of each module the next one reads."""

from __future__ import annotations

from gatecli.report.blocks import Table
from gatecli.report.drawing import draw
from gatecli.report.material import Material
from gatecli.report.sections.base import Found, Part, each
from gatecli.stages.connections import connections
from gatecli.stages.plots import connectivity

__all__ = ["PART"]


def _connections(material: Material, key: str) -> Found:
    wired = connections(material.network)
    if not wired:
        return None
    rows = []
    for site, read in wired.items():
        used = int(read.any(0).sum())
        rows.append((site, f"{used} of {read.shape[1]}", f"{int(read.sum())} of {read.numel()}"))
    kept = sum(int(read.sum()) for read in wired.values())
    possible = sum(read.numel() for read in wired.values())
    tallest = max(max(read.shape) for read in wired.values())
    figure = draw(
        key,
        connectivity(list(wired.items())),
        title="Connections between the branches of modules",
        description=(
            f"{len(wired)} modules, the first on the left; {kept} of {possible} connections are"
            " there. A hollow branch is read by nobody."
        ),
        size=(max(4.0, 1.0 + 0.7 * len(wired)), 2 + 0.18 * tallest),
        foot=f"{kept} of {possible} connections are there. A hollow branch is read by nobody.",
    )
    table = Table(
        caption="The same in numbers",
        columns=("<module", "branches in use", "connections"),
        rows=rows,
        closed=True,
    )
    return figure, table


PART = Part(
    key="connections",
    title="Connections",
    about="Which branches of a module the next one reads.",
    build=each(_connections),
)
