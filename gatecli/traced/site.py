"""Sites: the places of a network that can be gated, and what is decided about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

__all__ = ["Saving", "Site", "SiteDecision", "renamed"]


@dataclass(frozen=True, kw_only=True)
class Saving:
    """What a decision saves of one node, as the site's kind says.

    Attributes:
        node: The node's name.
        share: How much of the node's MACs; less than 1 where a part of it always runs.
        per_unit: It saves by the share of units that are closed; else only where no unit runs.
        when_taken: It saves where the decision is 1, as an exit does, rather than 0.
    """

    node: str
    share: float = 1.0
    per_unit: bool = False
    when_taken: bool = False


@dataclass(frozen=True, kw_only=True)
class Site:
    """A named place that can be gated. Nodes are named, not held: a site outlives its graph.

    What else a kind knows of its sites stands in the last fields; see the kind.

    Attributes:
        name: The path of the modules that it is made of, as `layer1.0`.
        kind: The name of its kind, see gatecli.kinds.
        units: How many things can be decided there.
        macs: MACs of one image that all its decisions together can save of its own nodes; `savings`
            has those of others too.
        entry: The value that it starts from, which a gate may look at.
        value: The last value that it computes.
        branch: The nodes whose work decisions save.
        channels: How many channels the entry has.
        positions: The entry's dimensions that are positions, over which a gate may average: (2, 3)
            of (N, C, H, W), (1,) of tokens (N, L, C).
        savings: What decisions save, node by node.
        shortcut: The value that `value` is added to.
        add: The addition.
        tail: The nodes that work for each unit apart; the others work for all units together.
        always: The share of the branch's MACs that no decision saves.
        role: Where it stands, in words of its kind.
        places: The channels of the value that the units are, equally many each, where the others
            always run.
    """

    name: str
    kind: str
    units: int
    macs: int
    entry: str
    value: str
    branch: tuple[str, ...]
    channels: int
    positions: tuple[int, ...]
    savings: tuple[Saving, ...] = ()
    shortcut: str = ""
    add: str = ""
    tail: tuple[str, ...] = ()
    always: float = 0.0
    role: str = ""
    places: tuple[int, ...] = ()


def renamed(site: Site, names: Mapping[str, str]) -> Site:
    """The site with its entry, value and shortcut called as `names` has them."""
    entry, value, shortcut = (
        names.get(node, node) for node in (site.entry, site.value, site.shortcut)
    )
    return replace(site, entry=entry, value=value, shortcut=shortcut)


@dataclass(frozen=True, kw_only=True)
class SiteDecision:
    """What prune decides about one site.

    Attributes:
        keep: Units that always run, without a gate.
        dynamic: Units that are decided at run time as before.
        drop: Units that go.
        stuck_because: Why nothing can go though nothing runs; the gate stays, closed.
    """

    keep: tuple[int, ...] = ()
    dynamic: tuple[int, ...] = ()
    drop: tuple[int, ...] = ()
    stuck_because: str | None = None

    @property
    def left(self) -> list[int]:
        """The units that stay, those without a gate first."""
        return [*self.keep, *self.dynamic]

    @classmethod
    def of(cls, units: int, keep: Sequence[int], dynamic: Sequence[int] = ()) -> SiteDecision:
        """The decision that keeps these of so many units, and drops all others."""
        stays = {*keep, *dynamic}
        drop = [unit for unit in range(units) if unit not in stays]
        return cls(keep=tuple(keep), dynamic=tuple(dynamic), drop=tuple(drop))
