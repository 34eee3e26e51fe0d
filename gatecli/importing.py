"""Import what nobody names: users' own code, and every module of a package."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["current_folder_importable", "import_modules_of"]


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


def import_modules_of(package: str) -> None:
    """Import every module of a package, which is being imported itself, so that each registers."""
    for module in pkgutil.iter_modules(sys.modules[package].__path__):
        importlib.import_module(f"{package}.{module.name}")
