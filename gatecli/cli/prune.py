"""The command `gatecli prune`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from gatecli.cli.decide import Asked, Deciding, facts, say_measured
from gatecli.cli.images import open_data
from gatecli.cli.options import Checkpoint, Data, Loading, Output, reads_checkpoints
from gatecli.cli.parsing import remembered
from gatecli.cli.progress import Reporter
from gatecli.cli.render import gmacs, millions
from gatecli.cli.session import Session
from gatecli.cli.workspace import output_of
from gatecli.traced.latency import recorded_table

if TYPE_CHECKING:
    from torch import Tensor

    from gatecli.network import Network
    from gatecli.stages.predict import Scores
    from gatecli.stages.prune import Pruned

__all__ = ["prune"]

SHOWN = 12  # units that are named of those removed at a site


@reads_checkpoints
def prune(
    session: Session,
    *,
    checkpoint: Checkpoint = None,
    threshold: Annotated[
        Optional[float],
        typer.Option(
            help="A branch runs where P(on) is above it; none: the calibrated threshold, else .5."
        ),
    ] = None,
    collapse: Annotated[
        float,
        typer.Option(
            help=(
                "Data-dependent: a rate below it removes the branch, one above 1 - it removes the"
                " gate."
            )
        ),
    ] = 0.01,
    static: Annotated[
        Optional[float],
        typer.Option(
            help=(
                "Data-dependent: decide what is left by rate > this, instead of leaving it dynamic."
            )
        ),
    ] = None,
    round_to: Annotated[
        int,
        typer.Option(
            help=(
                "Where a branch loses some of its filters, keep a multiple of this, as fast kernels"
                " like it (8)."
            )
        ),
    ] = 1,
    deciding: Deciding = Deciding(),
    data: Data = None,
    loading: Loading = Loading(),
    output: Output = Output(),
) -> dict[str, Any]:
    """Remove what never runs, and gates that never close.

    The file, the parameters and the MACs shrink; the function stays.
    """
    from gatecli.checkpoint import write
    from gatecli.gates.observe import at_threshold
    from gatecli.stages import prune as pruning

    deciding.check()
    path = session.checkpoint(checkpoint)
    target = output_of(path, "pruned", output)
    network = session.open(path)
    _say_set_aside(session, network, threshold)
    val = None
    if _asks_for_rates(network, data):
        val = Val(session, network, remembered(data), loading)
    with at_threshold(network, threshold):
        before = None if val is None else val.score(network, "measuring rates on val")
    rates = None if before is None else before.rates
    how = pruning.How(threshold=threshold, collapse=collapse, static=static)
    measured = None
    if deciding.decide == "measured":
        images = None if val is None else val.first(network)
        asked = Asked(how=how, rates=rates, round_to=round_to, images=images)
        measured = deciding.measured(session, network, asked)
        result = measured.pruned
    else:
        result = pruning.prune_by(network, how, rates=rates, round_to=round_to)
    scores = None
    if val is not None and (result.kept_dynamic or measured is not None):
        scores = val.score(result.network, "measuring what is left on val")
        result = pruning.with_scores(result, scores)
    write(result.network, target, reload=True)
    _report(session, network, result, path, target)
    _say_grains(session, network, result, round_to)
    if measured is not None:
        say_measured(session, measured, before, scores)
    session.written(target)
    session.say("next: gatecli profile")
    return {**_json(result, scores, path, target), **facts(measured, before)}


def _say_set_aside(session: Session, network: Network, threshold: float | None) -> None:
    """Say which calibrated thresholds a typed one takes the place of."""
    if threshold is None or all(step.op != "calibrate" for step in network.recipe.steps):
        return
    gates = network.site_gates.values()
    count = sum(bool((gate.threshold != threshold).any()) for gate in gates)
    if count:
        session.say(
            f"note: --threshold {threshold:g} takes the place of what calibrate chose for {count}"
            " gates; leave it out to keep that"
        )


def _say_grains(session: Session, network: Network, result: Pruned, round_to: int) -> None:
    """Say that what is left is slow where the network's table of milliseconds was measured."""
    table = recorded_table(network.recipe)
    if table is None:
        return
    grains = []
    for site, gone in result.thinned.items():
        grain = table.sites[site].grain if site in table.sites else 1
        left = network.sites[site].units - len(gone)
        if math.gcd(grain, round_to) < grain and left % grain:
            grains.append(grain)
    if grains:
        session.say(
            f"note: {len(grains)} sites have other numbers of units than {table.runtime} is quick"
            f" with; calibrate --max-ms keeps to these, or prune --round-to {max(grains)}"
        )


