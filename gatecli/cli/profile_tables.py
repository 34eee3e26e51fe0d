"""The tables of gatecli profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gatecli.cli.render import MACS_FOOT, gmacs, megabytes, millions, table
from gatecli.cli.session import Session

if TYPE_CHECKING:
    from gatecli.stages.profile import Profile, Row, SiteRow

__all__ = ["print_profile"]


def print_profile(session: Session, result: Profile, *, with_sites: bool) -> None:
    """Print what was profiled: sizes, latency, and with `with_sites` the gated sites."""
    _print_sizes(session, result)
    for runtime in dict.fromkeys(row.runtime for row in result.rows):
        _print_latency(session, result, runtime)
    gated = [site for site in result.sites if site.method]
    if any(site.theoretical for site in gated):
        session.say(
            "note: expected GMACs are theoretical where gates decide for single activations, which"
            " no dense kernel can leave out: they save no time"
        )
    if with_sites and gated:
        _print_sites(session, result, gated)


def _print_sizes(session: Session, result: Profile) -> None:
    columns = ("<checkpoint", "parameters", "file", "GMACs all on", "GMACs expected")
    rows = []
    for row in _of(result, result.rows[0].runtime):
        size = (millions(row.params), megabytes(row.file_bytes))
        rows.append((row.name, *size, gmacs(row.macs_dense), gmacs(row.macs_expected)))
    table(session, "size", columns, rows, MACS_FOOT)


def _of(result: Profile, runtime: str) -> list[Row]:
    return [row for row in result.rows if row.runtime == runtime]


def _print_latency(session: Session, result: Profile, runtime: str) -> None:
    columns = (
        "<checkpoint",
        "batch",
        "median ms",
        "p95",
        "min",
        "speed-up",
        "ideal",
        "realised",
    )
    rows = []
    shown = _of(result, runtime)
    for row in shown:
        for batch, ms in row.latency_ms.items():
            speedup = row.speedups[batch]
            times = (f"{ms.median:.2f}", f"{ms.p95:.2f}", f"{ms.min:.2f}")
            ideal = (f"{row.ideal_speedup:.2f}x", f"{speedup / row.ideal_speedup:.2f}")
            mark = "*" if batch in row.masked else ""
            rows.append((row.name, f"{batch}{mark}", *times, f"{speedup:.2f}x", *ideal))
    measured = result.decisions == "measured"
    how = "decided by real images" if measured else "decide by recorded rates"
    foot = (
        f"{result.repeats} interleaved calls, {result.threads} threads; gates {how}; ideal: what"
        " expected MACs promise; realised = speed-up / ideal"
    )
    if any(row.masked for row in shown):
        foot += "; *: everything computed, as a file for batches cannot skip"
    title = f"\nlatency in {runtime}, {shown[0].precision}, on {result.machine}"
    table(session, title, columns, rows, foot)


def _print_sites(session: Session, result: Profile, gated: Sequence[SiteRow]) -> None:
    columns = ("<site", "<kind", "units", "GMACs", "<gated by", "rate", "its own")
    rows = []
    for site in gated:
        rate = f"{site.rate:.3f}{_remark(site)}"
        own = gmacs(site.gate_macs)
        rows.append((site.name, site.kind, site.units, gmacs(site.macs), site.method, rate, own))
    foot = (
        "GMACs: what the gate decides about (an exit: what leaving there saves); its own: what"
        f" deciding costs. {len(result.sites) - len(gated)} sites without a gate: gatecli inspect"
    )
    table(session, f"\nsites of {result.rows[-1].name}", columns, rows, foot)


def _remark(site: SiteRow) -> str:
    """What stands behind a site's rate."""
    if site.theoretical:
        return " (theoretical)"
    return "" if site.macs else " (saves nothing)"
