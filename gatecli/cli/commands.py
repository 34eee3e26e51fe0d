"""How a function becomes a command: it gets a session, and the shared options beside its own."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from gatecli.cli.completion import completed
from gatecli.cli.options import COMMON, READING, SPREADING
from gatecli.cli.session import Session

__all__ = ["command"]


def command(body: Callable[..., dict[str, Any] | None]) -> Callable[..., None]:
    """Make `body(session, ...)` a command.

    Args:
        body: What the command does. It returns the command's JSON. A parameter whose type is a data
            class is a group: its fields are options.

    Returns:
        A function for Typer, whose signature holds the body's own options, then those for reading
        checkpoints where the body is marked by `reads_checkpoints`, then the common ones.
    """
    spread = getattr(body, "spreads", False)
    shared = {**READING, **COMMON} if getattr(body, "reads", False) else COMMON
    if spread:
        shared = {**shared, **SPREADING}
    hints = typing.get_type_hints(body, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if _is_group(hint)}
    parameters = [*_own_parameters(body, hints)]
    for name, option in shared.items():
        parameters.append(_keyword(name, option.default, option.annotation))

    @functools.wraps(body)
    def run(**given: Any) -> None:
        common = {name: given.pop(name) for name in COMMON}
        reading = {name: given.pop(name) for name in READING if name in shared}
        for name, group in groups.items():
            given[name] = group(**{each.name: given.pop(each.name) for each in fields(group)})
        session = Session(**common, reading=reading, spreads=spread)
        if spread:
            session.processes = given.pop("processes")
            session.resumes = "resume" in given
        session.run(lambda: body(session, **given))

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _is_group(hint: Any) -> bool:
    """Whether a parameter's type is a group of options."""
    return isinstance(hint, type) and is_dataclass(hint) and hint is not Session


def _own_parameters(
    body: Callable[..., Any], hints: Mapping[str, Any]
) -> Iterator[inspect.Parameter]:
    """The body's parameters behind the session, groups' fields in their group's place."""
    _, *own = inspect.signature(body).parameters.values()
    for each in own:
        hint = hints[each.name]
        if not _is_group(hint):
            yield _keyword(each.name, each.default, hint)
            continue
        options = typing.get_type_hints(hint, include_extras=True)
        for option in fields(hint):
            yield _keyword(option.name, option.default, options[option.name])


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=completed(name, annotation),
    )
