"""gatecli finetune: train the gates, and say what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from gatecli.checkpoint.atomic import check_name
from gatecli.cli.begun import Begun
from gatecli.cli.images import open_data
from gatecli.cli.options import Checkpoint, Data, Force, Out, Set, Workers, reads_checkpoints
from gatecli.cli.parsing import is_function, parse_pairs, remembered
from gatecli.cli.progress import Reporter
from gatecli.cli.render import exit_facts, gmacs
from gatecli.cli.resuming import resumable, unfinished
from gatecli.cli.session import Session
from gatecli.cli.workspace import RUNS, default_out

if TYPE_CHECKING:
    from gatecli.data import DataSet
    from gatecli.network import Network
    from gatecli.training import Finetuned, Run
    from gatecli.training.board import Board

__all__ = ["finetune"]


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
    from gatecli.checkpoint import check_output, write
    from gatecli.training import Run, TrainOptions
    from gatecli.training import finetune as train_gates
    from gatecli.training.board import on_board
    from gatecli.training.distill import check_teacher
    from gatecli.training.trained import trained_methods

    run = None
    if resume:
        run, begun = unfinished(session, context, force=force)
    else:
        begun = _begun(session, context.params)
    path = Path(begun.checkpoint)
    target = Path(begun.out)
    check_output(target, force=force, inputs=[path])
    options = TrainOptions(**begun.options)
    # where a log goes changes no training: a resumed run may name another folder
    board = _board(tensorboard or begun.tensorboard)
    network = session.open_gated(path, "train")
    # a slip in --set costs no time
    trained_methods(network.recipe, begun.settings, options.methods)
    # a state's word is not the user's
    dataset, samples = _data(session, network, begun, trusted=not resume or data is not None)
    taught_by = None if begun.teacher is None else session.open(Path(begun.teacher))
    check_teacher(network, taught_by, options)
    begun = replace(begun, samples=samples)
    run = run or Run.begin(RUNS / target.name.removesuffix(".safetensors"), asdict(begun))
    with resumable(session, begun), on_board(run, board):
        result = train_gates(
            network,
            dataset,
            options,
            changes=begun.settings,
            run=run,
            progress=Reporter(session),
            teacher=taught_by,
        )
        write(result.network, target)
        run.finish()
    _report(session, result, run)
    session.written(target)
    session.say(f"next: gatecli {_next(result.network)}")
    return _json(result, path, target)


def _begun(session: Session, params: Mapping[str, Any]) -> Begun:
    """All that is needed to start the run that the command line asks for again.

    Args:
        session: The command's.
        params: Every option by its parameter's name, the common ones too.
    """
    import torch

    from gatecli.checkpoint.formats import file_sha256
    from gatecli.training import TrainOptions

    path = session.checkpoint(params["checkpoint"])
    teacher = params["teacher"]
    tensorboard = params["tensorboard"]
    return Begun(
        checkpoint=str(path),
        sha256=file_sha256(path),
        out=str(params["out"] or default_out(path, "tuned")),
        data=remembered(params["data"]),
        settings=parse_pairs(params["set_"]),
        options={option.name: params[option.name] for option in fields(TrainOptions)},
        threads=torch.get_num_threads(),
        device=session.device,
        reading=session.reading,
        teacher=None if teacher is None else str(teacher),
        teacher_sha256=None if teacher is None else file_sha256(teacher),
        tensorboard=None if tensorboard is None else str(tensorboard),
    )


def _board(folder: str | Path | None) -> Board | None:
    """The TensorBoard log asked for, if any; its folder's name is checked before any work."""
    from gatecli.training.board import Board

    if folder is None:
        return None
    check_name(Path(folder))
    return Board(Path(folder))


def _data(
    session: Session, network: Network, begun: Begun, *, trusted: bool
) -> tuple[DataSet, dict[str, str]]:
    """The data set and its fingerprint.

    Args:
        session: The command's.
        network: What the images are for.
        begun: The run, whose fingerprint, where it has one, must be the same.
        trusted: Whether the user has named the data set.
    """
    from gatecli.data.fingerprint import check_same, fingerprint

    dataset = open_data(session, network, begun.data, trusted=trusted)
    samples = fingerprint(dataset, pixels=not is_function(dataset.spec))
    check_same(dataset, samples, begun.samples)
    return dataset, samples


def _next(network: Network) -> str:
    """The command that comes next."""
    return "calibrate --max-drop 1" if network.site_exits else "prune"


def _report(session: Session, result: Finetuned, run: Run) -> None:
    session.say(f"chosen {result.chosen}")
    norms = result.batchnorm
    if norms["after"] is not None:
        session.say(
            f"BatchNorm re-estimated: val top-1 {norms['before']:.2f} before, {norms['after']:.2f}"
            f" after; kept: {norms['kept']}"
        )
    for site, each in result.exits.items():
        chosen = "" if each.top1_chosen is None else f", {each.top1_chosen:.2f} of those"
        session.say(
            f"{site}: {100 * each.share:.1f} % leave; top-1 {each.top1_all:.2f} of all val"
            f" images{chosen}"
        )
    session.say(
        f"val top-1 {result.top1:.2f} (all gates open before training: {result.baseline_top1:.2f}),"
        f" {_rates(result)}, {gmacs(result.macs_expected)} GMACs of"
        f" {gmacs(result.network.macs_dense)}; log, best and last state in {run.folder}"
    )


def _rates(result: Finetuned) -> str:
    """What to say of the rate that was reached."""
    from gatecli import methods

    step = result.network.recipe.last("finetune")
    if step is not None and methods.get(step.settings["method"]).trains == "exits":
        return "no exit taken until gatecli calibrate"
    asked = "" if result.target_rate is None else f" for {result.target_rate:.2f} asked"
    return f"rate {result.achieved_rate:.3f}{asked}"


def _json(result: Finetuned, path: Path, target: Path) -> dict[str, Any]:
    from gatecli.network.costs import site_rates

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
        **exit_facts(result.exits),
    }
