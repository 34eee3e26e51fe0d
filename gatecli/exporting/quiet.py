"""torch's exporters talk a lot, also before they fail; what is of use is in the error."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

from gatecli.errors import first_line

__all__ = ["quiet", "reason", "unlogged"]


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """Inside, nothing is logged."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, nothing is printed or logged."""
    out, err = io.StringIO(), io.StringIO()
    with unlogged(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


def reason(error: BaseException) -> str:
    """The innermost cause, in one line: which operation would not do."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