def _json(result: Any, scores: Scores | None, path: Path, target: Path) -> dict[str, Any]:
    thinned = [{"site": site, "units": units} for site, units in result.thinned.items()]
    return {
        "checkpoint": str(path),
        "out": str(target),
        "arch": result.network.recipe.source.arch,
        "removed": [*result.removed, *thinned],
        "padded": result.padded,
        "ungated": result.ungated,
        "freed": result.freed,
        "kept_dynamic": result.kept_dynamic,
        "stuck": result.stuck,
        "params_before": result.params_before,
        "params": result.network.params,
        "macs_before": result.macs_before,
        "macs_dense": result.network.macs_dense,
        "macs_expected": result.macs_expected,
        "max_logit_change": result.max_logit_change,
        "top1": None if scores is None else scores.top1,
        "split": None if scores is None else "val",
    }


def _asks_for_rates(network: Network, data: str | None) -> bool:
    """Whether gates depend on the image, and there are images to ask."""
    dependent = any(gate.data_dependent for gate in network.site_gates.values())
    return dependent and (data is not None or bool(network.recipe.data))


class Val:
    """The val split of the data set named, or remembered by `network`."""

    def __init__(
        self, session: Session, network: Network, data: str | None, loading: Loading
    ) -> None:

        self.session = session
        self.loading = loading
        self.split = open_data(session, network, data).splits["val"]

    def score(self, network: Network, label: str) -> Scores:
        """What a network does on the split."""
        from gatecli.data import batches, steps
        from gatecli.stages.predict import score

        size, workers = self.loading.batch_size, self.loading.workers
        images = batches(self.split, input=network.input, batch_size=size, workers=workers)
        return score(network, images, Reporter(self.session), label, steps(self.split, size))

    def first(self, network: Network) -> Tensor:
        """The first images of the split, (N, C, H, W)."""
        from gatecli.data import batches

        size = min(self.loading.batch_size, len(self.split))
        return next(iter(batches(self.split, input=network.input, batch_size=size)))[0]


def _few(units: Sequence[int]) -> str:
    """Some of the units, and that there are more: JSON has them all."""
    more = ", ..." if len(units) > SHOWN else ""
    return ", ".join(map(str, units[:SHOWN])) + more


def _report(session: Session, network: Network, result: Any, path: Path, target: Path) -> None:
    smaller = result.network
    session.say(f"removed {len(result.removed)}: {', '.join(result.removed) or '-'}")
    for site, units in result.thinned.items():
        count = result.padded.get(site)
        more = f"; {count} channels or heads of these stay, as zeros (--round-to)" if count else ""
        session.say(f"removed {len(units)} units of {site}: {_few(units)}{more}")
    session.say(
        f"always on, gate removed {len(result.ungated)}: {', '.join(result.ungated) or '-'}"
    )
    for site, units in result.freed.items():
        session.say(f"always on, decided no more: {len(units)} units of {site}")
    session.say(
        f"still dynamic {len(result.kept_dynamic)}: {', '.join(result.kept_dynamic) or '-'}"
    )
    for site, why in result.stuck.items():
        session.say(f"note: {site} never runs, but stays in the file: {why}")
    session.say(
        f"parameters {millions(result.params_before)} -> {millions(smaller.params)}, GMACs"
        f" {gmacs(result.macs_before)} -> {gmacs(smaller.macs_dense)}, file"
        f" {os.path.getsize(path) / 1e6:.2f} -> {os.path.getsize(target) / 1e6:.2f} MB, logits"
        f" changed by {result.max_logit_change:.1e}"
    )
