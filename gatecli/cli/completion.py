"""What a shell completes for options and arguments, besides files.

Completing must not import torch, and the registries of methods and kinds do. So the words stand in
`words.json` beside this file, which `python -m gatecli.cli.words` writes from the registries.
"""

from __future__ import annotations

import copy
import functools
import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

__all__ = ["WORDS", "completed"]

WORDS = Path(__file__).with_name("words.json")
SETTING = "set_"  # the parameter of --set


def completed(parameter: str, annotation: Any) -> Any:
    """Return a parameter's annotation, with what a shell completes for it.

    Args:
        parameter: Its name.
        annotation: Its type with Typer's option or argument.
    """
    kept, *others = typing.get_args(annotation) or (annotation,)
    if parameter not in _stored() or kept is bool or not others:
        return annotation
    about = copy.copy(others[0])
    about.autocompletion = _settings if parameter == SETTING else _matching(parameter)
    return typing.Annotated[kept, about]


def _matching(parameter: str) -> Callable[[str], list[str]]:
    def matching(incomplete: str) -> list[str]:
        """Words that go on from what is typed; behind a comma the next one of a list."""
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + each for each in _stored()[parameter] if each.startswith(last)]

    return matching


def _settings(ctx: typer.Context, incomplete: str) -> list[str]:
    """Settings of the method that is typed, of any where none is."""
    by_method = _stored()[SETTING]
    every = sorted(set().union(*by_method.values()))
    names = by_method.get(ctx.params.get("method"), every)
    return [f"{each}=" for each in names if each.startswith(incomplete)]


@functools.cache
def _stored() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(WORDS.read_text(encoding="utf-8"))
    return stored
