"""prune: remove what never runs, let go of gates that never close, and prove that nothing else has
changed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gatecli import methods, surgery
from gatecli.costs import Rates, expected_macs, known_rates, reach
from gatecli.errors import GatecliError, SettingError
from gatecli.gates import Exit, Gate
from gatecli.inference import Scores
from gatecli.network import Network
from gatecli.probe import logits, random_images, relative_change
from gatecli.record import Record, at_threshold, force, in_evaluation, record_gates, with_thresholds
from gatecli.traced.recipe import Step

TOLERANCE = 1e-4  # of the largest logit: above this, prune has broken something and writes nothing
ROUNDING = 1e-3  # of a score: so near to its threshold a gate may decide either way


@dataclass(frozen=True)
class Pruned:
    """The smaller network, and what was done to which site.

    `removed`: branches gone; `thinned`: sites that have lost some of their units -> which;
    `ungated`: gates gone, all units always run; `freed`: units that always run, and are decided no
    more, of a site that stays dynamic;
    `kept_dynamic`: decided at run time as before; `stuck`: those of them that never run, but cannot
    be taken out -> why.
    `max_logit_change`: against the input with the same units forced, relative to the largest logit,
    on random images. `rates` of what stays dynamic, and the MACs
    that follow: those given to `prune`, until `with_scores` puts measured ones in their place.
    """

    network: Network
    removed: list[str]
    thinned: dict[str, list[int]]
    ungated: list[str]
    freed: dict[str, list[int]]
    kept_dynamic: list[str]
    stuck: dict[str, str]
    params_before: int
    macs_before: int
    max_logit_change: float
    rates: dict[str, list[float]]
    macs_expected: float


def prune(
    network: Network,
    *,
    threshold: float | None = None,
    rates: Rates | None = None,
    collapse: float = 0.01,
    static: float | None = None,
    round_to: int = 1,
) -> Pruned:
    """A pruned copy of `network`.

    Args:
        threshold: units run where P(on) > threshold, now and in gates that stay; none: each gate's
            own (calibrated, else .5). Exits keep theirs.
        rates: how often each unit of the data-dependent gates runs, measured on validation data at
            that threshold.
        collapse: a data-dependent unit with a rate below it is removed, one above 1 - collapse
            loses its gate.
        static: decide the remaining data-dependent units by rate > static, instead of leaving them
            dynamic.
        round_to: where a branch loses some of its filters, keep as many more, giving zeros, as make
            their number a multiple of this.
    Filters, and channels of convolutions, are decided one by one; another site of several
    data-dependent units stays dynamic until all of them are decided.
    Raises: SettingError for values out of range, and where a data-dependent gate has no rate;
    GatecliError if nothing is gated.
    """
    _check(network, threshold, collapse, static, round_to)
    plan, dynamic = make_plan(network, threshold, rates or {}, collapse, static)
    plan = _shortened(network, plan)
    dynamic = {site: units for site, units in dynamic.items() if site in plan}
    empty = [
        site
        for site, kept in plan.items()
        if not kept and site not in dynamic and not network.sites[site].places
    ]
    stuck = surgery.why_not_removable(network, empty)
    plan = {site: kept for site, kept in plan.items() if site not in stuck}
    left = {site: [*kept, *dynamic.get(site, ())] for site, kept in plan.items()}
    wide = [
        site
        for site, units in left.items()
        if site not in empty
        and network.sites[site].kind != "conv"
        and len(units) < network.sites[site].units
        and surgery.why_stays_wide(network, site, units) is not None
    ]
    smaller = network.copy().eval()
    for site in stuck:
        smaller.site_gates[site].threshold.fill_(1.0)  # P(on) is never above it
    methods.apply_plan(smaller, plan, round_to, dynamic, wide)
    if threshold is not None:
        _set_threshold(smaller, threshold, stuck)
    around = [
        site for site in stuck if site not in smaller.methods
    ]  # gone with what was around them
    decided = {**plan, **{site: [] for site in stuck}}
    change = _verify(network, smaller, decided, dynamic)
    verify_decisions(network, smaller, decided, dynamic, threshold)
    stuck = {site: why for site, why in stuck.items() if site not in around}
    unit_rates = {
        site: (
            [0.0] * len(units)
            if site in stuck
            else [units[unit] for unit in dynamic.get(site, range(len(units)))]
        )
        for site, units in (rates or known_rates(network)).items()
        if site in smaller.methods
    }
    ends = [site for site, kept in plan.items() if kept and network.sites[site].kind == "exit"]
    units = {site: gate.units for site, gate in network.site_gates.items()}
    result = Pruned(
        smaller,
        [
            site
            for site in network.methods
            if site in around
            or (
                site in left
                and (site in empty or (not left[site] and network.sites[site].kind == "exit"))
            )
        ],
        {
            site: [unit for unit in range(units[site]) if unit not in kept]
            for site, kept in left.items()
            if site not in empty and len(kept) < units[site]
        },
        [site for site, kept in plan.items() if len(kept) == units[site] and site not in ends],
        {site: kept for site, kept in plan.items() if site in dynamic and kept},
        list(smaller.methods),
        stuck,
        network.params,
        network.macs_dense,
        change,
        unit_rates,
        expected_macs(smaller, unit_rates),
    )
    settings = {
        "threshold": threshold,
        "collapse": collapse,
        "static": static,
        "round_to": round_to,
        "plan": plan,
        "dynamic": dynamic,
        "wide": wide,
    }
    measured = {
        "params": smaller.params,
        "macs_dense": smaller.macs_dense,
        "macs_expected": result.macs_expected,
        "max_logit_change": change,
        "unit_rates": unit_rates,
    }
    smaller.recipe = network.recipe.with_step(Step("prune", settings, measured))
    return result


def with_scores(pruned: Pruned, scores: Scores) -> Pruned:
    """The same with the rates that the pruned network itself has on val, here and in its recipe.

    Those that `prune` was given are of the network before: a unit that is decided for good changes
    what the gates behind it see.
    """
    network = pruned.network
    macs = expected_macs(network, scores.rates, scores.busy)
    *earlier, step = network.recipe.steps
    measured = {
        "top1": scores.top1,
        "split": "val",
        "macs_expected": macs,
        "unit_rates": scores.rates,
    }
    network.recipe = replace(
        network.recipe, steps=(*earlier, replace(step, results={**step.results, **measured}))
    )
    return replace(pruned, rates=scores.rates, macs_expected=macs)


def _shortened(network: Network, plan: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """The plan without what lies behind an exit at which everybody leaves."""
    ends = [site for site, kept in plan.items() if kept and network.sites[site].kind == "exit"]
    return {site: kept for site, kept in plan.items() if not set(network.before(site)) & set(ends)}


def _check(
    network: Network, threshold: float | None, collapse: float, static: float | None, round_to: int
) -> None:
    if not network.methods:
        raise SettingError(
            "there are no gates to prune by: attach a method first (gatecli attach CHECKPOINT"
            " --method NAME)"
        )
    for name, value, high in (("--collapse", collapse, 0.5), ("--static", static, 1.0)):
        if value is not None and not 0 <= value <= high:
            raise SettingError(f"expected {name} to be between 0 and {high}, but got {value}")
    if not 1 <= round_to <= 65536:
        raise SettingError(f"expected --round-to to be between 1 and 65536, but got {round_to}")
    if threshold is not None and not math.isfinite(threshold):
        raise SettingError(f"expected --threshold to be a finite number, but got {threshold}")


def make_plan(
    network: Network, threshold: float | None, rates: Rates, collapse: float, static: float | None
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Which units each site keeps for good, sites that stay as they are left out, and of these
    sites the units that stay dynamic.
    """
    plan, dynamic = dict[str, list[int]](), dict[str, list[int]]()
    for site, gate in network.site_gates.items():
        if isinstance(gate, Exit):
            decided = _exit(network, site, gate, rates, collapse)
            if decided is not None:
                plan[site] = decided
            continue
        runs: Sequence[bool | None] | None = methods.get(network.methods[site]).decided(
            network, site, threshold
        )
        if runs is None:
            runs = _by_rate(site, rates, collapse, static)
        undecided = [unit for unit, run in enumerate(runs) if run is None]
        if undecided and (not (gate.filters or gate.apart) or len(undecided) == gate.units):
            continue
        plan[site] = [unit for unit, run in enumerate(runs) if run]
        if undecided:
            dynamic[site] = undecided
    return plan, dynamic


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
) -> list[int] | None:
    """[]: the exit goes, as nobody takes it.

    [0]: what lies behind it goes, as everybody does who comes to it; None: it stays.
    """
    if bool(exit_.threshold.isposinf().all()):
        return []
    if site not in rates:
        raise SettingError(
            f"how many leave at `{site}` depends on the images: name a data set with --data (rates"
            " are measured on its val split)"
        )
    come, leave = reach(network, site, rates), rates[site][0]
    if leave < collapse:
        return []
    return [0] if leave > (1 - collapse) * come else None


def _set_threshold(network: Network, threshold: float, but: Collection[str]) -> None:
    """Let all gates decide by `threshold`, as their rates were measured.

    Those of the sites `but` and exits keep their own.
    """
    for site, gate in network.site_gates.items():
        if site not in but and not isinstance(gate, Exit):
            gate.threshold = torch.full_like(gate.threshold, threshold)


def _verify(
    network: Network,
    smaller: Network,
    plan: Mapping[str, list[int]],
    dynamic: Mapping[str, list[int]],
) -> float:
    """The change of the logits where both are forced to decide alike, as planned where that is
    decided; every second unit that stays dynamic runs.

    The first image leaves nowhere, the others each at an exit that stays.
    """
    free = [site for site in network.site_gates if site not in plan and site in smaller.methods]
    exits = [site for site in free if isinstance(network.site_gates[site], Exit)]
    images = random_images(network, max(2, 1 + len(exits)))
    runs = {site: {*kept, *dynamic.get(site, ())[::2]} for site, kept in plan.items()}
    runs |= {
        site: set(range(0, network.site_gates[site].units, 2)) for site in free if site not in exits
    }
    decisions = {site: _flags(network, site, units) for site, units in runs.items()}
    still = {
        site: [decisions[site][unit] for unit in units]
        for site, units in dynamic.items()
        if site in smaller.methods
    }
    alike = {site: decisions[site] for site in free if site not in exits} | _one_exit_each(
        exits, len(images)
    )
    with (
        in_evaluation(network),
        force(network, {**decisions, **alike}),
        force(smaller, {**still, **alike}),
    ):
        change = relative_change(logits(network, images), logits(smaller, images))
    if not change <= TOLERANCE:
        raise GatecliError(
            f"the pruned network's logits differ by {change:.1e} of the largest logit from the"
            " gated network's: this is a bug in gatecli; nothing was written"
        )
    return change


