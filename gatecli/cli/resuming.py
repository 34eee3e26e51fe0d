"""finetune --resume: what a training was begun with, and how far a state's word on it goes.

A state is a file, and may have been made by anybody. What it says is checked; where it would write
outside the working folder, replace what is there, or run code, the user must say the same again on
the command line.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from gatecli.cli.options import READING
from gatecli.cli.parsing import is_function, parse_pairs, remembered
from gatecli.cli.session import MOST_THREADS, Session
from gatecli.cli.workspace import RUNS
from gatecli.errors import CheckpointError, Interrupted, SettingError

if TYPE_CHECKING:
    import typer

    from gatecli.training import Run

__all__ = ["Begun", "resumable", "unfinished"]

SUFFIX = ".safetensors"
# where a log goes, and what is allowed, changes no training: these may differ in a resumed run
MAY_DIFFER = {"resume", "force", "tensorboard", "trust_pickle"}


@dataclass(frozen=True, kw_only=True)
class Begun:
    """All that is needed to start a training again.

    Attributes:
        checkpoint: The file that it began with, and `sha256` its content's.
        out: Where the result goes.
        data: The data set named; None: the one that the checkpoint remembers.
        settings: What --set says.
        options: The fields of gatecli.training.TrainOptions.
        threads: CPU threads.
        device: What --device says.
        reading: What the options for reading checkpoints say.
        teacher: The file that teaches, if any, and `teacher_sha256` its content's.
        tensorboard: The folder of a TensorBoard log, if any.
        samples: The data's fingerprint.
    """

    checkpoint: str
    sha256: str
    out: str
    data: str | None
    settings: dict[str, str]
    options: dict[str, Any]
    threads: int
    device: str
    reading: dict[str, Any]
    teacher: str | None = None
    teacher_sha256: str | None = None
    tensorboard: str | None = None
    samples: dict[str, str] = field(default_factory=dict)


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

    from gatecli.training import Run
    from gatecli.training.run import intact

    run = Run.unfinished(RUNS)
    with intact(run.state):
        begun = _believed(run.about)
        lacking = _lacking(begun, session, _given(context), force=force)
    _compare(begun, context)
    if lacking is not None:
        raise SettingError(f"the state in {run.folder} {lacking}")
    _check_files(begun)
    torch.set_num_threads(begun.threads)
    session.device = begun.device
    session.reading = _trusted(session, begun.reading)
    session.say(f"resuming {begun.out} from {run.folder}")
    return run, begun


def _believed(about: Mapping[str, Any]) -> Begun:
    """What a state says, with every value of the right type.

    Raises:
        TypeError, ValueError, KeyError: A value is not.
    """
    from gatecli.recipe import checked
    from gatecli.training import TrainOptions

    begun = checked(Begun(**about))
    checked(TrainOptions(**begun.options))
    if begun.reading.keys() != READING.keys():
        raise KeyError(f"reading {sorted(begun.reading)}")
    for name, value in begun.reading.items():
        if not _fits(value, READING[name].type):
            raise TypeError(f"{name} is {value!r}")
    taught = begun.teacher is not None
    if not 1 <= begun.threads <= MOST_THREADS or taught != (begun.teacher_sha256 is not None):
        raise ValueError(f"{begun.threads} threads, teacher {begun.teacher}")
    return begun


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value out of JSON is of an option's type, `Optional[...]` or plain."""
    from gatecli.recipe import is_a

    kinds = get_args(hint) if get_origin(hint) is Union else (hint,)
    return any(is_a(value, kind) for kind in kinds)


def _given(context: typer.Context) -> set[str]:
    """The parameters that the user named on the command line."""
    given = set()
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            given.add(name)
    return given


def _lacking(begun: Begun, session: Session, given: set[str], *, force: bool) -> str | None:
    """What the user has to say again, as a state's word is not enough for it; None: nothing."""
    needed: dict[str, Any] = _paths_outside(begun)
    out = Path(begun.out)
    if force and out.exists() and not _is_ours(out):
        needed = {"out": begun.out, **needed}
    if session.reading["trust_pickle"]:
        needed |= _inputs(begun)
    if _is_callable(begun.reading) and begun.reading["arch_arg"] and "arch" in given:
        needed["arch_arg"] = begun.reading["arch_arg"]
    left = {name: value for name, value in needed.items() if name not in given}
    if not left:
        return None
    values = ", ".join(str(value) for value in left.values())
    return (
        f"names {values}, which a state's word is not enough for: if that is right, say it again"
        f" with {_spell(left)}"
    )


