"""package.module:callable, a user's own function that returns arrays."""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import Any

from gatecli.data.forms.base import SPLITS, Form, Found, Request, register
from gatecli.errors import DataError
from gatecli.importing import current_folder_importable

__all__ = ["read", "recognises"]

WISH = "a dict of 'train', and perhaps 'val' and 'test', each (images, labels)"


def recognises(spec: str) -> bool:
    """Whether a spec is the name of a callable in a module."""
    module, _, name = spec.partition(":")
    return name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def read(request: Request) -> Found:
    """Import and call it: {"train": (images, labels), and perhaps "val", "test"}.

    Raises:
        DataError: it is not trusted, or whatever goes wrong in it.
    """
    from gatecli.data.arrays import array_split

    spec = request.spec
    if not request.trusted:
        raise DataError(
            f"the data set is made by the function {spec}, which is not run unless you name it:"
            f" pass --data {spec} again"
        )
    given = _checked(spec, _called(spec, request.kind, request.operand))
    names = [name for name in SPLITS if name in given]
    return Found(splits={name: array_split(spec, name, *given[name]) for name in names})


def _called(where: str, module: str, name: str) -> Any:
    try:
        with current_folder_importable(), contextlib.redirect_stdout(sys.stderr):
            # stdout belongs to --json
            return getattr(importlib.import_module(module), name)()
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        text = " ".join(str(error).split())
        raise DataError(
            f"{where}: importing and calling it failed ({type(error).__name__}: {text}): expected a"
            " function without arguments"
        ) from error


def _checked(where: str, given: Any) -> dict[str, Any]:
    """What the function returned, if it is a dict of pairs. Raises DataError."""
    if not isinstance(given, dict):
        got = type(given).__name__
        raise DataError(f"{where}: expected it to return {WISH}, but got {got}")
    if "train" not in given or not set(given) <= set(SPLITS):
        got = ", ".join(map(repr, given)) or "nothing"
        raise DataError(f"{where}: expected it to return {WISH}, but got a dict of {got}")
    for key, pair in given.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            got = type(pair).__name__
            raise DataError(f"{where}: expected it to return {WISH}, but {key!r} is {got}")
    return given


register(Form(kind="package.module", operand="callable", read=read, recognises=recognises))
