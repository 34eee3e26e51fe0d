"""gatecli finetune: train the gates, and say what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from gatecli.cli.begun import Begun, check_alike
from gatecli.cli.images import open_data
from gatecli.cli.options import Checkpoint, Data, Output, Set, reads_checkpoints, spreads
from gatecli.cli.parsing import is_function, parse_pairs, remembered
from gatecli.cli.progress import Reporter
from gatecli.cli.render import exit_facts, gmacs
from gatecli.cli.resuming import restarted, resumable, unfinished
from gatecli.cli.session import Session
from gatecli.cli.tracking import Track, opened_trackers, shown
from gatecli.cli.training_options import Training
from gatecli.cli.workspace import default_out, run_folder

if TYPE_CHECKING:
    from gatecli.data import DataSet
    from gatecli.network import Network
    from gatecli.training import Finetuned, Run, TrainOptions
    from gatecli.training.trackers import Shown

__all__ = ["finetune"]


@spreads
@reads_checkpoints
def finetune(
    session: Session,
    context: typer.Context,
    *,
    checkpoint: Checkpoint = None,
    data: Data = None,
    set_: Set = None,
    training: Training = Training(),
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
            help="The same as --track tensorboard:DIR; needs pip install 'gatecli[report]'.",
            show_default=False,
        ),
    ] = None,
    track: Track = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the run that was interrupted last, with its settings."
        ),
    ] = False,
    output: Output = Output(),
) -> dict[str, Any]:
    """Train the gates, and the weights with them. Interrupted runs go on with --resume."""
    from gatecli.checkpoint import check_output
    from gatecli.stages.chance import chance_notes

    run = None
    if resume or restarted(session, context.params):
        run, begun = unfinished(session, context, force=output.force)
    else:
        begun = _begun(session, context.params, training)
    path = Path(begun.checkpoint)
    target = Path(begun.out)
    check_output(target, force=output.force, inputs=[path])
    # where a log goes changes no training: a resumed run may name others
    shows = opened_trackers(begun, track, tensorboard)
    # a state's word is not the user's
    work = _opened(session, begun, trusted=not resume or data is not None)
    result, run = _trained(session, work, run, shows)
    _report(session, result, run)
    for line in chance_notes(result.baseline_top1, work.dataset, "val"):
        session.say(f"note: before training, {line}")
    session.written(target)
    session.say(f"next: gatecli {_next(result.network)}")
    return _json(result, path, target)


def _begun(session: Session, params: Mapping[str, Any], training: Training) -> Begun:
    """All that is needed to start the run that the command line asks for again.

    Args:
        session: The command's.
        params: Every option by its parameter's name.
        training: Those that say how to train.
    """
    import torch

    from gatecli.checkpoint.formats import file_sha256

    path = session.checkpoint(params["checkpoint"])
    teacher = params["teacher"]
    tensorboard = params["tensorboard"]
    return Begun(
        checkpoint=str(path),
        sha256=file_sha256(path),
        out=str(params["out"] or default_out(path, "tuned")),
        data=remembered(params["data"]),
        settings=parse_pairs(params["set_"]),
        options={**asdict(training), "seed": session.seed},
        threads=torch.get_num_threads(),
        device=session.device,
        reading=session.reading,
        teacher=None if teacher is None else str(teacher),
        teacher_sha256=None if teacher is None else file_sha256(teacher),
        tensorboard=None if tensorboard is None else str(tensorboard),
        track=list(params["track"] or []),
    )


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What a run has been begun with, opened and checked."""

    begun: Begun
    options: TrainOptions
    network: Network
    dataset: DataSet
    teacher: Network | None


def _opened(session: Session, begun: Begun, *, trusted: bool) -> _Work:
    """Open what a run takes; a slip shows before what takes longer.

    Args:
        session: The command's.
        begun: The run.
        trusted: Whether the user has named the data set.
    """
    from gatecli.training import TrainOptions
    from gatecli.training.distill import check_teacher
    from gatecli.training.trained import trained_methods
    from gatecli.training.weights import is_plain

    options = TrainOptions(**begun.options)
    path = Path(begun.checkpoint)
    network = session.open(path) if is_plain(options) else session.open_gated(path, "train")
    trained_methods(network.recipe, begun.settings, options)
    dataset, samples = _data(session, network, begun, trusted=trusted)
    teacher = None if begun.teacher is None else session.open(Path(begun.teacher))
    check_teacher(network, teacher, options)
    begun = replace(begun, samples=samples)
    check_alike(begun)
    return _Work(
        begun=begun,
        options=options,
        network=network,
        dataset=dataset,
        teacher=teacher,
    )


def _trained(
    session: Session, work: _Work, run: Run | None, shows: list[Shown]
) -> tuple[Finetuned, Run]:
    """Train, and write what came out; `run` is None for one that begins."""
    from gatecli.checkpoint import write
    from gatecli.training import Run, finetune

    target = Path(work.begun.out)
    resumed = run is not None
    if run is None:
        start = Run.begin if session.is_main else Run
        run = start(run_folder(target), asdict(work.begun))
    watchers = shows if session.is_main else []
    showing = shown(session, run, work.begun, watchers, resumed=resumed)
    with resumable(session, work.begun), showing:
        result = finetune(
            work.network,
            work.dataset,
            work.options,
            changes=work.begun.settings,
            run=run if session.is_main else None,
            progress=Reporter(session),
            teacher=work.teacher,
        )
        if session.is_main:
            write(result.network, target)
            run.finish()
    return result, run


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
    if not network.gated_by:
        return "profile"
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
    from gatecli.training.pricing import WORDS

    step = result.network.recipe.last("finetune")
    if not result.network.gated_by:
        return "no gates"
    if step is not None and step.settings["method"] in methods.names():
        objective = methods.get(step.settings["method"]).objective
        if objective.traits.trains == "exits":
            return "no exit taken until gatecli calibrate"
    asked = "" if result.target_rate is None else f" for {result.target_rate:.2f} asked"
    return f"rate {result.achieved_rate:.3f}{asked}{WORDS[result.price]}"


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
        "price": result.price,
        "chosen": result.chosen,
        "batchnorm": result.batchnorm,
        "suited": result.suited,
        "history": result.history,
        **exit_facts(result.exits),
    }
