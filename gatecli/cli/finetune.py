"""gatecli finetune"""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from gatecli.checkpoint.atomic import check_name
from gatecli.cli.progress import Reporter
from gatecli.cli.render import gmacs
from gatecli.cli.resuming import Begun, resumable, unfinished
from gatecli.cli.session import (
    Checkpoint,
    Data,
    Force,
    Out,
    Session,
    Set,
    Workers,
    is_function,
    parse_pairs,
    reads_checkpoints,
    remembered,
)
from gatecli.cli.workspace import RUNS, default_out
from gatecli.errors import TrainingError

if TYPE_CHECKING:
    from gatecli.training import Finetuned

OPTIONS = (
    "epochs",
    "lr",
    "batch_size",
    "weight_decay",
    "momentum",
    "schedule",
    "precision",
    "augment",
    "label_smoothing",
    "workers",
    "bn_batches",
    "save_every",
    "max_drop",
    "max_gmacs",
    "cache_features",
    "train",
    "distill",
    "temperature",
)


@reads_checkpoints
def finetune(
    session: Session,
    context: typer.Context,
    checkpoint: Checkpoint = None,
    data: Data = None,
    set_: Set = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training split.")] = 100,
    lr: Annotated[float, typer.Option(help="Learning rate at the start.")] = 0.1,
    batch_size: Annotated[int, typer.Option(help="Images a batch.")] = 256,
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 1e-4,
    momentum: Annotated[float, typer.Option(help="Momentum of SGD.")] = 0.9,
    schedule: Annotated[
        str, typer.Option(help="step (x0.1 at 30, 60 and 90 % of the epochs), cosine or constant.")
    ] = "step",
    precision: Annotated[str, typer.Option(help="fp32 or bf16 (autocast).")] = "fp32",
    augment: Annotated[
        Optional[str],
        typer.Option(help="none, shift, crop-flip or imagenet; none given: the data set's own."),
    ] = None,
    label_smoothing: Annotated[float, typer.Option(help="Label smoothing.")] = 0.0,
    workers: Workers = 0,
    bn_batches: Annotated[
        int, typer.Option(help="Batches to re-estimate BatchNorm statistics with; 0: leave them.")
    ] = 200,
    save_every: Annotated[float, typer.Option(help="Seconds between saved states.")] = 60.0,
    max_drop: Annotated[
        Optional[float],
        typer.Option(
            help=(
                "Lower the target rate as long as val top-1 stays within so many points of the"
                " baseline, and keep the cheapest such state."
            )
        ),
    ] = None,
    max_gmacs: Annotated[
        Optional[float],
        typer.Option(
            help=(
                "Lower the target rate until an image costs at most so many GMACs, and keep the"
                " most accurate such state."
            )
        ),
    ] = None,
    cache_features: Annotated[
        bool,
        typer.Option(
            "--cache-features",
            help="Exits: compute what they see once, for all epochs; goes without augmentation.",
        ),
    ] = False,
    train: Annotated[
        Optional[str],
        typer.Option(
            help=(
                "Attached methods to train together, with commas between, as"
                " early-exit,aig-perbatch; none: the latest. --set is for the first."
            ),
            show_default=False,
        ),
    ] = None,
    distill: Annotated[
        float,
        typer.Option(
            help="Weight of a loss that draws the answers to a teacher's: knowledge distillation."
        ),
    ] = 0.0,
    temperature: Annotated[
        float, typer.Option(help="By which distillation softens both answers.")
    ] = 4.0,
    teacher: Annotated[
        Optional[Path],
        typer.Option(
            help=(
                "Checkpoint that teaches; none: the network as it is now, all gates open, no exit"
                " taken."
            ),
            show_default=False,
        ),
    ] = None,
    tensorboard: Annotated[
        Optional[Path],
        typer.Option(
            help="Folder for a TensorBoard log; needs pip install 'gatecli[report]'.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run that was interrupted last, with its settings."
        ),
    ] = False,
    out: Out = None,
    force: Force = False,
) -> dict[str, Any]:
    """Train the gates, and the weights with them. Interrupted runs go on with --resume."""
    from gatecli import training
    from gatecli.checkpoint import check_output, write
    from gatecli.data.fingerprint import check_same, fingerprint
    from gatecli.inputs import open_data
    from gatecli.training.board import Board, on_board
    from gatecli.training.distill import check_teacher
    from gatecli.training.trained import trained_methods

    run, begun = (
        unfinished(session, context, force) if resume else (None, _begun(session, context.params))
    )
    path, target = Path(begun.checkpoint), Path(begun.out)
    check_output(target, force, [path])
    chosen = training.TrainOptions(**begun.options)
    folder = (
        tensorboard or begun.tensorboard
    )  # where a log goes changes no training: a resumed run may name another
    check_name(Path(folder or ""))
    board = None if folder is None else Board(Path(folder))
    network = session.open(path)
    if not network.methods:
        raise TrainingError(
            f"{path} has no gates to train: attach a method first (gatecli attach"
            f" {shlex.quote(str(path))} --method NAME)"
        )
    trained_methods(network.recipe, begun.settings, chosen.methods)  # a slip in --set costs no time
    dataset = open_data(
        network, begun.data, trusted=not resume or data is not None
    )  # a state's word is not the user's
    samples = fingerprint(dataset, pixels=not is_function(dataset.spec))
    check_same(dataset, samples, begun.samples)
    taught_by = None if begun.teacher is None else session.open(Path(begun.teacher))
    check_teacher(network, taught_by, chosen)
    begun = replace(begun, samples=samples)
    run = run or training.Run.begin(RUNS / target.name.removesuffix(".safetensors"), asdict(begun))
    with resumable(session, begun), on_board(run, board):
        result = training.finetune(
            network,
            dataset,
            chosen,
            changes=begun.settings,
            run=run,
            progress=Reporter(session),
            teacher=taught_by,
        )
        write(result.network, target)
        run.finish()
    _report(session, result, run)
    session.written(target)
    session.say(
        f"next: gatecli {'calibrate --max-drop 1' if result.network.site_exits else 'prune'}"
    )
    return _json(result, path, target)