def _paths_outside(begun: Begun) -> dict[str, Any]:
    """Where the run writes, by the option's name, so far as a state's word is not enough for it."""
    paths: dict[str, Any] = {}
    if not _stays(Path(begun.out), SUFFIX):
        paths["out"] = begun.out
    if begun.tensorboard is not None and not _stays(Path(begun.tensorboard)):
        paths["tensorboard"] = begun.tensorboard
    return paths


def _inputs(begun: Begun) -> dict[str, str]:
    """The checkpoints that the run reads, by the parameter's name."""
    inputs = {"checkpoint": begun.checkpoint}
    if begun.teacher is not None:
        inputs["teacher"] = begun.teacher
    return inputs


def _stays(path: Path, suffix: str = "") -> bool:
    """Whether a path leads into the working folder and to nothing hidden, such as .git."""
    here = Path.cwd().resolve()
    there = path.resolve()
    if not there.is_relative_to(here):
        return False
    hidden = any(part.startswith(".") for part in there.relative_to(here).parts)
    return not hidden and path.name.endswith(suffix)


def _is_ours(path: Path) -> bool:
    """Whether a file is a checkpoint that gatecli wrote."""
    from gatecli.checkpoint import read_recipe

    try:
        return path.is_file() and read_recipe(path) is not None
    except CheckpointError:  # damaged, or of a newer format
        return False


def _is_callable(reading: Mapping[str, Any]) -> bool:
    """Whether the architecture is named as a callable, package.module:callable."""
    from gatecli.architectures.arguments import is_callable_name

    return is_callable_name(reading["arch"] or "")


def _spell(named: Mapping[str, Any]) -> str:
    """Options as a user types them."""
    words = []
    for name, value in named.items():
        for each in value if isinstance(value, list) else [value]:
            if name != "checkpoint":
                words.append(_option(name))
            words.append(str(each))
    return shlex.join(words)


def _option(name: str) -> str:
    """A parameter's name as a user types it: `set_` becomes `--set`."""
    return name if name == "checkpoint" else f"--{name.strip('_').replace('_', '-')}"


def _compare(begun: Begun, context: typer.Context) -> None:
    """Refuse what the command line says otherwise than the run."""
    was = {**asdict(begun), **begun.options, **begun.reading, "set_": begun.settings}
    for name in _given(context) - MAY_DIFFER:
        if name not in was:
            continue
        given = _as_kept(name, context.params[name])
        if str(given) != str(was[name]):
            raise SettingError(
                f"--resume goes on with the run's own settings: {_option(name)} was {was[name]},"
                f" not {given}; leave it out, or start a new run without --resume"
            )


def _as_kept(name: str, value: Any) -> Any:
    """A parameter's value in the form in which a run keeps it."""
    if name == "set_":
        return parse_pairs(value)
    return remembered(value) if name == "data" else value


def _check_files(begun: Begun) -> None:
    from gatecli.reading import file_sha256

    for path, sha256 in ((begun.checkpoint, begun.sha256), (begun.teacher, begun.teacher_sha256)):
        if path is not None and file_sha256(path) != sha256:
            raise CheckpointError(
                f"{path} is not the file that the run began with (its SHA-256 is another): put that"
                " one back, or start a new run without --resume"
            )


def _trusted(session: Session, reading: Mapping[str, Any]) -> dict[str, Any]:
    """How the run read its checkpoint, less what would run code on a file's word.

    For that the user must ask again.
    """
    trusted = {**reading, "trust_pickle": session.reading["trust_pickle"]}
    if _is_callable(reading):
        trusted["arch"] = session.reading["arch"]
        trusted["arch_arg"] = session.reading["arch_arg"]
    return trusted


@contextmanager
def resumable(session: Session, begun: Begun) -> Iterator[None]:
    """Say how to go on where the work inside is interrupted.

    Raises:
        Interrupted: It was.
    """
    again = f"gatecli finetune --resume{_rest(begun)}"
    try:
        with session.working():
            yield
    except Interrupted as error:
        raise Interrupted(f"{error}; go on with: {again}") from error
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped at once; go on from the last saved state with: {again}"
        ) from None


def _rest(begun: Begun) -> str:
    """What a user has to say again when this run is resumed."""
    reading = begun.reading
    named: dict[str, Any] = {}
    if _is_callable(reading):
        named["arch"] = reading["arch"]
        named["arch_arg"] = reading["arch_arg"] or []
    if is_function(begun.data or ""):
        named["data"] = begun.data
    if reading["trust_pickle"]:
        named |= _inputs(begun)
    named |= _paths_outside(begun)
    rest = f" {_spell(named)}" if named else ""
    if reading["trust_pickle"]:
        rest += " --trust-pickle"
    return rest + " --force" if Path(begun.out).exists() else rest
