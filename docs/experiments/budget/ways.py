"""The ways of meeting a budget: each makes a small network, with the same epochs on the same data.

A run's settings say `way`, one of WAYS; the source (`arch`, `arch_args`, `start`); what is left of
its cost (`goal`, `share`); `train`; and `cut_epochs`, in which the network is cut while it learns:
gates close, or channels go. The rest of the epochs trains what is left, alike for all. A network
from scratch has the source's epochs and these in one, which are the run's `epochs`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from claims.measures import simple
from claims.training import Run, Trained, plain
from torch import nn

import gatecli
from budget.cost import REPEATS, RUNTIME, Budget, macs_of, milliseconds_of
from budget.outside import is_installed, pruned_outside
from gatecli import methods
from gatecli.architectures.build import build
from gatecli.errors import SettingError
from gatecli.kinds import registry as kinds
from gatecli.network import Network
from gatecli.network.price import Macs, Milliseconds, Price
from gatecli.runtimes import registry as runtimes
from gatecli.stages.price import How, known_table, price
from gatecli.traced.latency import LatencyTable
from gatecli.traced.recipe import Step

__all__ = ["WAYS", "lacking", "make"]

TRIES = 3  # to be within a budget
ROUNDING = 1e-6  # of a cost


def make(run: Run) -> dict[str, Any]:
    """Make a small network in the run's way, and measure it."""
    source = run.source()
    budget = Budget(goal=run.settings["goal"], share=run.settings["share"], source=source)
    trained = WAYS[run.settings["way"]](run, budget)
    macs = macs_of(trained.network, source.input.size)
    whole_ms, ms = milliseconds_of([source, trained.network])
    return {
        **simple(trained, run.problem),
        "macs": macs,
        "macs_share": macs / budget.whole_macs,
        "ms": ms,
        "ms_share": ms / whole_ms,
    }


def lacking(settings: Mapping[str, Any]) -> str:
    """What a run needs that is not there, for people; empty: nothing."""
    if settings["way"] == "torch-pruning" and not is_installed():
        return "needs torch-pruning (pip install 'torch-pruning>=1.6')"
    for each in settings.get("attach", []):
        for kind in each["kinds"]:
            if kind not in kinds.names():
                return f"needs sites of kind `{kind}`"
        known = {field.name for field in fields(methods.get(each["method"]).about.settings)}
        for name in each.keys() - known - {"method", "kinds"}:
            return f"needs a setting `{name}` of {each['method']}"
    missing = runtimes.get(RUNTIME).missing()
    return f"needs {RUNTIME}: {missing}" if missing else ""


def as_it_is(run: Run, budget: Budget) -> Trained:
    """The source itself, trained for as many epochs more as the others."""
    return plain(budget.source, run.problem, run.options(sum(_phases(run))))


def from_scratch(run: Run, budget: Budget) -> Trained:
    """A narrower network of the same price, from random weights, for all epochs in one."""
    network = run.problem.network(run.settings["narrow"], run.seed, _largest(run, budget))
    return plain(network, run.problem, run.options(run.epochs))


def by_channels(run: Run, budget: Budget) -> Trained:
    """The source with channels removed by Torch-Pruning."""
    cut, rest = _phases(run)
    network = pruned_outside(run, budget, run.options(cut))
    return plain(network, run.problem, run.options(rest))


def by_gates(run: Run, budget: Budget) -> Trained:
    """The source with gates that learn which of its units to close, and those units removed."""
    cut, rest = _phases(run)
    network = run.attached()
    costs: Price = Macs()
    name, whole = "max_gmacs", budget.whole_macs / 1e9
    if budget.goal == "ms":
        network, table = _priced(run, network)
        costs, name, whole = Milliseconds(table), "max_ms", table.all_on_ms
    # what cannot come down so far comes down as far as it can
    least = (1 + ROUNDING) * costs.least(network) / costs.scale
    limit = max(least, budget.share * whole)
    options = replace(run.options(cut), **{name: limit})
    tuned = gatecli.finetune(network, run.problem.data, options).network
    pruned = _cut(tuned, run, budget, (name, limit))
    return plain(pruned, run.problem, run.options(rest))


WAYS: dict[str, Callable[[Run, Budget], Trained]] = {
    "source": as_it_is,
    "scratch": from_scratch,
    "torch-pruning": by_channels,
    "gates": by_gates,
}


def _cut(tuned: Network, run: Run, budget: Budget, within: tuple[str, float]) -> Network:
    """What thresholds within a limit leave, by the clock too; where no try does, the cheapest."""
    name, limit = within
    cheapest, least = gatecli.prune(tuned).network, math.inf
    for _ in range(TRIES):
        try:
            known = gatecli.calibrate(tuned, run.problem.data, **{name: limit})
        except SettingError:
            break  # no threshold comes down so far
        pruned = gatecli.prune(known.network).network
        over = budget.share_of(pruned) / budget.share
        if over < least:
            cheapest, least = pruned, over
        if over <= 1:
            break
        limit /= over  # a table of milliseconds is not the clock, by which the others go
    return cheapest


def _priced(run: Run, network: Network) -> tuple[Network, LatencyTable]:
    """The network and what its units take, measured once for all runs in one way."""
    known = [run.settings[name] for name in ("arch", "attach")]
    path = run.place([*known, dict(run.problem.about)], ".json")
    if not path.exists():
        priced, _ = price(network, How(runtime=RUNTIME, repeats=REPEATS))
        path.write_text(json.dumps(asdict(priced.recipe.steps[-1])))
    network.recipe = network.recipe.with_step(Step(**json.loads(path.read_text())))
    table = known_table(network)
    assert table is not None  # it is the recipe's last step
    return network, table


def _largest(run: Run, budget: Budget) -> dict[str, Any]:
    """What builds the network with most MACs within the budget, or else the narrowest of all."""
    ways = [{"round_to": each} for each in run.settings.get("round_to", ())] or [{}]
    found = [args for each in ways if (args := _widest(run, budget, each))]
    size = budget.source.input.size
    narrowest = {**ways[-1], "width": 0.01}
    return max(found, key=lambda args: macs_of(_narrow(run, budget, args), size), default=narrowest)


def _widest(run: Run, budget: Budget, args: Mapping[str, int]) -> dict[str, Any]:
    """The widest network within the budget, in hundredths of the source's width; {}: none."""
    low, high = 0, 100
    while high - low > 1:
        middle = (low + high) // 2
        fits = (
            budget.share_of(_narrow(run, budget, {**args, "width": middle / 100})) <= budget.share
        )
        low, high = (middle, high) if fits else (low, middle)
    return {**args, "width": low / 100} if low else {}


def _narrow(run: Run, budget: Budget, args: Mapping[str, Any]) -> nn.Module:
    return build(run.settings["narrow"], {**args, "num_classes": budget.source.num_classes})


def _phases(run: Run) -> tuple[int, int]:
    """Epochs in which the source is cut, and those after it."""
    tuning = max(2, run.epochs - run.settings["start"]["epochs"])
    cut = min(run.settings["cut_epochs"], tuning - 1)
    return cut, tuning - cut
