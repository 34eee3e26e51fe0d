"""The console script.

It imports next to nothing before Ctrl-C is taken care of; the commands are in gatecli.cli.program.
"""

from __future__ import annotations

import signal

from gatecli.cli.interrupts import leave

TYPE_CHECKING = False  # as in gatecli/__init__.py
if TYPE_CHECKING:
    from typing import Any

    from gatecli.cli.program import COMMANDS, app

__all__ = ["COMMANDS", "app", "main"]


def __getattr__(name: str) -> Any:
    if name not in ("COMMANDS", "app"):
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    from gatecli.cli import program

    return getattr(program, name)


def main() -> None:
    """Run the console script."""
    # any other handler: whoever started us wants Ctrl-C ignored
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)
    from gatecli.cli.program import start

    start()
