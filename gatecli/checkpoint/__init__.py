"""Checkpoints: read whatever users have, write one safe file, rebuild a network from it.

Importing the package does not import torch, so that the command line may use `atomic` alone; the
first use of a name does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gatecli.checkpoint.loading import (
        KEY,
        Reading,
        check_output,
        load,
        read,
        read_recipe,
        save_tensors,
        skeleton_with_weights,
        write,
    )

__all__ = [
    "KEY",
    "Reading",
    "check_output",
    "load",
    "read",
    "read_recipe",
    "save_tensors",
    "skeleton_with_weights",
    "write",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    return getattr(import_module("gatecli.checkpoint.loading"), name)
