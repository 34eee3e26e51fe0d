"""Data sets for training, choosing and reporting.

Three splits, read in batches that depend on seeds alone. What may be written after --data is
registered in `forms`; these need no torch, so importing the package does not import it either.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gatecli.data.augment import AUGMENTS
    from gatecli.data.spec import DataSet, load_data
    from gatecli.data.splits import Split, batches, steps
    from gatecli.data.walk import Walk

__all__ = ["AUGMENTS", "DataSet", "Split", "Walk", "batches", "load_data", "steps"]
_HOMES = {
    "AUGMENTS": "augment",
    "DataSet": "spec",
    "Split": "splits",
    "Walk": "walk",
    "batches": "splits",
    "load_data": "spec",
    "steps": "splits",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
