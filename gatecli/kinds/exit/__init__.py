"""Exits: a decision of 1 means that an image leaves there, with the exit's own answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import fx, nn

from gatecli.errors import SettingError
from gatecli.kinds.base import EXIT as PLACE
from gatecli.kinds.base import Kind, Run
from gatecli.kinds.exit.executor import staged
from gatecli.kinds.exit.find import behind, exits_after, find_exits
from gatecli.kinds.exit.surgery import end_at_exit, insert_exit, path_of, remove_exit
from gatecli.traced.site import Saving, Site
from gatecli.traced.traced import Traced

__all__ = ["EXIT", "ExitKind"]


class ExitKind(Kind):
    """Places to leave at. `net.details` holds the names of the sites that stages are made of."""

    name: ClassVar[str] = "exit"
    offers: ClassVar[frozenset[str]] = frozenset({PLACE})
    listed: ClassVar[bool] = True
    leaves: ClassVar[bool] = True

    def find(self, net: Traced) -> list[Site]:
        net.details[self.name] = tuple(net.sites)
        return find_exits(net, self.name, list(net.sites.values()))

    def place(self, net: Traced, after: Sequence[str]) -> None:
        """Let the exits be those after these sites, or modules.

        Raises:
            SettingError: There are no such places, or exits are in use already.
        """
        line = [net.sites[name] for name in net.details[self.name] if name in net.sites]
        found = exits_after(net, self.name, line, after)
        used = [name for name in net.gated_by if net.sites[name].kind == self.name]
        if used:
            raise SettingError(
                f"the network has exits already ({', '.join(used)}): their places cannot change"
            )
        others = {name: site for name, site in net.sites.items() if site.kind != self.name}
        net.sites = others | {site.name: site for site in found}

    def refresh(self, net: Traced, site: Site) -> Site | None:
        node = net.find(site.entry)
        if node is None:
            return None
        channels = net.channels(node) if site.positions == (2, 3) else site.channels
        return replace(site, macs=net.macs(behind(net.graph, node)), channels=channels)

    def savings(self, net: Traced, site: Site) -> tuple[Saving, ...]:
        nodes = behind(net.graph, net.node(site.entry))
        return tuple(Saving(node=node, when_taken=True) for node in nodes)

    def insert(self, net: Traced, site: str, gate: nn.Module, sees: str = "") -> None:
        insert_exit(net, net.sites[site], gate)

    def ungate(self, net: Traced, site: str) -> None:
        """Everybody leaves here: what lies behind goes."""
        exit_: Any = net.root.get_submodule(path_of(site))
        end_at_exit(net, site, exit_.head())
        left = {node.name for node in net.graph.nodes}
        kept = {}
        for name, other in net.sites.items():
            nodes = {other.value, other.add, other.entry} - {""}
            if nodes <= left and name != site:
                kept[name] = other
        net.sites = kept
        net.gated_by = {name: by for name, by in net.gated_by.items() if name in kept}

    def remove(self, net: Traced, site: Site) -> dict[str, str]:
        """Nobody leaves here."""
        remove_exit(net, site.name)
        return {}

    def finish(self, lowered: fx.Graph) -> Run | None:
        return staged(lowered)


EXIT = ExitKind()
