"""What became of each site: gone, smaller, always running, or decided by the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gatecli.kinds import registry
from gatecli.network import Network
from gatecli.stages.profile import SiteRow, site_rows
from gatecli.stages.subject import Subject
from gatecli.traced.recipe import Recipe

__all__ = ["ALIKE", "ALWAYS", "EXIT", "GONE", "IMAGE", "Fate", "fates"]

GONE = "gone"
ALWAYS = "always runs"
ALIKE = "alike for all images"
IMAGE = "by the image"
EXIT = "exit"


@dataclass(frozen=True, kw_only=True)
class Fate:
    """A site and what became of it.

    Attributes:
        name: The site.
        kind: What is, or was, decided there; empty where the site is gone.
        state: One of the words above.
        method: What gates it, or None.
        rate: How often it runs; of an exit, how many leave there.
        units: How many there are.
        before: How many there were before any was removed; `units` where that is not known.
        macs: That its decisions are about.
    """

    name: str
    kind: str
    state: str
    method: str | None
    rate: float
    units: int
    before: int
    macs: int


def fates(subject: Subject) -> list[Fate]:
    """Every site that a network has, or had when a method was attached to it, in order.

    Places where an exit could stand are none: nobody leaves there.
    """
    network = subject.network
    if network is None:
        return []
    rows = {row.name: row for row in site_rows(subject) if _stands(network, row.name)}
    units = _units_before(network.recipe)
    kept = _kept(network.recipe)
    gone = []
    for name in _removed(network):
        gone.append(_left(name, units.get(name, 0), kept.get(name, 0)))
    present = [_present(network, row, units) for row in rows.values()]
    return _in_order([*present, *gone], [list(rows), *_attached(network.recipe)])


def _stands(network: Network, name: str) -> bool:
    return name in network.gated_by or not registry.of(network.sites[name]).leaves


def _present(network: Network, row: SiteRow, units: dict[str, int]) -> Fate:
    return Fate(
        name=row.name,
        kind=row.kind,
        state=_state(network, row.name),
        method=row.method,
        rate=row.rate,
        units=row.units,
        before=max(units.get(row.name, 0), row.units),
        macs=row.macs,
    )


def _left(name: str, units: int, kept: int) -> Fate:
    """A site that is no place to gate any more: it went, or units of it stay for good."""
    return Fate(
        name=name,
        kind="",
        state=ALWAYS if kept else GONE,
        method=None,
        rate=float(kept > 0),
        units=kept,
        before=max(units, kept),
        macs=0,
    )


def _state(network: Network, name: str) -> str:
    if name not in network.gated_by:
        return ALWAYS
    if registry.of(network.sites[name]).leaves:
        return EXIT
    return IMAGE if network.site_gates[name].data_dependent else ALIKE


def _attached(recipe: Recipe) -> list[list[str]]:
    """The sites that each method was attached to, in the network's order."""
    return [list(step.settings["sites"]) for step in recipe.steps if step.op == "attach"]


def _removed(network: Network) -> list[str]:
    """The sites that were gated and are no more."""
    found: dict[str, None] = {}
    for names in _attached(network.recipe):
        found.update(dict.fromkeys(name for name in names if name not in network.sites))
    return list(found)


def _kept(recipe: Recipe) -> dict[str, int]:
    """How many units the last prune that decided a site has kept of it."""
    kept: dict[str, int] = {}
    for step in recipe.steps:
        for name, units in step.settings.get("plan", {}).items():
            kept[name] = len(units)
    return kept


def _units_before(recipe: Recipe) -> dict[str, int]:
    """The most units that any step measured rates of, by site."""
    most: dict[str, int] = {}
    for step in recipe.steps:
        for name, units in step.results.get("unit_rates", {}).items():
            most[name] = max(most.get(name, 0), len(units))
    return most


def _in_order(found: Sequence[Fate], orders: Sequence[Sequence[str]]) -> list[Fate]:
    """Sites in one order that agrees with each of several, where these agree."""
    line: list[str] = []
    for order in orders:
        place = 0
        for name in order:
            if name in line:
                place = line.index(name) + 1
                continue
            line.insert(place, name)
            place += 1
    return sorted(found, key=lambda fate: line.index(fate.name))
