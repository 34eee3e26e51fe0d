"""How a function becomes a command: it gets a session, and the shared options beside its own."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

from gatecli.cli.options import COMMON, READING
from gatecli.cli.session import Session

__all__ = ["command"]


def command(body: Callable[..., dict[str, Any] | None]) -> Callable[..., None]:
    """Make `body(session, ...)` a command.

    Args:
        body: What the command does. It returns the command's JSON.

    Returns:
        A function for Typer, whose signature holds the body's own options, then those for reading
        checkpoints where the body is marked by `reads_checkpoints`, then the common ones.
    """
    shared = {**READING, **COMMON} if getattr(body, "reads", False) else COMMON
    parameters = _own_parameters(body)
    for name, option in shared.items():
        parameters.append(_keyword(name, option.default, option.annotation))

    @functools.wraps(body)
    def run(**given: Any) -> None:
        common = {name: given.pop(name) for name in COMMON}
        reading = {name: given.pop(name) for name in READING if name in shared}
        session = Session(**common, reading=reading)
        session.run(lambda: body(session, **given))

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _own_parameters(body: Callable[..., Any]) -> list[inspect.Parameter]:
    """The body's parameters behind the session, their annotations evaluated."""
    hints = typing.get_type_hints(body, include_extras=True)
    _, *own = inspect.signature(body).parameters.values()
    return [_keyword(each.name, each.default, hints[each.name]) for each in own]


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )
