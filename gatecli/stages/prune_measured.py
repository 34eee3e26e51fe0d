"""`prune --decide measured`: what stays dynamic stays so only where a runtime gains by it.

Two extremes are known: all that rates leave undecided stays dynamic, or all of it is decided by its
rate. A table of milliseconds (gatecli.stages.price) says site by site which of the two takes less.
That gives a third network; all are timed in one interleaved run, on the same images, and the
fastest is taken. So the result is never slower than either extreme, as far as can be measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from gatecli.network import Network
from gatecli.network.costs import Rates, mean_rate
from gatecli.network.price import running
from gatecli.progress import Progress, silent
from gatecli.stages.price import How as Where
from gatecli.stages.price import measure_table
from gatecli.stages.prune import How, Pruned, prune_by
from gatecli.stages.subject import subject_of
from gatecli.stages.timed import cells_of, ready
from gatecli.stages.timing import interleaved
from gatecli.traced.latency import LatencyTable, curve_at

__all__ = ["STATIC", "DecidedBy", "prune_measured"]

PASSES = 3
STATIC = 0.5  # what the undecided is decided by, unless the user says otherwise
DYNAMIC, BY_RATE, CHOSEN = "all kept dynamic", "all decided by rate", "chosen site by site"


@dataclass(frozen=True, kw_only=True)
class DecidedBy:
    """A pruned network, and why it is this one.

    Attributes:
        pruned: The network taken, and what was done to it.
        decided: Site that rates left undecided -> what became of it, and why.
        taken: Which of those in `ms`.
        ms: What was timed -> milliseconds of an image; empty where nothing was undecided.
    """

    pruned: Pruned
    decided: dict[str, str]
    taken: str
    ms: dict[str, float]


def prune_measured(  # noqa: PLR0913 - its command's options, by keyword
    network: Network,
    how: How,
    where: Where,
    *,
    rates: Rates | None = None,
    round_to: int = 1,
    images: Tensor | None = None,
    progress: Progress = silent,
) -> DecidedBy:
    """A pruned copy of `network`, dynamic only where the runtime gains by it.

    Args:
        network: With gates.
        how: As for gatecli.stages.prune.prune_by; `static` none: STATIC.
        where: The runtime, and how often is measured.
        rates: As for gatecli.stages.prune.prune.
        round_to: Likewise.
        images: Real ones (n, C, H, W), normalised, to time with; none: made up, gates deciding by
            the rates.
        progress: Is told of each round.

    Raises:
        SettingError: As `prune`; or the runtime is missing.
        ExportError: The runtime cannot take a network.
    """
    where.check()
    static = STATIC if how.static is None else how.static
    makers = {DYNAMIC: replace(how, static=None), BY_RATE: replace(how, static=static)}
    made: dict[str, Pruned] = {}
    for name, each in makers.items():
        made[name] = prune_by(network, each, rates=rates, round_to=round_to)
    open_sites = _undecided(made[DYNAMIC], made[BY_RATE])
    if not open_sites:
        return DecidedBy(pruned=made[DYNAMIC], decided={}, taken=DYNAMIC, ms={})
    table = measure_table(made[DYNAMIC].network, where, progress)
    choice = {site: _choice(made[DYNAMIC], table, site, static) for site in open_sites}
    stay = frozenset(site for site, each in choice.items() if each.stays)
    if 0 < len(stay) < len(open_sites):
        chosen = replace(how, static=static, stay=stay)
        made[CHOSEN] = prune_by(network, chosen, rates=rates, round_to=round_to)
    ms = _timed(made, where, images, progress)
    taken = min(reversed(ms), key=lambda name: ms[name])  # of equals what was chosen
    pruned = made[taken]
    decided = {site: _reason(pruned, site, choice[site], taken) for site in open_sites}
    return DecidedBy(
        pruned=_recorded(pruned, where, decided, ms), decided=decided, taken=taken, ms=ms
    )


def _undecided(dynamic: Pruned, decided: Pruned) -> list[str]:
    """The sites about which the two extremes differ."""
    return [site for site in dynamic.kept_dynamic if site not in decided.kept_dynamic]


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """What a table says of a site, in milliseconds against all of its units running ungated.

    Attributes:
        dynamic: Decided by its gate, at its rate.
        static: Decided for good, by the rates of its units.
        rate: The mean of its units.
    """

    dynamic: float
    static: float
    rate: float

    @property
    def stays(self) -> bool:
        """Whether it is worth its gate."""
        return self.dynamic < self.static


def _choice(pruned: Pruned, table: LatencyTable, site: str, static: float) -> _Choice:
    units = pruned.rates[site]
    times = table.sites.get(site)
    if times is None or not times.dynamic:
        return _Choice(dynamic=0.0, static=0.0, rate=mean_rate(units))
    network = pruned.network
    decided = {site: [float(rate > static) for rate in units]}
    return _Choice(
        dynamic=curve_at(times.dynamic, running(network, site, pruned.rates)),
        static=curve_at(times.static, running(network, site, decided)),
        rate=mean_rate(units),
    )


def _timed(
    made: Mapping[str, Pruned], where: Where, images: Tensor | None, progress: Progress
) -> dict[str, float]:
    """Mean milliseconds of all networks in one interleaved run.

    The mean, as what a gate saves it saves for some images alone. Each pass has the same images and
    decisions in the same order, and of a call the fastest counts: the machine's slow spells, which
    would spoil a mean, hit it once.
    """
    subjects = [subject_of(name, each.network, 0, each.rates) for name, each in made.items()]
    cells = cells_of(subjects, [where.runtime], where.precision, images)
    with progress.task("timing what is left", PASSES * where.repeats) as task:
        timed = ready(cells, 1, made[DYNAMIC].network.recipe)
        passes = [interleaved(timed, 1, where.repeats, task.advance) for _ in range(PASSES)]
    found = {}
    for index, name in enumerate(made):
        calls = zip(*(each[index] for each in passes), strict=True)
        found[name] = statistics.mean(min(same) for same in calls)
    return found


def _reason(pruned: Pruned, site: str, choice: _Choice, taken: str) -> str:
    """What became of a site, and why."""
    became = "always runs"
    if site in pruned.kept_dynamic:
        became = "dynamic"
    elif site in pruned.removed:
        became = "removed"
    elif site in pruned.thinned:
        became = f"{len(pruned.thinned[site])} units removed"
    told = (
        f"{became}: rate {choice.rate:.2f}; {choice.dynamic:+.3g} ms dynamic, {choice.static:+.3g}"
        " ms decided by rate"
    )
    if choice.stays != (site in pruned.kept_dynamic):
        return f"{told}; but {taken} was the fastest"
    return told


def _recorded(
    pruned: Pruned, where: Where, decided: Mapping[str, str], ms: Mapping[str, float]
) -> Pruned:
    """The same, whose recipe says by what was decided."""
    *earlier, step = pruned.network.recipe.steps
    asked = {"decide": "measured", "runtime": where.runtime, "precision": where.precision}
    step = replace(
        step,
        settings={**step.settings, **asked},
        results={**step.results, "decided": dict(decided), "ms": dict(ms)},
    )
    pruned.network.recipe = replace(pruned.network.recipe, steps=(*earlier, step))
    return pruned
