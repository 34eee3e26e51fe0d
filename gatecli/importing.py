"""Import users' own code from the folder that they work in."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """Let the code inside import modules of the current folder, as `python FILE` there would."""
    folder = os.getcwd()
    importlib.invalidate_caches()  # the file may be younger than the last look at the folder
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
