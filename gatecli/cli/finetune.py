"""gatecli finetune"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from gatecli.cli.progress import Reporter
from gatecli.cli.render import gmacs
from gatecli.cli.session import Checkpoint, Data, Force, Out, Session, Set, Workers, is_function, parse_pairs, reads_checkpoints, remembered
from gatecli.cli.workspace import RUNS, default_out
from gatecli.errors import CheckpointError, Interrupted, SettingError, TrainingError

if TYPE_CHECKING:
    from gatecli.training import Finetuned, Run

OPTIONS = ("epochs", "lr", "batch_size", "weight_decay", "momentum", "schedule", "precision", "augment", "label_smoothing", "workers", "bn_batches", "save_every", "max_drop", "max_gmacs", "cache_features", "train", "distill", "temperature")


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
    schedule: Annotated[str, typer.Option(help="step (x0.1 at 30, 60 and 90 % of the epochs), cosine or constant.")] = "step",
    precision: Annotated[str, typer.Option(help="fp32 or bf16 (autocast).")] = "fp32",
    augment: Annotated[Optional[str], typer.Option(help="none, shift, crop-flip or imagenet; none given: the data set's own.")] = None,
    label_smoothing: Annotated[float, typer.Option(help="Label smoothing.")] = 0.0,
    workers: Workers = 0,
    bn_batches: Annotated[int, typer.Option(help="Batches to re-estimate BatchNorm statistics with; 0: leave them.")] = 200,
    save_every: Annotated[float, typer.Option(help="Seconds between saved states.")] = 60.0,
    max_drop: Annotated[Optional[float], typer.Option(help="Lower the target rate as long as val top-1 stays within so many points of the baseline, and keep the cheapest such state.")] = None,
    max_gmacs: Annotated[Optional[float], typer.Option(help="Lower the target rate until an image costs at most so many GMACs, and keep the most accurate such state.")] = None,
    cache_features: Annotated[bool, typer.Option("--cache-features", help="Exits: compute what they see once, for all epochs; goes without augmentation.")] = False,
    train: Annotated[Optional[str], typer.Option(help="Attached methods to train together, with commas between, as early-exit,aig-perbatch; none: the latest. --set is for the first.", show_default=False)] = None,
    distill: Annotated[float, typer.Option(help="Weight of a loss that draws the answers to a teacher's: knowledge distillation.")] = 0.0,
    temperature: Annotated[float, typer.Option(help="By which distillation softens both answers.")] = 4.0,
    teacher: Annotated[Optional[Path], typer.Option(help="Checkpoint that teaches; none: the network as it is now, all gates open, no exit taken.", show_default=False)] = None,
    tensorboard: Annotated[Optional[Path], typer.Option(help="Folder for a TensorBoard log; needs pip install 'gatecli[report]'.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that was interrupted last, with its settings.")] = False,
    out: Out = None,
    force: Force = False,
) -> dict[str, Any]:
    """Train the gates, and the weights with them. Interrupted runs go on with --resume."""
    from gatecli import training
    from gatecli.checkpoint import check_output, write
    from gatecli.inputs import open_data
    from gatecli.reading import file_sha256
    from gatecli.training.board import Board, on_board
    from gatecli.training.distill import check_teacher
    from gatecli.training.trained import trained_methods

    if resume:
        run, about = _resumed(session, context)
    else:
        options = {name: context.params[name] for name in OPTIONS}
        about = _about(session, checkpoint, out, remembered(data), parse_pairs(set_), options, force)
        about["tensorboard"] = None if tensorboard is None else str(tensorboard)
        about |= {"teacher": None if teacher is None else str(teacher), "teacher_sha256": None if teacher is None else file_sha256(teacher)}
        run = None
    path, target = Path(about["checkpoint"]), Path(about["out"])
    check_output(target, about["force"] or force, [path])
    chosen = training.TrainOptions(**about["options"])
    folder = tensorboard or about.get("tensorboard")  # where a log goes changes no training: a resumed run may name another
    board = None if folder is None else Board(Path(folder))
    network = session.open(path)
    if not network.methods:
        raise TrainingError(f"{path} has no gates to train: attach a method first (gatecli attach {path} --method NAME)")
    trained_methods(network.recipe, about["settings"], chosen.methods)  # a slip in --set costs no time
    dataset = open_data(network, about["data"], trusted=not resume or data is not None)  # a state's word is not the user's
    taught_by = None if about.get("teacher") is None else session.open(Path(about["teacher"]))
    check_teacher(network, taught_by, chosen)
    run = run or training.Run.begin(RUNS / target.name.removesuffix(".safetensors"), about)
    with _resumable(session, about), on_board(run, board):
        result = training.finetune(network, dataset, chosen, changes=about["settings"], run=run, progress=Reporter(session), teacher=taught_by)
        write(result.network, target)
        run.finish()
    _report(session, result, run)
    session.written(target)
    session.say(f"next: gatecli {'calibrate --max-drop 1' if result.network.site_exits else 'prune'}")
    return _json(result, path, target)


def _about(session: Session, checkpoint: str | None, out: Path | None, data: str | None, settings: dict[str, str], options: dict[str, Any], force: bool) -> dict[str, Any]:
    """All that is needed to start this run again."""
    import torch

    from gatecli.reading import file_sha256

    path = session.checkpoint(checkpoint)
    return {
        "checkpoint": str(path), "sha256": file_sha256(path), "out": str(out or default_out(path, "tuned")), "data": data, "settings": settings, "force": force,
        "options": {**options, "seed": session.seed}, "threads": torch.get_num_threads(), "device": session.device, "reading": session.reading,
    }  # fmt: skip


def _resumed(session: Session, context: typer.Context) -> tuple[Run, dict[str, Any]]:
    """The unfinished run and what it was started with. Raises SettingError where the command line contradicts it."""
    import torch

    from gatecli.reading import file_sha256
    from gatecli.training import Run, TrainOptions
    from gatecli.training.run import intact

    run = Run.unfinished(RUNS)
    about = run.about
    with intact(run.state):
        was = {**about["options"], **about["reading"], **{name: about[name] for name in ("checkpoint", "out", "data", "threads", "device")}, "set_": about["settings"], "teacher": about.get("teacher")}
        files = {Path(about["checkpoint"]): about["sha256"]} | ({} if about.get("teacher") is None else {Path(about["teacher"]): about["teacher_sha256"]})
        TrainOptions(**about["options"])
        Path(about.get("tensorboard") or "")
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        if name in was and source is not None and source.name == "COMMANDLINE":
            given = parse_pairs(value) if name == "set_" else remembered(value) if name == "data" else value
            if str(given) != str(was[name]):
                option = name if name == "checkpoint" else f"--{name.strip('_').replace('_', '-')}"
                raise SettingError(f"--resume goes on with the run's own settings: {option} was {was[name]}, not {given}; leave it out, or start a new run without --resume")
    changed = [path for path, sha256 in files.items() if file_sha256(path) != sha256]
    for path in changed:
        raise CheckpointError(f"{path} is not the file that the run began with (its SHA-256 is another): put that one back, or start a new run without --resume")
    torch.set_num_threads(about["threads"])
    session.device, session.reading = about["device"], _trusted(session, about["reading"])
    session.say(f"resuming {about['out']} from {run.folder}")
    return run, about


def _trusted(session: Session, reading: dict[str, Any]) -> dict[str, Any]:
    """How the run read its checkpoint, less what would run code on a file's word: for that the user must ask again."""
    from gatecli.architectures.arguments import is_callable_name

    asked = {"trust_pickle"} | ({"arch"} if is_callable_name(reading["arch"] or "") else set())
    return {**reading, **{name: session.reading[name] for name in asked}}


