"""torch's exporters talk a lot, also before they fail; what is of use is in the error."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

from gatecli.errors import first_line

__all__ = ["quiet", "reason"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, nothing is printed or logged."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def reason(error: BaseException) -> str:
    """The innermost cause, in one line: which operation would not do."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
