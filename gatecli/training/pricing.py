"""What a method's rate is a share of in a training: units, MACs, or milliseconds by a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from gatecli import together
from gatecli.errors import SettingError
from gatecli.methods.objective import COUNT, MACS, MS
from gatecli.network import Network
from gatecli.network.priced import PricedMacs, PricedMilliseconds
from gatecli.progress import Progress
from gatecli.stages.price import How, known_table, price
from gatecli.traced.latency import OP
from gatecli.traced.recipe import Step
from gatecli.training.options import TrainOptions
from gatecli.training.run import Run
from gatecli.training.trained import Trained

__all__ = ["PRICED", "WORDS", "of_first", "priced", "rates_of", "with_table"]

PRICED = "priced rate"  # what a log calls the rate of `of_first`
WORDS = {COUNT: "", MACS: " of the MACs that gates save", MS: " of the ms that gates save"}


def priced(each: Trained, network: Network, options: TrainOptions) -> Trained:
    """The same, with what its rate is a share of in this network.

    Raises:
        SettingError: Its gates save nothing of that, or there is no table that says milliseconds.
    """
    if each.price == COUNT:
        return each
    sites = each.sites(network)
    if each.price == MACS:
        return replace(each, share=PricedMacs(network, sites))
    table = known_table(network, any_machine=options.any_machine)
    if table is None:
        raise SettingError(
            "price=ms needs a latency table of this very network: measure one first (gatecli price"
            " CHECKPOINT --runtime NAME)"
        )
    return replace(each, share=PricedMilliseconds(network, sites, table))


@torch.no_grad()
def rates_of(trained: Sequence[Trained], decisions: Mapping[str, Tensor]) -> dict[str, float]:
    """A batch's rates that losses hold where these have a price, by method."""
    found = {}
    for each in trained:
        if each.share is not None:
            found[each.name] = each.share.of_decisions(decisions).item()
    return found


def of_first(trained: Sequence[Trained], rates: Mapping[str, float]) -> dict[str, float]:
    """The first method's of these rates, as a log has it, if it has a price."""
    first = trained[0].name
    return {PRICED: rates[first]} if first in rates else {}


def with_table(
    network: Network,
    trained: Sequence[Trained],
    options: TrainOptions,
    run: Run | None,
    progress: Progress,
) -> None:
    """Let a network that is trained for milliseconds keep a table of them, in place.

    It is measured where there is none, once for a run: a resumed one goes by the same table.

    Raises:
        SettingError: The table is of another machine or runtime, or nothing can be measured.
        CheckpointError: The run's table is damaged, or cannot be written.
    """
    if all(each.price != MS for each in trained):
        if options.runtime is not None:
            raise SettingError(
                f"--runtime {options.runtime} is for milliseconds: expected it with --set price=ms"
            )
        return
    table = known_table(network, runtime=options.runtime, any_machine=options.any_machine)
    if table is not None:
        progress.say(f"price=ms by the checkpoint's table, of {table.where}")
        return
    how = How(runtime=options.runtime or How.runtime)
    # several processes go by one table
    results = together.from_main(lambda: _measured(network, how, run, progress))
    network.recipe = network.recipe.with_step(Step(OP, asdict(how), results))


def _measured(network: Network, how: How, run: Run | None, progress: Progress) -> dict[str, Any]:
    """The results of a step `price`: those that the run keeps, or measured now and kept."""
    results = None if run is None else run.table()
    if results is not None:
        return results
    progress.say(
        "price=ms, but the checkpoint has no latency table of this network: measuring one in"
        f" {how.runtime}, as gatecli price does"
    )
    _, measured = price(network, how, progress=progress)
    results = measured.facts()
    progress.say(f"price=ms by the table measured now, of {measured.where}")
    if run is not None:
        run.keep_table(results)
    return results
