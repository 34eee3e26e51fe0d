"""The prune plan: what becomes of each site, from what its gate says or from how often it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gatecli import methods
from gatecli.errors import SettingError
from gatecli.gates.exit import Exit
from gatecli.kinds import registry
from gatecli.network import Network, surgery
from gatecli.network.costs import Rates, exits_before, reach
from gatecli.network.surgery import Decisions
from gatecli.traced.site import SiteDecision
from gatecli.traced.traced import Traced

__all__ = ["How", "is_removed", "make_plan"]


@dataclass(frozen=True, kw_only=True)
class How:
    """By what is decided, see gatecli.stages.prune.prune.

    Attributes:
        threshold: As there, and `collapse` and `static` too.
        stay: Sites of which what is undecided stays dynamic, whatever `static` says.
    """

    threshold: float | None = None
    collapse: float = 0.01
    static: float | None = None
    stay: frozenset[str] = frozenset()


def make_plan(network: Network, rates: Rates, how: How) -> dict[str, SiteDecision]:
    """What becomes of each site; those that stay as they are are left out.

    Raises:
        SettingError: A gate that depends on the data has no rate, or one that it cannot have.
    """
    decisions: dict[str, SiteDecision] = {}
    for site, gate in network.site_gates.items():
        if isinstance(gate, Exit):
            decided = _exit(network, site, gate, rates, how.collapse)
        else:
            decided = _units(network, site, rates, how)
        if decided is not None:
            decisions[site] = decided
    return _with_stuck(network, _reached(network, decisions))


def _units(network: Network, site: str, rates: Rates, how: How) -> SiteDecision | None:
    """What becomes of a gate's units; None: it stays as it is."""
    method = methods.get(network.gated_by[site])
    runs: Sequence[bool | None] | None = method.decided(network, site, how.threshold)
    if runs is None:
        static = None if site in how.stay else how.static
        runs = _by_rate(site, rates, how.collapse, static)
    undecided = [unit for unit, run in enumerate(runs) if run is None]
    one_by_one = registry.of(network.sites[site]).one_by_one
    if undecided and (not one_by_one or len(undecided) == len(runs)):
        return None
    kept = [unit for unit, run in enumerate(runs) if run]
    return SiteDecision.of(len(runs), kept, undecided)


def _ends(network: Network, decisions: Decisions) -> set[str]:
    """The exits at which everybody leaves who comes to them."""
    ends = set()
    for site, decision in decisions.items():
        if decision.keep and registry.of(network.sites[site]).leaves:
            ends.add(site)
    return ends


def _reached(network: Network, decisions: Decisions) -> dict[str, SiteDecision]:
    """The decisions without what lies behind an exit at which everybody leaves."""
    ends = _ends(network, decisions)
    before = {site: exits_before(network.traced, site) for site in decisions}
    return {site: each for site, each in decisions.items() if not ends & set(before[site])}


def _with_stuck(network: Network, decisions: Decisions) -> dict[str, SiteDecision]:
    """The decisions, with what never runs and cannot be taken out said to be stuck."""
    empty = []
    for site, decision in decisions.items():
        leaves = registry.of(network.sites[site]).leaves
        if not leaves and is_removed(network, site, decision):
            empty.append(site)
    net = _as_left(network, decisions)
    reasons = surgery.why_not_removable(net, [site for site in empty if site in net.sites])
    result = dict(decisions)
    for site, why in reasons.items():
        result[site] = replace(decisions[site], stuck_because=why)
    return result


def _as_left(network: Network, decisions: Decisions) -> Traced:
    """The network without what lies behind an exit at which everybody leaves: it is in no way."""
    if not _ends(network, decisions):
        return network.traced
    copy = network.copy()
    surgery.leave(copy.traced, decisions)
    return copy.traced


def _by_rate(
    site: str, rates: Rates, collapse: float, static: float | None
) -> Sequence[bool | None]:
    """Whether each unit runs; None where it stays dynamic."""
    if site not in rates:
        raise SettingError(
            f"the gate at `{site}` depends on the image, so prune needs its rate: name a data set"
            " with --data (rates are measured on its val split)"
        )
    units: Sequence[float] = rates[site]
    if static is not None:
        return [rate > static for rate in units]
    return [rate > 0.5 if rate < collapse or rate > 1 - collapse else None for rate in units]


def _exit(
    network: Network, site: str, exit_: Exit, rates: Rates, collapse: float
) -> SiteDecision | None:
    """Drop: the exit goes, as nobody takes it.

    Keep: what lies behind it goes, as everybody leaves who comes to it; None: it stays.
    """
    goes, ends = SiteDecision.of(1, []), SiteDecision.of(1, [0])
    if bool(exit_.threshold.isposinf().all()):
        if rates.get(site, [0.0])[0] > 0:
            raise SettingError(
                f"expected a rate of 0 for the exit at `{site}`, where nobody leaves as its"
                f" threshold is infinite, but got {rates[site][0]:g}: measure rates at the"
                " thresholds that the network has"
            )
        return goes
    if site not in rates:
        raise SettingError(
            f"how many leave at `{site}` depends on the images: name a data set with --data (rates"
            " are measured on its val split)"
        )
    come, leave = reach(network, site, rates), rates[site][0]
    if leave < collapse:
        return goes
    return ends if leave > (1 - collapse) * come else None


def is_removed(network: Network, site: str, decision: SiteDecision) -> bool:
    """Whether a site goes as a whole; where nothing of it is left but what always ran, it stays."""
    return not decision.left and not network.sites[site].places
