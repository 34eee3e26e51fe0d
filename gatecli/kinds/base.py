"""What a kind of site is: where a decision stands, what it saves, how it is run and removed.

A kind says WHERE, a method says WHAT decides (gatecli.methods). A kind is one package here; the
frames that attach, prune, lower, count and export ask it through this class, and name none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import fx, nn

from gatecli.lowering.context import Lowering
from gatecli.traced.site import Saving, Site, SiteDecision
from gatecli.traced.traced import Traced

__all__ = ["CHANNELS", "CONNECTIONS", "EXIT", "MASK", "VALUE", "Cut", "Kind", "Run"]

# What a method may need of a site, and a kind may offer.
MASK = "a mask: each unit's share of a value is multiplied by its decision"
VALUE = "a value of the network's own to look at before the decision"
CHANNELS = "the inside of a convolution"
CONNECTIONS = "what each branch reads"
EXIT = "a place to leave at"

Gone = dict[fx.Node, list[int]]  # value -> channels of it that are zero for good
Run = Callable[..., Any]


@dataclass(kw_only=True)
class Cut:
    """What deciding sites for good leaves for the frame to do, for all of them together.

    Attributes:
        gone: Values of which channels are zero: who reads them is to lose these.
        names: Nodes that are gone -> what has taken their place.
        more: New nodes that compute what a site's branch did.
        wide: Of these, values among zeros that convolutions can do without.
        padded: Channels, or heads, that stay although they are closed, and give zeros.
    """

    gone: Gone = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    more: list[str] = field(default_factory=list)
    wide: list[str] = field(default_factory=list)
    padded: int = 0


class Kind(ABC):
    """One kind of site.

    Attributes:
        name: What `Site.kind`, `--kind` and JSON call it.
        offers: What a method may ask of its sites, of the constants above.
        listed: Whether `inspect` and `profile` list its sites where nothing gates them.
        in_line: Whether its sites follow one another: they are found first, and named and listed
            together with those of other such kinds, in the order of execution.
        one_by_one: Whether prune decides each unit for itself, rather than all or none.
        splits: Whether a site can be split into as many units as a gate has.
        leaves: Whether a decision of 1 means that a sample leaves the network.
        linked: Whether what is decided of one site changes what another's units read: `insert`
            refuses what stands in the way itself, and `keep` is asked where nothing goes too.
        always_wide: Whether what reads a site keeps its width, whatever units go.
        lies_in: Kinds within whose gated sites a gate of this kind may stand.
        shares_batch: Whether a batch computes what any of its images opens.
        roles: What `Site.role` may be.
        couples: Whether units of several sites may have to go together, see `couple`.
    """

    name: ClassVar[str]
    offers: ClassVar[frozenset[str]] = frozenset()
    listed: ClassVar[bool] = False
    one_by_one: ClassVar[bool] = False
    splits: ClassVar[bool] = False
    leaves: ClassVar[bool] = False
    in_line: ClassVar[bool] = False
    always_wide: ClassVar[bool] = False
    linked: ClassVar[bool] = False
    lies_in: ClassVar[frozenset[str]] = frozenset()
    shares_batch: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]] = ()
    couples: ClassVar[bool] = False

    @abstractmethod
    def find(self, net: Traced) -> list[Site]:
        """The kind's sites in a network; those of the kinds before it are in `net.sites`."""

    def of(self, site: Site) -> Kind:
        """What stands for the kind at this site: itself, or one that differs by the site's role."""
        return self

    def split(self, net: Traced, site: Site, units: int) -> Site:
        """The site in so many units.

        Raises:
            SettingError: It cannot be split so.
        """
        raise NotImplementedError

    def couple(self, net: Traced) -> bool:
        """Let sites that can lose a unit only all at once be one; whether there are such."""
        return False

    def place(self, net: Traced, names: Sequence[str]) -> None:
        """Let the kind's sites be at the places of these names, in place of those found."""
        raise NotImplementedError

    def reader_of(self, net: Traced, site: str) -> str | None:
        """The site whose units read this one's, where the kind has such."""
        return None

    def number(self, net: Traced, site: str) -> int:
        """The site's number among those of the kind that the network had at first."""
        return [each.name for each in net.sites.values() if each.kind == self.name].index(site)

    def refused(self, net: Traced) -> dict[str, str]:
        """What a user may take for a site, but is none: name -> why."""
        return {}

    @abstractmethod
    def refresh(self, net: Traced, site: Site) -> Site | None:
        """The site after the graph has changed and been counted; None: it has gone."""

    def refresh_all(self, net: Traced) -> None:
        """Offer or withdraw sites after the graph has changed, before each is refreshed."""
        return None

    # --- putting a decision in ---

    @abstractmethod
    def insert(self, net: Traced, site: str, gate: nn.Module, sees: str = "") -> None:
        """Let `gate` decide about a site.

        Args:
            net: The network; its graph, and sites that the change concerns, are changed.
            site: The site's name.
            gate: It sees the site's entry, or the node that `sees` names.
            sees: A node for the gate to look at.

        Raises:
            SettingError: It cannot stand there.
        """

    # --- taking it out for good ---

    @abstractmethod
    def ungate(self, net: Traced, site: str) -> None:
        """Let a gated site always run, as it did before it was gated."""

    def why_not_removable(
        self, net: Traced, site: Site, replaced: dict[fx.Node, fx.Node]
    ) -> str | None:
        """What stands in the way of a site that never runs going; None: nothing.

        Args:
            net: The network.
            site: The site.
            replaced: Additions taken to be gone already, each with the operand that is left;
                the site's own are added.
        """
        return None

    def why_wide(self, net: Traced, site: Site, kept: Sequence[int]) -> str | None:
        """Why who reads a site that keeps some units must read zeros for the others."""
        return None

    def keep(self, net: Traced, site: str, decision: SiteDecision, how: Keeping) -> Cut:
        """Take the dropped units of a site out, and the gate of those that always run."""
        raise NotImplementedError

    def zeros(self, net: Traced, site: Site) -> Gone:
        """Values that are zero where the site is removed, to be folded into their readers."""
        return {}

    @abstractmethod
    def remove(self, net: Traced, site: Site) -> dict[str, str]:
        """Take a site that never runs out of the graph, after its zeros have been folded.

        Returns:
            Nodes that are gone -> what has taken their place.
        """

    # --- how it runs ---

    def prepare(self, low: Lowering) -> None:
        """Lower what has to be lowered before anything else."""
        return None

    def lower(self, low: Lowering, node: fx.Node) -> bool:
        """Let an executor take the place of a node and what goes with it; False: not mine."""
        return False

    def finish(self, lowered: fx.Graph) -> Run | None:
        """Cut the whole lowered graph once, at the end; None: nothing to cut."""
        return None

    def decided(self, net: Traced, site: Site) -> list[str]:
        """The nodes whose channels the site's units are; none where it decides otherwise."""
        return list(site.tail[:1]) if self.one_by_one else []

    def savings(self, net: Traced, site: Site) -> tuple[Saving, ...]:
        """What the site's decisions save, node by node."""
        return site.savings

    def is_theoretical(self, net: Traced, site: str) -> bool:
        """Whether what a gated site saves is no time, as no kernel can leave it out."""
        return False

    def recount(self, net: Traced) -> None:
        """Correct `net.costs` where evaluation computes less than the graph says."""
        return None

    def costs_need_values(self, net: Traced) -> bool:
        """Whether `recount` looks at tensors' values, of what is in this network.

        A network that is replayed from a file has none until the file's tensors are in it; it is
        counted again then, which takes a while, so only where this is true.
        """
        return False


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """How units are kept.

    Attributes:
        round_to: Keep so many more channels, giving zeros, that they are a multiple of this.
        wide: Who reads the value gets zeros in the place of what is gone.
        decisions: What is decided of all sites.
    """

    round_to: int = 1
    wide: bool = False
    decisions: Mapping[str, SiteDecision] = field(default_factory=dict)


Decisions = Mapping[str, SiteDecision]
