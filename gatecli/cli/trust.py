"""How far the word of a training's state on disk goes.

A state is a file, and may have been made by anybody. Where it would write outside the working
folder, replace what is there, or run code, the user must say the same again on the command line.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gatecli.cli.begun import Begun
from gatecli.cli.parsing import is_function
from gatecli.cli.session import Session
from gatecli.errors import CheckpointError
from gatecli.tracking import local_folder

__all__ = ["must_be_named", "option_of", "to_say_again", "trusted_reading"]

SUFFIX = ".safetensors"


def must_be_named(begun: Begun, session: Session, given: set[str], *, force: bool) -> str | None:
    """Find what the user has to say again, as a state's word is not enough for it.

    Args:
        begun: What the state says.
        session: The command's, for what it allows.
        given: The parameters that the user has named.
        force: Whether an output that exists may be replaced.

    Returns:
        The rest of an error's line, None where nothing is lacking.
    """
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
    values = ", ".join(_listed(value) for value in left.values())
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
    if any(_leaves(spec) for spec in begun.track):
        paths["track"] = begun.track
    return paths


def _leaves(spec: str) -> bool:
    """Whether a tracker writes outside the working folder, on other machines perhaps."""
    folder = local_folder(spec)
    return folder is None or not _stays(Path(folder))


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


def trusted_reading(session: Session, reading: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the run read its checkpoint, less what would run code on a file's word.

    For that the user must ask again.

    Args:
        session: What the user has asked this time.
        reading: What the state says of the options for reading checkpoints.
    """
    trusted = {**reading, "trust_pickle": session.reading["trust_pickle"]}
    if _is_callable(reading):
        trusted["arch"] = session.reading["arch"]
        trusted["arch_arg"] = session.reading["arch_arg"]
    return trusted


def to_say_again(begun: Begun) -> str:
    """Return the options that a user has to give again when this run is resumed."""
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


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _spell(named: Mapping[str, Any]) -> str:
    """Options as a user types them."""
    words = []
    for name, value in named.items():
        for each in value if isinstance(value, list) else [value]:
            if name != "checkpoint":
                words.append(option_of(name))
            words.append(str(each))
    return shlex.join(words)


def option_of(name: str) -> str:
    """Spell a parameter's name as a user types it: `set_` becomes `--set`."""
    return name if name == "checkpoint" else f"--{name.strip('_').replace('_', '-')}"
