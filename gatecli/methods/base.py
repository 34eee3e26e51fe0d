"""What a method is.

A method is one file in this folder: a docstring with the paper and its equations, a settings
dataclass, the gate modules, an `Objective` that trains them, and a `Method` that puts them in. The
command line, the docs and the contract tests find it in the registry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

from gatecli.errors import SettingError
from gatecli.gates.decider import Decider
from gatecli.kinds import registry
from gatecli.kinds.base import MASK
from gatecli.methods.deciding import always_runs
from gatecli.methods.objective import Objective
from gatecli.methods.settings import S
from gatecli.network import Network, surgery
from gatecli.traced.site import Site

__all__ = ["About", "Method"]


@dataclass(frozen=True, kw_only=True)
class About(Generic[S]):
    """A method's card: what there is to know of it without a network.

    Attributes:
        name: What it is called on the command line and in files.
        summary: What it does, in a line for people.
        settings: The dataclass of its settings.
        paper: Its source.
        needs: What a network must have, for people.
        requires: What a kind of site has to offer so that the method can gate it.
        default_kinds: The kinds that it gates where none are named: its paper's.
    """

    name: str
    summary: str
    settings: type[S]
    paper: str = ""
    needs: str = "something to gate"
    requires: frozenset[str] = frozenset({MASK})
    default_kinds: tuple[str, ...] = ()

    def kinds(self) -> list[str]:
        """The kinds of sites that the method can gate: those that offer what it requires."""
        every = registry.all_kinds()
        return [kind.name for kind in every if self.requires <= kind.offers]


class Method(Generic[S]):
    """A way of gating: which sites of a network get gates, which gates, and what these decided.

    Subclasses say `gate`; all else has defaults.

    Attributes:
        about: Its card.
        objective: What trains its gates.
    """

    def __init__(self, about: About[S], objective: Objective[S]) -> None:
        self.about = about
        self.objective = objective

    def ready(self, network: Network, settings: S) -> None:
        """Make sure that the network has the sites that these settings ask for.

        This comes before any are chosen. Raises SettingError.
        """

    def offers(self, network: Network, settings: S, kinds: Sequence[str] = ()) -> list[Site]:
        """The sites of these kinds that these settings speak of, gated ones included.

        No kinds: the method's own.
        """
        chosen = kinds or self.about.default_kinds
        return [site for site in network.sites.values() if site.kind in chosen]

    def by_default(self, network: Network, site: Site) -> bool:
        """Whether a site that is offered is gated where no --include names it."""
        return True

    def complete(
        self, network: Network, sites: list[str], settings: S, gater: Network | None = None
    ) -> tuple[list[str], S]:
        """Which of the sites chosen to gate, and the settings in the form that is recorded.

        What depends on the network is filled in. Gater: a classifier that the user gives for the
        gates. Raises SettingError.
        """
        if gater is not None:
            raise SettingError(
                f"expected --gater with a method that has a gater, but {self.about.name} has none"
            )
        return sites, settings

    def gate(self, network: Network, site: Site, settings: S) -> Decider:
        """A new gate for a site, opened so that it changes no prediction.

        Raises SettingError where the site is none for these settings.
        """
        raise NotImplementedError

    def attach(
        self, network: Network, sites: Sequence[str], settings: S, gater: Network | None = None
    ) -> None:
        """Gate the named sites of `network`, in place.

        The network is `ready`, the settings are `complete`, with the same gater; where they are
        replayed from a file there is none. Raises SettingError.
        """
        for name in sites:
            self._insert(network, name, settings)
        network.recompile()
        network.recount()

    def _insert(self, network: Network, site: str, settings: S) -> None:
        """Let a new gate decide about one site."""
        gate = self.gate(network, network.sites[site], settings)
        surgery.insert_gate(network.traced, site, gate, self.about.name)

    def decided(self, network: Network, site: str, threshold: float | None) -> list[bool] | None:
        """For each unit of a site, whether it always runs; None where that depends on the data."""
        return always_runs(network.site_gates[site], threshold)

    def tidy(self, network: Network) -> None:
        """Let go of what the gates that a prune has left no longer need, in place."""