def _one_exit_each(exits: Sequence[str], images: int) -> dict[str, Tensor]:
    """Decisions (images, 1) by which image number k + 1 leaves at the k-th exit."""
    numbers = torch.arange(images)[:, None]
    return {site: (numbers == index + 1).float() for index, site in enumerate(exits)}


def verify_decisions(
    network: Network,
    smaller: Network,
    decided: Mapping[str, list[int]],
    dynamic: Mapping[str, list[int]],
    threshold: float | None,
) -> None:
    """Compare what the gates that stay decide, in both networks, on random images.

    Args:
        decided: the units of `network` that always run, by site; of a site in `dynamic` only some
            units are decided.
        dynamic: the other units of such sites, in the order of `smaller`'s gate.
        threshold: at which the gates' rates were measured; none: each gate's own.
    Raises: GatecliError where a gate decides otherwise, and not by rounding.
    """
    images = random_images(network)
    limits = {
        site: _limits(network, site, decided[site], units, threshold)
        for site, units in dynamic.items()
    }
    whole = {
        site: _flags(network, site, kept) for site, kept in decided.items() if site not in dynamic
    }
    wanted = _decisions(
        network,
        images,
        at_threshold(network, threshold),
        with_thresholds(network, limits),
        force(network, whole),
    )
    found = _decisions(smaller, images)
    for site, z in found.latest().items():
        units = dynamic.get(site, range(z.shape[1]))
        differ = z != wanted.latest()[site][:, units]
        if bool(differ.any()):
            _accept_rounding(smaller.site_gates[site], found.odds[site][-1][differ], site)
            return  # what the gates behind it see is another image's by now


def _decisions(network: Network, images: Tensor, *settings: AbstractContextManager[None]) -> Record:
    with ExitStack() as stack:
        for each in (in_evaluation(network), *settings):
            stack.enter_context(each)
        record = stack.enter_context(record_gates(network))
        logits(network, images)
    return record


def _flags(network: Network, site: str, kept: Collection[int]) -> list[int]:
    return [int(unit in kept) for unit in range(network.site_gates[site].units)]


def _limits(
    network: Network,
    site: str,
    kept: Collection[int],
    dynamic: Collection[int],
    threshold: float | None,
) -> Tensor:
    """Thresholds by which the units `kept` always run, those `dynamic` decide, and the others never
    run.
    """
    own = network.site_gates[site].threshold
    limits = torch.ones_like(own)
    limits[list(kept)] = 0.0
    limits[list(dynamic)] = own[list(dynamic)] if threshold is None else threshold
    return limits


def _accept_rounding(gate: Gate, odds: Tensor, site: str) -> None:
    """Raises GatecliError unless these scores lie at the gate's threshold."""
    limit = gate.threshold if isinstance(gate, Exit) else torch.logit(gate.threshold.clamp(0, 1))
    away = (odds[:, None] - limit).abs().amin(1)
    if bool((away > ROUNDING * odds.abs().clamp(min=1)).any()):
        raise GatecliError(
            f"the gate at `{site}` decides otherwise in the pruned network: this is a bug in"
            " gatecli; nothing was written"
        )
