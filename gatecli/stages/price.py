"""What `gatecli price` measures: the milliseconds that each gated site takes in a runtime.

For each site, in one interleaved run, networks that differ in this site alone: with it and without
it, whole and in part, and with and without its gate. Of sites that do the same work one is timed. A
variant computes the same for every image, so its calls differ only by what else the machine does,
which only adds to them: the fastest calls are compared. Units that are decided for good are kept in
multiples of what the runtime computes at a time (gatecli.stages.grains). The sites of a kind are
timed together too, and their curves corrected by it (gatecli.stages.price_jointly). At the end
every second site is closed, or half of its units where each saves by itself, and the table's word
for that compared with the clock's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from gatecli.errors import SettingError
from gatecli.network import Network
from gatecli.network.price import Milliseconds
from gatecli.progress import Progress, silent
from gatecli.runtimes import registry
from gatecli.runtimes.base import Order
from gatecli.runtimes.machine import describe
from gatecli.runtimes.rates import varied_images
from gatecli.stages import grains, price_jointly
from gatecli.stages.same_work import first_of_form
from gatecli.stages.timing import Timed, interleaved
from gatecli.stages.variants import PARTS, Variants
from gatecli.traced.latency import OP, Curve, LatencyTable, SiteTimes, recorded_table
from gatecli.traced.recipe import Step

__all__ = ["How", "known_table", "measure_table", "price"]

IMAGES = 16


@dataclass(frozen=True, kw_only=True)
class How:
    """Where and how often is measured.

    Attributes:
        runtime: A runtime's name.
        precision: One that it has.
        repeats: Timed calls of each variant.
    """

    runtime: str = "native"
    precision: str = "fp32"
    repeats: int = 30

    def check(self) -> None:
        """Make sure that it can be done here.

        Raises:
            SettingError: It cannot.
        """
        registry.get(self.runtime).require(self.precision)
        if self.repeats < 3:
            raise SettingError(f"expected --repeats of at least 3, but got {self.repeats}")


def price(
    network: Network, how: How = How(), *, progress: Progress = silent
) -> tuple[Network, LatencyTable]:
    """A copy of a network that keeps a table of what its gated units take, and the table.

    Args:
        network: With gates.
        how: Where and how often is measured.
        progress: Is told of each round.

    Raises:
        SettingError: There is nothing to measure, or a runtime is missing.
        ExportError: The runtime cannot take a variant.
    """
    table = measure_table(network, how, progress)
    copy = network.copy()
    copy.recipe = network.recipe.with_step(Step(OP, asdict(how), table.facts()))
    return copy, table


def known_table(
    network: Network,
    *,
    runtime: str | None = None,
    precision: str | None = None,
    any_machine: bool = False,
) -> LatencyTable | None:
    """The table that a network keeps; None where it has none, or has changed since.

    Args:
        network: The network.
        runtime: The one asked for; None: whichever it is.
        precision: Likewise.
        any_machine: Take it wherever and however it was measured.

    Raises:
        SettingError: It is of another machine, runtime or precision.
        CheckpointError: It is damaged.
    """
    table = recorded_table(network.recipe)
    if table is None or any_machine:
        return table
    wanted = replace(
        table,
        machine=describe(),
        threads=torch.get_num_threads(),
        runtime=runtime or table.runtime,
        precision=precision or table.precision,
    )
    if wanted.where != table.where:
        raise SettingError(
            f"expected a latency table of {wanted.where}, but got one of {table.where}: measure one"
            " here (gatecli price), or take it as it is with --any-machine"
        )
    return table


def measure_table(network: Network, how: How, progress: Progress = silent) -> LatencyTable:
    """Measure what the gated units of a network take; see `price`."""
    how.check()
    variants = Variants(network)
    if not variants.sites:
        raise SettingError(
            "expected gates whose units can be timed one by one, but got none: attach a method"
            " first (gatecli attach CHECKPOINT --method NAME)"
        )
    forms = first_of_form(variants.network, variants.sites)
    timed = list(dict.fromkeys(forms.values()))
    told = f"timing {len(timed)} forms of {len(forms)} sites"
    kinds = price_jointly.alike(variants.network, variants.sites)
    grained = grains.alike(variants)
    rounds = how.repeats * (len(grained) + len(timed) + len(kinds) + 1)
    with progress.task(told, rounds) as task:
        bench = _Bench(variants, how, task.advance)
        for sites in grained:
            bench.find_grain(sites)
        return bench.table(forms, kinds)


class _Bench:
    """Times the variants of a network."""

    def __init__(self, variants: Variants, how: How, tick: Callable[[], None]) -> None:
        self.variants = variants
        self.how = how
        self.tick = tick
        self.images = varied_images(variants.network, IMAGES)
        whole = variants.static({})
        assert whole is not None  # nothing was removed
        self.static = self._timed(whole)
        self.dynamic = self._timed(variants.dynamic({}))
        self.statics: list[float] = []  # the fastest call of each run
        self.dynamics: list[float] = []

    def find_grain(self, sites: Sequence[str]) -> None:
        """Let the variants keep units in the multiples that this runtime likes at these sites."""
        tried = grains.tried(self.variants.network, sites)
        made = []
        for _, running in tried:
            network = self.variants.static(running)
            assert network is not None  # some units of each run
            made.append(network)
        fastest = self._fastest(made)[2:]
        grain = grains.best([each for each, _ in tried], fastest)
        self.variants.grains.update(dict.fromkeys(sites, grain))

    def table(self, forms: Mapping[str, str], kinds: Sequence[Sequence[str]]) -> LatencyTable:
        """What each site takes: what the first of its form does, and what those of a kind do."""
        timed = {site: self._site(site) for site in dict.fromkeys(forms.values())}
        sites = {site: timed[first] for site, first in forms.items()}
        gates = sum(times.dynamic[-1][1] for times in sites.values() if times.dynamic)
        all_on = min(self.statics)
        table = LatencyTable(
            machine=describe(),
            runtime=self.how.runtime,
            precision=self.how.precision,
            threads=torch.get_num_threads(),
            all_on_ms=all_on,
            shared_ms=min(self.dynamics) - all_on - gates,
            sites=sites,
        )
        for sites_of_kind in kinds:
            table = self._jointly(table, sites_of_kind)
        return self._checked(table)

    def _jointly(self, table: LatencyTable, alike: Sequence[str]) -> LatencyTable:
        """The table with what these sites take together."""
        variants = self.variants
        parts = price_jointly.parts_of_all(variants, alike)
        gone = [(part, made) for part in parts if (made := variants.static(part)) is not None]
        closed = []
        if all(site in variants.dependent for site in alike):
            closed = [(part, variants.dynamic(part)) for part in parts]
        whole, gated, *rest = self._fastest([made for _, made in [*gone, *closed]])
        fixed = {site: replace(times, dynamic=[]) for site, times in table.sites.items()}
        static = replace(table, sites=fixed)
        for (part, _), ms in zip(gone, rest, strict=False):
            static = price_jointly.moved(static, variants.network, part, ms - whole)
        for (part, _), ms in zip(closed, rest[len(gone) :], strict=True):
            table = price_jointly.moved(table, variants.network, part, ms - gated)
        sites = {}
        for site, times in table.sites.items():
            sites[site] = replace(times, static=static.sites[site].static)
        return replace(table, sites=sites)

    def _timed(self, network: Network) -> Timed:
        order = Order(model=network, recipe=network.recipe, precision=self.how.precision)
        prepared = registry.get(self.how.runtime).prepare(order)
        return Timed(prepared=prepared, images=self.images, rates={})

    def _fastest(self, others: Sequence[Network]) -> list[float]:
        """The fastest calls of the whole static network, the whole dynamic one, and others."""
        everyone = [self.static, self.dynamic, *(self._timed(each) for each in others)]
        times = interleaved(everyone, 1, self.how.repeats, self.tick)
        fastest = [min(each) for each in times]
        self.statics.append(fastest[0])
        self.dynamics.append(fastest[1])
        return fastest

    def _site(self, site: str) -> SiteTimes:
        counts = self.variants.counts_of(site)
        units = self.variants.network.sites[site].units
        made = {count: self.variants.static({site: count}) for count in counts}
        removable = {count: each for count, each in made.items() if each is not None}
        dynamics: list[Network] = []
        if site in self.variants.dependent:
            dynamics = [self.variants.dynamic({}, but=[site])]
            dynamics += [self.variants.dynamic({site: count}) for count in counts]
        whole, gated, *rest = self._fastest([*removable.values(), *dynamics])
        static: Curve = []
        for count, ms in zip(removable, rest, strict=False):
            static.append([count / units, ms - whole])
        static.append([1.0, 0.0])
        if not dynamics:
            return SiteTimes(static=static, dynamic=[], grain=self.variants.grains.get(site, 1))
        without, *closed = rest[len(removable) :]
        dynamic: Curve = []
        for count, ms in zip(counts, closed, strict=True):
            dynamic.append([count / units, ms - without])
        return SiteTimes(static=static, dynamic=[*dynamic, [1.0, gated - without]])

    def _checked(self, table: LatencyTable) -> LatencyTable:
        """The table with what it says of every second site closed, and what the clock says."""
        running, network = self._half_closed()
        rates = price_jointly.rates_of(self.variants.network, self.variants.sites, running)
        measured = self._fastest([network])[2]
        estimated = Milliseconds(table).of(self.variants.network, rates)
        return replace(table, estimated_ms=estimated, measured_ms=measured)

    def _half_closed(self) -> tuple[dict[str, int], Network]:
        """What runs of every second site, closed at run time where any gate decides there."""
        sites = self.variants.dependent or self.variants.sites
        running = {site: self.variants.count_at(site, PARTS // 2) for site in sites[::2]}
        if self.variants.dependent:
            return running, self.variants.dynamic(running)
        cut = self.variants.static(running)
        if cut is not None:
            return running, cut
        whole = self.variants.static({})
        assert whole is not None  # nothing was removed
        return {}, whole
