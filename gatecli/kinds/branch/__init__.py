"""Branches of multi-branch modules (ResNeXt): which of them feed which of the next module."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from gatecli.errors import SettingError
from gatecli.kinds.base import CONNECTIONS, Cut, Keeping, Kind
from gatecli.kinds.branch.cost import has_fixed, recounted
from gatecli.kinds.branch.find import Boundary, branch_sites, find_boundaries
from gatecli.kinds.branch.lower import lower_branches
from gatecli.kinds.branch.surgery import (
    fix,
    insert_connections,
    insert_mask_on_branches,
    with_streams,
)
from gatecli.lowering.context import Lowering
from gatecli.traced.site import Saving, Site, SiteDecision
from gatecli.traced.traced import Traced

__all__ = ["BRANCH", "BranchKind", "boundaries_of"]


class BranchKind(Kind):
    """The branches of a module. `net.details` holds the boundaries, by site."""

    name: ClassVar[str] = "branch"
    offers: ClassVar[frozenset[str]] = frozenset({CONNECTIONS})
    one_by_one: ClassVar[bool] = True
    linked: ClassVar[bool] = True

    def find(self, net: Traced) -> list[Site]:
        found = find_boundaries(net, list(net.sites.values()))
        net.details[self.name] = found
        return list(branch_sites(net, self.name, found).values())

    def reader_of(self, net: Traced, site: str) -> str | None:
        return boundaries_of(net)[site].reader_site

    def number(self, net: Traced, site: str) -> int:
        return list(boundaries_of(net)).index(site)

    def refresh_all(self, net: Traced) -> None:
        """The branches without gates that are sites are those of modules that are whole."""
        boundaries = boundaries_of(net)
        free = {name: each for name, each in boundaries.items() if name not in net.gated_by}
        found = branch_sites(net, self.name, free)
        for name in free.keys() - found.keys():
            net.sites.pop(name, None)
        net.sites |= found

    def refresh(self, net: Traced, site: Site) -> Site | None:
        if not net.has(site.value, site.entry):
            return None
        return _with_branch(net, site)

    def savings(self, net: Traced, site: Site) -> tuple[Saving, ...]:
        return tuple(Saving(node=node) for node in site.branch)

    def recount(self, net: Traced) -> None:
        net.costs = recounted(net.root, net.graph, net.costs)

    def costs_need_values(self, net: Traced) -> bool:
        return has_fixed(net.root, net.graph)

    def insert(self, net: Traced, site: str, gate: nn.Module, sees: str = "") -> None:
        boundary, connections = boundaries_of(net)[site], _connections(gate)
        _check_free(net, site, boundary, streams=connections.streams)
        if connections.streams:
            _drop_sites_with_streams(net, boundary)
            insert_connections(net, site, boundary, gate)
        else:
            insert_mask_on_branches(net, site, boundary, gate)

    def ungate(self, net: Traced, site: str) -> None:
        self.keep(net, site, SiteDecision(keep=tuple(range(net.sites[site].units))), Keeping())

    def keep(self, net: Traced, site: str, decision: SiteDecision, how: Keeping) -> Cut:
        gate = _connections(net.root.get_submodule(f"gates.{site}"))
        readers = how.decisions.get(gate.reader_site or "")
        fixed = gate.fixed(None if readers is None else readers.keep, decision.keep)
        fix(net, site, boundaries_of(net)[site], decision.keep, fixed)
        net.sites.pop(site)
        net.gated_by.pop(site)
        return Cut()

    def remove(self, net: Traced, site: Site) -> dict[str, str]:
        raise NotImplementedError("a module of which nobody reads any branch is not made")

    def prepare(self, low: Lowering) -> None:
        lower_branches(low.root, low.graph, low.replace)


def boundaries_of(net: Traced) -> dict[str, Boundary]:
    """All boundaries that the network had, by site."""
    found: dict[str, Boundary] = net.details.get("branch", {})
    return found


def _connections(gate: Any) -> Any:
    return gate


def _with_branch(net: Traced, site: Site) -> Site:
    branch = tuple(node for node in site.branch if node in net.costs)
    return replace(site, branch=branch, macs=net.macs(branch))


def _check_free(net: Traced, site: str, boundary: Boundary, *, streams: bool) -> None:
    """Raises SettingError where a gate or an exit stands in the way."""
    own = (boundary.module.block, boundary.reader.block, site)
    taken = [name for name in net.gated_by if name in own]
    taken += _in_the_way(net, boundary) if streams else []
    if not taken:
        return
    name, by = taken[0], net.gated_by[taken[0]]
    if net.sites[name].branch:
        raise SettingError(
            f"expected `{name}` to carry no gate, but {by} gates it: prune first, or leave it out"
            " with --exclude"
        )
    raise SettingError(
        f"expected `{name}` to have no exit, but {by} has put one there: prune first, or leave it"
        f" out with --exclude '{site}'"
    )


def _in_the_way(net: Traced, boundary: Boundary) -> Iterable[str]:
    """The gated sites, and the exits, that cannot stand where there are streams."""
    layers, values = with_streams(boundary)
    for name in net.gated_by:
        place = net.sites[name]
        if layers & set(place.branch) or (not place.branch and place.entry in values):
            yield name


def _drop_sites_with_streams(net: Traced, boundary: Boundary) -> None:
    """Withdraw what can be gated no more where there are streams.

    A block that has streams cannot be skipped as a whole, nor can its convolutions' channels be
    told apart, nor does an exit read them.
    """
    layers, values = with_streams(boundary)
    own = (boundary.module.block, boundary.reader.block)
    others = boundaries_of(net)
    for name, site in list(net.sites.items()):
        inside = not site.add and layers & set(site.branch) and name not in others
        if inside or name in own or (not site.branch and site.entry in values):
            del net.sites[name]


BRANCH = BranchKind()
