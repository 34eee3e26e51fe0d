"""gatecli finetune: train the gates, and say what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from gatecli.cli.begun import Begun, check_alike
from gatecli.cli.config import configured
from gatecli.cli.images import open_data
from gatecli.cli.options import Checkpoint, Data, Output, Set, reads_checkpoints, spreads
from gatecli.cli.parsing import is_function, parse_pairs, remembered
from gatecli.cli.progress import Reporter
from gatecli.cli.recipe_file import group_of, set_common
from gatecli.cli.resuming import restarted, resumable, unfinished
from gatecli.cli.session import Session
from gatecli.cli.tracking import Track, opened_trackers, shown
from gatecli.cli.training_options import Training
from gatecli.cli.tuned import next_command, report_tuned, tuned_json
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
    config: Annotated[
        Optional[Path],
        typer.Option(
            help=(
                "YAML file with these options, as `lr: 0.05`; what is typed comes before it. See"
                " gatecli log --config."
            ),
            show_default=False,
        ),
    ] = None,
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

    params = dict(context.params)
    if config is not None:
        params |= configured(config, context, resume=resume)
        set_common(session, params)
    run = None
    if resume or restarted(session, params):
        run, begun = unfinished(session, context, force=output.force)
    else:
        begun = _begun(session, params)
    path = Path(begun.checkpoint)
    target = Path(begun.out)
    check_output(target, force=output.force, inputs=[path])
    # where a log goes changes no training: a resumed run may name others
    shows = opened_trackers(begun, params["track"], params["tensorboard"])
    # a state's word is not the user's, nor is a file's
    told = resume or params["data"] != data
    work = _opened(session, begun, trusted=data is not None or not told)
    result, run = _trained(session, work, run, shows)
    report_tuned(session, result, run)
    for line in chance_notes(result.baseline_top1, work.dataset, "val"):
        session.say(f"note: before training, {line}")
    session.written(target)
    session.say(f"next: gatecli {next_command(result.network)}")
    return tuned_json(result, path, target)


def _begun(session: Session, params: Mapping[str, Any]) -> Begun:
    """All that is needed to start the run that the command line asks for again.

    Args:
        session: The command's.
        params: Every option by its parameter's name.
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
        options={**asdict(group_of(params, Training)), "seed": session.seed},
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
