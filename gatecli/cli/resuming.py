"""finetune --resume: which run goes on, and whether it is the one that the user means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatecli.cli import several
from gatecli.cli.begun import Begun, believed
from gatecli.cli.parsing import parse_pairs, remembered
from gatecli.cli.session import Session
from gatecli.cli.trust import must_be_named, option_of, to_say_again, trusted_reading
from gatecli.cli.workspace import RUNS, default_out, run_folder
from gatecli.errors import CheckpointError, Interrupted, SettingError

if TYPE_CHECKING:
    import typer

    from gatecli.training import Run

__all__ = ["named", "restarted", "resumable", "unfinished"]

# where a log goes, and what is allowed, changes no training: these may differ in a resumed run
MAY_DIFFER = {"resume", "force", "tensorboard", "track", "trust_pickle"}


def unfinished(session: Session, context: typer.Context, *, force: bool) -> tuple[Run, Begun]:
    """Return the unfinished run and what it was begun with; the session then reads as it did.

    Args:
        session: The command's, changed to the run's device and its way of reading.
        context: The command line, which says what the user has named.
        force: Whether an output that exists may be replaced.

    Raises:
        TrainingError: There is no unfinished run.
        SettingError: The command line contradicts the run, or says too little.
        CheckpointError: The run's state or one of its files is not what it was.
    """
    import torch

    from gatecli import together
    from gatecli.training import Run
    from gatecli.training.run import intact

    run = together.from_main(lambda: Run.unfinished(RUNS))
    with intact(run.state):
        begun = believed(run.about)
        lacking = must_be_named(begun, session, named(context), force=force)
    _compare(begun, context)
    if lacking is not None:
        raise SettingError(f"the state in {run.folder} {lacking}")
    _check_files(begun)
    torch.set_num_threads(begun.threads)
    session.device = begun.device
    session.reading = trusted_reading(session, begun.reading)
    session.say(f"resuming {begun.out} from {run.folder}")
    return run, begun


def restarted(session: Session, params: Mapping[str, Any]) -> bool:
    """Whether torchrun has started this run's processes anew, and there is a state to resume."""
    from gatecli import together
    from gatecli.training import Run

    # on several machines only that of the process that died counts the restart
    if not any(together.gathered(several.is_resumed())):
        return False
    out = params["out"] or default_out(session.checkpoint(params["checkpoint"]), "tuned")
    return together.from_main(lambda: Run(run_folder(Path(out)), {}).state.exists())


def named(context: typer.Context) -> set[str]:
    """The parameters that the user named on the command line."""
    given = set()
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            given.add(name)
    return given


def _compare(begun: Begun, context: typer.Context) -> None:
    """Refuse what the command line says otherwise than the run."""
    was = {**asdict(begun), **begun.options, **begun.reading, "set_": begun.settings}
    for name in named(context) - MAY_DIFFER:
        if name not in was:
            continue
        given = _as_kept(name, context.params[name])
        if str(given) != str(was[name]):
            raise SettingError(
                f"--resume goes on with the run's own settings: {option_of(name)} was {was[name]},"
                f" not {given}; leave it out, or start a new run without --resume"
            )


def _as_kept(name: str, value: Any) -> Any:
    """A parameter's value in the form in which a run keeps it."""
    if name == "set_":
        return parse_pairs(value)
    return remembered(value) if name == "data" else value


def _check_files(begun: Begun) -> None:
    from gatecli.checkpoint.formats import file_sha256

    for path, sha256 in ((begun.checkpoint, begun.sha256), (begun.teacher, begun.teacher_sha256)):
        if path is not None and file_sha256(path) != sha256:
            raise CheckpointError(
                f"{path} is not the file that the run began with (its SHA-256 is another): put that"
                " one back, or start a new run without --resume"
            )


@contextmanager
def resumable(session: Session, begun: Begun) -> Iterator[None]:
    """Say how to go on where the work inside is interrupted.

    Raises:
        Interrupted: It was.
    """
    count = several.started()
    same = several.told_again(count)
    again = f"{several.command_line(count)} finetune --resume{same}{to_say_again(begun)}"
    try:
        with session.working():
            yield
    except Interrupted as error:
        raise Interrupted(f"{error}; go on with: {again}") from error
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped at once; go on from the last saved state with: {again}"
        ) from None
