"""gatecli prune"""
from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from gatecli.cli.progress import Reporter
from gatecli.cli.render import gmacs, millions
from gatecli.cli.session import BatchSize, Checkpoint, Data, Force, Out, Session, Workers, reads_checkpoints, remembered
from gatecli.cli.workspace import default_out

if TYPE_CHECKING:
    from gatecli.costs import Rates
    from gatecli.network import Network


@reads_checkpoints
def prune(
    session: Session,
    checkpoint: Checkpoint = None,
    threshold: Annotated[Optional[float], typer.Option(help="A branch runs where P(on) is above it; none: the calibrated threshold, else .5.")] = None,
    collapse: Annotated[float, typer.Option(help="Data-dependent: a rate below it removes the branch, one above 1 - it removes the gate.")] = 0.01,
    static: Annotated[Optional[float], typer.Option(help="Data-dependent: decide what is left by rate > this, instead of leaving it dynamic.")] = None,
    round_to: Annotated[int, typer.Option(help="Where a branch loses some of its filters, keep a multiple of this, as fast kernels like it (8).")] = 1,
    data: Data = None,
    batch_size: BatchSize = 256,
    workers: Workers = 0,
    out: Out = None,
    force: Force = False,
) -> dict[str, Any]:
    """Remove what never runs, and gates that never close. The file, the parameters and the MACs shrink; the function stays."""
    from gatecli import pruning
    from gatecli.checkpoint import check_output, write

    path = session.checkpoint(checkpoint)
    target = out or default_out(path, "pruned")
    check_output(target, force, [path])
    network = session.open(path)
    rates = _rates(session, network, remembered(data), threshold, batch_size, workers)
    result = pruning.prune(network, threshold=threshold, rates=rates, collapse=collapse, static=static, round_to=round_to)
    write(result.network, target)
    _report(session, network, result, path, target)
    session.written(target)
    session.say("next: gatecli profile")
    return {
        "checkpoint": str(path), "out": str(target), "arch": network.recipe.source.arch, "removed": [*result.removed, *({"site": site, "units": units} for site, units in result.thinned.items())], "ungated": result.ungated, "freed": result.freed,
        "kept_dynamic": result.kept_dynamic, "stuck": result.stuck, "params_before": result.params_before, "params": result.network.params, "macs_before": result.macs_before,
        "macs_dense": result.network.macs_dense, "macs_expected": result.macs_expected, "max_logit_change": result.max_logit_change,
    }  # fmt: skip


def _rates(session: Session, network: Network, data: str | None, threshold: float | None, batch_size: int, workers: int) -> Rates | None:
    """Rates on val of the data-dependent gates, at `threshold`; None where all gates are data-independent."""
    if not any(gate.data_dependent for gate in network.site_gates.values()) or (data is None and not network.recipe.data):
        return None
    from gatecli.data import batches, steps
    from gatecli.inference import score
    from gatecli.inputs import open_data
    from gatecli.record import at_threshold

    split = open_data(network, data).splits["val"]
    with at_threshold(network, threshold):
        images = batches(split, input=network.input, batch_size=batch_size, workers=workers)
        return score(network, images, Reporter(session), "measuring rates on val", steps(split, batch_size)).rates


def _report(session: Session, network: Network, result: Any, path: Path, target: Path) -> None:
    smaller = result.network
    session.say(f"removed {len(result.removed)}: {', '.join(result.removed) or '-'}")
    for site, units in result.thinned.items():
        session.say(f"removed {len(units)} units of {site}: {', '.join(map(str, units))}")
    session.say(f"always on, gate removed {len(result.ungated)}: {', '.join(result.ungated) or '-'}")
    for site, units in result.freed.items():
        session.say(f"always on, decided no more: {len(units)} units of {site}")
    session.say(f"still dynamic {len(result.kept_dynamic)}: {', '.join(result.kept_dynamic) or '-'}")
    for site, why in result.stuck.items():
        session.say(f"note: {site} never runs, but stays in the file: {why}")
    session.say(
        f"parameters {millions(result.params_before)} -> {millions(smaller.params)}, GMACs {gmacs(result.macs_before)} -> {gmacs(smaller.macs_dense)}, "
        f"file {os.path.getsize(path) / 1e6:.2f} -> {os.path.getsize(target) / 1e6:.2f} MB, logits changed by {result.max_logit_change:.1e}"
    )
