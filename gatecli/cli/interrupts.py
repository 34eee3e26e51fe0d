"""Ctrl-C while modules are imported.

Nothing heavy is imported here: this is in place before anything else.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False  # as in gatecli/__init__.py
if TYPE_CHECKING:
    from types import CodeType, FrameType

__all__ = ["OURS", "importing", "is_told_here", "leave"]

CODE = 130  # as a shell reports a program that Ctrl-C ended
OURS = "gatecli-"  # what torchrun's name of a run begins with where gatecli started the processes


def is_told_here(number: int) -> bool:
    """Whether this process says that the signal `number` has interrupted it.

    Of several the first one does. Where gatecli started them, SIGTERM is also how those end that
    are left when one has died, and who started them tells of that.
    """
    if "MASTER_PORT" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    is_first = os.environ.get("RANK", "0") == "0"
    is_ours = os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(OURS)
    return is_first and not (is_ours and number == signal.SIGTERM)


def leave(number: int = signal.SIGINT, frame: FrameType | None = None) -> None:
    """End this process at once, with one line.

    An import that an exception cuts off, C++ in the middle of it, may hide it or crash.
    """
    if is_told_here(number):
        os.write(2, b"error: interrupted; nothing was written\n")
    os._exit(CODE)


def importing(frame: FrameType | None, within: CodeType) -> bool:
    """Whether the innermost call of `within` on the stack is, at `frame`, importing a module.

    Args:
        frame: Where the program is; None: nowhere.
        within: The code of a function.
    """
    while frame is not None and frame.f_code is not within:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
