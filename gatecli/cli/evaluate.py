"""gatecli eval: accuracy, MACs and rates on a split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatecli.cli.images import open_data
from gatecli.cli.options import Checkpoint, Data, Loading, reads_checkpoints, spreads
from gatecli.cli.parsing import remembered
from gatecli.cli.precision import Precision, run_in
from gatecli.cli.progress import Reporter
from gatecli.cli.render import exit_facts, gmacs, percent, spread, table
from gatecli.cli.session import Session
from gatecli.cli.text import show

if TYPE_CHECKING:
    from gatecli.network import Network
    from gatecli.stages.evaluate import Evaluation

__all__ = ["evaluate"]


@spreads
@reads_checkpoints
def evaluate(
    session: Session,
    *,
    checkpoint: Checkpoint = None,
    data: Data = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    strategy: Annotated[
        str,
        typer.Option(
            help=(
                "threshold, stochastic, always-on; or of 5 stochastic runs together, ensemble (the"
                " mean probabilities) or vote (a tie goes to the greater mean probability);"
                " stochastic runs only where training draws the gates' decisions."
            )
        ),
    ] = "threshold",
    precision: Precision = "fp32",
    loading: Loading = Loading(),
) -> dict[str, Any]:
    """Measure accuracy, expected MACs and rates on one split."""
    from gatecli.stages import evaluate as evaluation
    from gatecli.stages.chance import chance_notes
    from gatecli.stages.fit import split_of

    path = session.checkpoint(checkpoint)
    network = session.open(path)
    run_in(session, network, precision)
    dataset = open_data(session, network, remembered(data))
    result = evaluation.evaluate(
        network,
        dataset,
        split=split_of(dataset, split),
        strategy=strategy,
        batch_size=loading.batch_size,
        workers=loading.workers,
        seed=session.seed,
        progress=Reporter(session),
    )
    if not session.json_:
        _print(session, result, path)
    for line in chance_notes(result.top1, dataset, split):
        session.say(f"note: {line}")
    return {
        "checkpoint": str(path),
        "split": split,
        "strategy": strategy,
        "precision": precision,
        **_facts(network, result),
    }


def _facts(network: Network, result: Evaluation) -> dict[str, Any]:
    """What the JSON says of a network and what was measured of it."""
    from gatecli.network.costs import site_rates

    facts: dict[str, Any] = {
        "arch": network.recipe.source.arch,
        "samples": result.samples,
        "top1": result.top1,
        "top5": result.top5,
        "params": network.params,
        "macs_dense": network.macs_dense,
        "macs_expected": result.macs_expected,
        "rates": site_rates(result.rates),
        **exit_facts(result.exits),
    }
    if result.macs_spread:
        facts["macs_per_image"] = result.macs_spread
    if result.top1_std is not None:
        facts["top1_std"] = result.top1_std
    if result.ties is not None:
        facts["ties"] = result.ties
    return facts


def _print(session: Session, result: Evaluation, path: Path) -> None:
    deviation = "" if result.top1_std is None else f" +- {result.top1_std:.2f}"
    show(
        f"{path} on {result.split} ({result.samples} images, {result.strategy}): top-1"
        f" {percent(result.top1)}{deviation}, top-5 {percent(result.top5)},"
        f" {gmacs(result.macs_expected)} GMACs an image"
    )
    if result.ties is not None:
        show(
            f"{result.ties} of {result.samples} images had ties, decided by the runs' mean"
            " probabilities"
        )
    if result.macs_spread.get("std"):
        show(spread(result.macs_spread))
    if result.exits:
        _print_exits(session, result)


def _print_exits(session: Session, result: Evaluation) -> None:
    columns = ("<exit", "leave there", "top-1 on all images", "on those that leave")
    rows = []
    for site, each in result.exits.items():
        share = f"{100 * each.share:.1f} %"
        rows.append((site, share, percent(each.top1_all), percent(each.top1_chosen)))
    table(session, f"\nexits on {result.split}", columns, rows)
