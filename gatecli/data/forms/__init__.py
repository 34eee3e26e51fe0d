"""The forms of --data. Each is one file here; importing the package registers them all.

Names and help need no torch: a form imports what reading takes when it reads.
"""

from __future__ import annotations

import importlib
import pkgutil

from gatecli.data.forms.base import (
    SPLITS,
    Form,
    Found,
    Request,
    find,
    is_cropped,
    listed,
    may_be_code,
    names_path,
    register,
    spellings,
    with_augment,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "SPLITS",
    "Form",
    "Found",
    "Request",
    "find",
    "is_cropped",
    "listed",
    "may_be_code",
    "names_path",
    "register",
    "spellings",
    "with_augment",
]