@contextmanager
def _resumable(session: Session, about: dict[str, Any]) -> Iterator[None]:
    """Where the work is interrupted, say how to go on."""
    from gatecli.architectures.arguments import is_callable_name

    arch, data = about["reading"]["arch"] or "", about["data"] or ""
    again = "gatecli finetune --resume" + (f" --arch {arch}" if is_callable_name(arch) else "") + (f" --data {data}" if is_function(data) else "")
    try:
        with session.working():
            yield
    except Interrupted as error:
        raise Interrupted(f"{error}; go on with: {again}") from error
    except KeyboardInterrupt:
        raise Interrupted(f"stopped at once; go on from the last saved state with: {again}") from None


def _report(session: Session, result: Finetuned, run: Any) -> None:
    from gatecli import methods

    norms = result.batchnorm
    session.say(f"chosen {result.chosen}")
    if norms["after"] is not None:
        session.say(f"BatchNorm re-estimated: val top-1 {norms['before']:.2f} before, {norms['after']:.2f} after; kept: {norms['kept']}")
    step = result.network.recipe.last("finetune")
    if step is not None and methods.get(step.settings["method"]).trains == "exits":
        rates = "no exit taken until gatecli calibrate"
    else:
        rates = f"rate {result.achieved_rate:.3f}" + ("" if result.target_rate is None else f" for {result.target_rate:.2f} asked")
    for site, each in result.exits.items():
        chosen = "" if each.top1_chosen is None else f", {each.top1_chosen:.2f} of those"
        session.say(f"{site}: {100 * each.share:.1f} % leave; top-1 {each.top1_all:.2f} of all val images{chosen}")
    session.say(
        f"val top-1 {result.top1:.2f} (all gates open before training: {result.baseline_top1:.2f}), {rates}, "
        f"{gmacs(result.macs_expected)} GMACs of {gmacs(result.network.macs_dense)}; log, best and last state in {run.folder}"
    )


def _json(result: Finetuned, path: Path, target: Path) -> dict[str, Any]:
    from gatecli.costs import site_rates

    network = result.network
    return {
        "checkpoint": str(path), "out": str(target), "arch": network.recipe.source.arch, "epochs": result.epochs, "split": "val", "top1": result.top1,
        "baseline_top1": result.baseline_top1, "params": network.params, "macs_dense": network.macs_dense, "macs_expected": result.macs_expected,
        "rates": site_rates(result.rates), "target_rate": result.target_rate, "achieved_rate": result.achieved_rate, "chosen": result.chosen,
        "batchnorm": result.batchnorm, "history": result.history, **({"exits": {site: asdict(each) for site, each in result.exits.items()}} if result.exits else {}),
    }  # fmt: skip
