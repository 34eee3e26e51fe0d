"""Milliseconds by runtime: measured for this report, and the table that the checkpoint keeps."""

from __future__ import annotations

from gatecli.report.blocks import Block, Missing, Table
from gatecli.report.material import Material
from gatecli.report.sections.base import Found, Part, each
from gatecli.stages.profile import Profile
from gatecli.traced.latency import LatencyTable, recorded_table

__all__ = ["PART"]


def _times(material: Material, key: str) -> Found:
    blocks: list[Block] = []
    if material.times is not None:
        blocks.append(_measured(material.times))
    table = recorded_table(material.network.recipe)
    if table is not None:
        blocks.append(_kept(table))
    return blocks or Missing(
        words="No milliseconds are known.",
        command=f"gatecli report {material.place} --runtime native",
    )


def _measured(times: Profile) -> Table:
    rows = []
    for row in times.rows:
        one = row.latency_ms["1"]
        rows.append(
            (
                row.name,
                row.runtime,
                f"{one.median:.2f}",
                f"{one.p95:.2f}",
                f"{one.min:.2f}",
                f"{row.speedup:.2f}",
                f"{row.ideal_speedup:.2f}",
            )
        )
    threads = f"{times.threads} thread" + "s" * (times.threads > 1)
    return Table(
        caption="Measured for this report: milliseconds of one image",
        columns=("<network", "<runtime", "median", "p95", "least", "speed-up", "ideal, by MACs"),
        rows=rows,
        foot=(
            f"{times.repeats} interleaved calls of each, fp32, {threads} of {times.machine}; gates"
            " decide as often as recorded. On a busy machine read the ratios."
        ),
    )


def _kept(table: LatencyTable) -> Table:
    rows = []
    for name, site in table.sites.items():
        gone = f"{site.static[0][1]:.3f}" if site.static[0][0] == 0 else "cannot go"
        closed = f"{site.dynamic[0][1]:.3f}" if site.dynamic else ""
        gated = f"{site.dynamic[-1][1]:.3f}" if site.dynamic else ""
        rows.append((name, gone, closed, gated))
    return Table(
        caption="Recorded by gatecli price: what each site changes, in milliseconds",
        columns=("<site", "gone for good", "closed by its gate", "open, with its gate"),
        rows=rows,
        foot=f"All on: {table.all_on_ms:.2f} ms; {table.where}.",
        closed=True,
    )


PART = Part(
    key="times",
    title="Milliseconds",
    about="What one image takes, in each runtime that was timed.",
    build=each(_times),
)
