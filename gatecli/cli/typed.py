"""Commands that run other commands, as if a user had typed them one after the other."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from collections.abc import Mapping
from typing import Any

import typer

from gatecli.cli.options import Shared
from gatecli.cli.session import Session
from gatecli.cli.trust import option_of
from gatecli.errors import GatecliError, Interrupted

__all__ = ["as_typed", "options_spelled", "spelled", "typed"]


def typed(session: Session, line: str, *hidden: str) -> dict[str, Any]:
    """Run a command after printing it.

    Args:
        session: The outer command's, whose common options go on to this one.
        line: What a user would type behind `gatecli`.
        hidden: Options that are not printed.

    Returns:
        The command's JSON.

    Raises:
        GatecliError: What the command stopped at.
        KeyboardInterrupt: A signal stopped it at once.
    """
    from gatecli.cli.app import app

    session.say("")
    session.say(f"$ gatecli {as_typed(session, line)}")
    captured = io.StringIO()
    words = [*shlex.split(line), *hidden, *_common(session), "--json", "--debug"]
    if session.quiet:
        words.append("--quiet")
    try:
        with contextlib.redirect_stdout(captured):
            code = app(words, standalone_mode=False)  # --debug: errors come here as they are
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    if code == Interrupted.exit_code:  # what newer typer makes of a KeyboardInterrupt
        raise KeyboardInterrupt
    if code:
        raise GatecliError(f"stopped at: gatecli {line}")
    result: dict[str, Any] = json.loads(captured.getvalue())
    return result


def as_typed(session: Session, line: str) -> str:
    """The line with those of the common options that are not the usual ones."""
    return " ".join([line, *_common(session)])


def _common(session: Session) -> list[str]:
    words = []
    if session.seed:
        words += ["--seed", str(session.seed)]
    if session.device != "auto":
        words += ["--device", session.device]
    if session.threads is not None:
        words += ["--threads", str(session.threads)]
    return words


def spelled(*words: object) -> str:
    """A line of the words of a command, as a shell takes it; numbers in their shortest form."""
    return shlex.join(f"{word:g}" if _is_short(word) else str(word) for word in words)


def options_spelled(values: Mapping[str, Any], options: Mapping[str, Shared]) -> list[str]:
    """Options that are not as they are by default, as a user types them."""
    words: list[str] = []
    for name, option in options.items():
        value = values[name]
        if value == option.default or value in (None, (), []):
            continue
        if value is True:
            words.append(option_of(name))
            continue
        for each in value if isinstance(value, (list, tuple)) else [value]:
            words += [option_of(name), str(each)]
    return words


def _is_short(word: object) -> bool:
    return isinstance(word, float) and float(f"{word:g}") == word
