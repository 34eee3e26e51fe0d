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

from gatecli.cli.session import READING, Session, is_function, parse_pairs, remembered
from gatecli.cli.workspace import RUNS
from gatecli.errors import CheckpointError, Interrupted, SettingError

if TYPE_CHECKING:
    import typer

    from gatecli.training import Run

SUFFIX = ".safetensors"
THREADS = 1024


@dataclass(frozen=True)
class Begun:
    """All that is needed to start a training again. `samples`: the data's fingerprint."""

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


def unfinished(session: Session, context: typer.Context, force: bool) -> tuple[Run, Begun]:
    """The unfinished run and what it was begun with; the session reads as it did.

    Raises SettingError where the command line contradicts it, or says too little.
    """
    import torch

    from gatecli.training import Run
    from gatecli.training.run import intact

    run = Run.unfinished(RUNS)
    with intact(run.state):
        begun = _believed(run.about)
        lacking = _must_be_named(begun, session, _given(context), force)
    _compare(begun, context)
    if lacking is not None:
        raise SettingError(f"the state in {run.folder} {lacking}")
    _check_files(begun)
    torch.set_num_threads(begun.threads)
    session.device, session.reading = begun.device, _trusted(session, begun.reading)
    session.say(f"resuming {begun.out} from {run.folder}")
    return run, begun


def _believed(about: Mapping[str, Any]) -> Begun:
    """What a state says, with every value of the right type.

    Raises TypeError, ValueError or KeyError.
    """
    from gatecli.traced.recipe import checked
    from gatecli.training import TrainOptions

    begun = checked(Begun(**about))
    checked(TrainOptions(**begun.options))
    if begun.reading.keys() != READING.keys():
        raise KeyError(f"reading {sorted(begun.reading)}")
    for name, value in begun.reading.items():
        if not _fits(value, get_args(READING[name][0])[0]):
            raise TypeError(f"{name} is {value!r}")
    if not 1 <= begun.threads <= THREADS or (begun.teacher is None) != (
        begun.teacher_sha256 is None
    ):
        raise ValueError(f"{begun.threads} threads, teacher {begun.teacher}")
    return begun


def _fits(value: Any, hint: Any) -> bool:
    from gatecli.traced.recipe import is_a

    return any(
        is_a(value, kind) for kind in (get_args(hint) if get_origin(hint) is Union else (hint,))
    )


def _given(context: typer.Context) -> set[str]:
    """The parameters that the user named on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {
        name
        for name, source in sources.items()
        if source is not None and source.name == "COMMANDLINE"
    }


def _must_be_named(begun: Begun, session: Session, given: set[str], force: bool) -> str | None:
    """What the user has to say again, as a state's word is not enough for it; None: nothing."""
    out = Path(begun.out)
    needed: dict[str, Any] = {}
    if not _stays(out, SUFFIX) or (force and out.exists() and not _is_ours(out)):
        needed["out"] = begun.out
    if begun.tensorboard is not None and not _stays(Path(begun.tensorboard)):
        needed["tensorboard"] = begun.tensorboard
    if session.reading["trust_pickle"]:
        needed |= {
            "checkpoint": begun.checkpoint,
            **({} if begun.teacher is None else {"teacher": begun.teacher}),
        }
    if _is_callable(begun) and begun.reading["arch_arg"] and "arch" in given:
        needed["arch_arg"] = begun.reading["arch_arg"]
    left = {name: value for name, value in needed.items() if name not in given}
    if not left:
        return None
    spelled = _spell(left)
    return (
        f"names {', '.join(str(value) for value in left.values())}, which a state's word is not"
        f" enough for: if that is right, say it again with {spelled}"
    )


def _stays(path: Path, suffix: str = "") -> bool:
    """Whether a path leads into the working folder and to nothing hidden, such as .git."""
    here, there = Path.cwd().resolve(), path.resolve()
    hidden = (
        [part for part in there.relative_to(here).parts if part.startswith(".")]
        if there.is_relative_to(here)
        else [".."]
    )
    return not hidden and path.name.endswith(suffix)


def _is_ours(path: Path) -> bool:
    """Whether a file is a checkpoint that gatecli wrote."""
    from gatecli.checkpoint import read_recipe

    try:
        return path.is_file() and read_recipe(path) is not None
    except CheckpointError:  # damaged, or of a newer format
        return False


def _is_callable(begun: Begun) -> bool:
    from gatecli.architectures.arguments import is_callable_name

    return is_callable_name(begun.reading["arch"] or "")


def _spell(named: Mapping[str, Any]) -> str:
    """Options as a user types them."""
    words = []
    for name, value in named.items():
        option = [] if name == "checkpoint" else [f"--{name.replace('_', '-')}"]
        words += [
            word
            for each in (value if isinstance(value, list) else [value])
            for word in (*option, str(each))
        ]
    return shlex.join(words)


def _compare(begun: Begun, context: typer.Context) -> None:
    was = {**asdict(begun), **begun.options, **begun.reading, "set_": begun.settings}
    for name in _given(context) - {
        "resume",
        "force",
        "tensorboard",
        "trust_pickle",
    }:  # where a log goes changes no training
        if name not in was:
            continue
        value = context.params[name]
        given = (
            parse_pairs(value) if name == "set_" else remembered(value) if name == "data" else value
        )
        if str(given) != str(was[name]):
            option = name if name == "checkpoint" else f"--{name.strip('_').replace('_', '-')}"
            raise SettingError(
                f"--resume goes on with the run's own settings: {option} was {was[name]}, not"
                f" {given}; leave it out, or start a new run without --resume"
            )


def _check_files(begun: Begun) -> None:
    from gatecli.checkpoint.formats import file_sha256

    for path, sha256 in ((begun.checkpoint, begun.sha256), (begun.teacher, begun.teacher_sha256)):
        if path is not None and file_sha256(path) != sha256:
            raise CheckpointError(
                f"{path} is not the file that the run began with (its SHA-256 is another): put that"
                " one back, or start a new run without --resume"
            )


def _trusted(session: Session, reading: dict[str, Any]) -> dict[str, Any]:
    """How the run read its checkpoint, less what would run code on a file's word.

    For that the user must ask again.
    """
    from gatecli.architectures.arguments import is_callable_name

    asked = {"trust_pickle"} | (
        {"arch", "arch_arg"} if is_callable_name(reading["arch"] or "") else set()
    )
    return {**reading, **{name: session.reading[name] for name in asked}}


@contextmanager
def resumable(session: Session, begun: Begun) -> Iterator[None]:
    """Where the work is interrupted, say how to go on."""
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
    reading, named = begun.reading, dict[str, Any]()
    if _is_callable(begun):
        named |= {"arch": reading["arch"], "arch_arg": reading["arch_arg"] or []}
    if is_function(begun.data or ""):
        named["data"] = begun.data
    if reading["trust_pickle"]:
        named |= {"checkpoint": begun.checkpoint, "teacher": begun.teacher or []}
    if not _stays(Path(begun.out), SUFFIX):
        named["out"] = begun.out
    if begun.tensorboard is not None and not _stays(Path(begun.tensorboard)):
        named["tensorboard"] = begun.tensorboard
    flags = (
        " --trust-pickle" * bool(reading["trust_pickle"]) + " --force" * Path(begun.out).exists()
    )
    return (f" {_spell(named)}" if named else "") + flags
