"""The forms of --data. Each is one file here; importing the package registers them all.

Names and help need no torch: a form imports what reading takes when it reads.
"""

from __future__ import annotations

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
from gatecli.importing import import_modules_of

import_modules_of(__name__)

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
