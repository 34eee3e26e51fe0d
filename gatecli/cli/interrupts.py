"""Ctrl-C while modules are imported.

Nothing heavy is imported here: this is in place before anything else.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False  # as in gatecli/__init__.py
if TYPE_CHECKING:
    from types import CodeType, FrameType

__all__ = ["importing", "leave"]

CODE = 130  # as a shell reports a program that Ctrl-C ended


def leave(number: int = signal.SIGINT, frame: FrameType | None = None) -> None:
    """End this process at once, with one line.

    An import that an exception cuts off, C++ in the middle of it, may hide it or crash.
    """
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