def _begun(session: Session, params: dict[str, Any]) -> Begun:
    """All that is needed to start the run that the command line asks for again."""
    import torch

    from gatecli.checkpoint.formats import file_sha256

    path, teacher = session.checkpoint(params["checkpoint"]), params["teacher"]
    return Begun(
        checkpoint=str(path),
        sha256=file_sha256(path),
        out=str(params["out"] or default_out(path, "tuned")),
        data=remembered(params["data"]),
        settings=parse_pairs(params["set_"]),
        options={**{name: params[name] for name in OPTIONS}, "seed": session.seed},
        threads=torch.get_num_threads(),
        device=session.device,
        reading=session.reading,
        teacher=None if teacher is None else str(teacher),
        teacher_sha256=None if teacher is None else file_sha256(teacher),
        tensorboard=None if params["tensorboard"] is None else str(params["tensorboard"]),
    )


def _report(session: Session, result: Finetuned, run: Any) -> None:
    from gatecli import methods

    norms = result.batchnorm
    session.say(f"chosen {result.chosen}")
    if norms["after"] is not None:
        session.say(
            f"BatchNorm re-estimated: val top-1 {norms['before']:.2f} before, {norms['after']:.2f}"
            f" after; kept: {norms['kept']}"
        )
    step = result.network.recipe.last("finetune")
    if step is not None and methods.get(step.settings["method"]).trains == "exits":
        rates = "no exit taken until gatecli calibrate"
    else:
        rates = f"rate {result.achieved_rate:.3f}" + (
            "" if result.target_rate is None else f" for {result.target_rate:.2f} asked"
        )
    for site, each in result.exits.items():
        chosen = "" if each.top1_chosen is None else f", {each.top1_chosen:.2f} of those"
        session.say(
            f"{site}: {100 * each.share:.1f} % leave; top-1 {each.top1_all:.2f} of all val"
            f" images{chosen}"
        )
    session.say(
        f"val top-1 {result.top1:.2f} (all gates open before training: {result.baseline_top1:.2f}),"
        f" {rates}, {gmacs(result.macs_expected)} GMACs of {gmacs(result.network.macs_dense)}; log,"
        f" best and last state in {run.folder}"
    )


def _json(result: Finetuned, path: Path, target: Path) -> dict[str, Any]:
    from gatecli.costs import site_rates

    network = result.network
    return {
        "checkpoint": str(path),
        "out": str(target),
        "arch": network.recipe.source.arch,
        "epochs": result.epochs,
        "split": "val",
        "top1": result.top1,
        "baseline_top1": result.baseline_top1,
        "params": network.params,
        "macs_dense": network.macs_dense,
        "macs_expected": result.macs_expected,
        "rates": site_rates(result.rates),
        "target_rate": result.target_rate,
        "achieved_rate": result.achieved_rate,
        "chosen": result.chosen,
        "batchnorm": result.batchnorm,
        "history": result.history,
        **(
            {"exits": {site: asdict(each) for site, each in result.exits.items()}}
            if result.exits
            else {}
        ),
    }
