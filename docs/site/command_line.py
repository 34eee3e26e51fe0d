"""The page of the command line, from what Typer is told of each command."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterable
from typing import Any

import typer.models
from tables import plain, table

from gatecli.cli.app import COMMANDS
from gatecli.cli.commands import command

__all__ = ["about", "command_line", "names_of"]

Options = dict[str, inspect.Parameter]  # by the parameter's name


def command_line() -> str:
    """Each command with its own options, then the options that many share, by their heading."""
    shared: dict[str, Options] = {}
    parts = []
    for name, body in COMMANDS.items():
        own = []
        for each in inspect.signature(command(body)).parameters.values():
            told = about(each)
            if told is None:  # typer's own context
                continue
            if told.rich_help_panel:
                shared.setdefault(told.rich_help_panel, {})[each.name] = each
            else:
                own.append(each)
        parts += [f"## {name}\n", f"    {_usage(name, own)}\n", plain(body.__doc__), "", _rows(own)]
    for heading, options in shared.items():
        parts += [f"## {heading}\n", _rows(options.values())]
    return "\n".join(parts)


def about(parameter: inspect.Parameter) -> Any:
    """What typer is told of a parameter."""
    told = typing.get_args(parameter.annotation)[1:]
    return next((each for each in told if isinstance(each, typer.models.ParameterInfo)), None)


def _is_argument(parameter: inspect.Parameter) -> bool:
    return isinstance(about(parameter), typer.models.ArgumentInfo)


def _usage(name: str, own: Iterable[inspect.Parameter]) -> str:
    arguments = []
    for each in own:
        if _is_argument(each):
            more = "..." if _is_list(each) else ""
            word = f"{names_of(each)[0]}{more}"
            arguments.append(word if _is_required(each) else f"[{word}]")
    return " ".join(["gatecli", name, *arguments, "[OPTIONS]"])


def _rows(options: Iterable[inspect.Parameter]) -> str:
    rows = [_row(each) for each in options]
    return table(("option", "takes", "default", "meaning"), rows) if rows else ""


def _row(option: inspect.Parameter) -> tuple[str, ...]:
    """An option or an argument as a row."""
    names = ", ".join(f"`{each}`" for each in names_of(option))
    unset = option.default in (None, "", False, inspect.Parameter.empty)
    default = "" if unset else f"`{option.default}`"
    return (
        names,
        _takes(option),
        "required" if _is_required(option) else default,
        plain(about(option).help),
    )


def names_of(option: inspect.Parameter) -> list[str]:
    """How an option is spelled, or an argument is called."""
    word = option.name.strip("_").replace("_", "-")
    if _is_argument(option):
        return [word.upper()]
    told = about(option)
    # behind Annotated, typer takes what stands in its default's place for the first name
    given = (told.default, *(told.param_decls or ()))
    return [each for each in given if isinstance(each, str)] or [f"--{word}"]


def _is_required(option: inspect.Parameter) -> bool:
    return option.default is inspect.Parameter.empty or option.default is ...


def _is_list(option: inspect.Parameter) -> bool:
    return "list[" in str(_type(option))


def _type(option: inspect.Parameter) -> Any:
    """The type of its values, without `None`."""
    kept = typing.get_args(option.annotation)[0]
    inner = [each for each in typing.get_args(kept) if each is not type(None)]
    return inner[0] if typing.get_origin(kept) is typing.Union else kept


WORDS = {str: "text", int: "whole number", float: "number", bool: "", "Path": "file"}


def _takes(option: inspect.Parameter) -> str:
    kept = _type(option)
    if _is_list(option):
        (one,) = typing.get_args(kept)
        return f"{_word(one)}, repeatable" if not _is_argument(option) else f"{_word(one)}s"
    return _word(kept)


def _word(kept: Any) -> str:
    return WORDS.get(kept) or WORDS.get(getattr(kept, "__name__", ""), "")
