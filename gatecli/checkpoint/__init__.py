"""Checkpoints: read whatever users have, write one safe file, rebuild a network from it.

Importing the package does not import torch, so that the command line may use `atomic` alone; the
first use of a name does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gatecli.checkpoint.loading import KEY, Reading, load, read, read_recipe
    from gatecli.checkpoint.replay import skeleton_with_weights
    from gatecli.checkpoint.saving import check_output, save_tensors, write

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
_HOMES = {
    "KEY": "loading",
    "Reading": "loading",
    "check_output": "saving",
    "load": "loading",
    "read": "loading",
    "read_recipe": "loading",
    "save_tensors": "saving",
    "skeleton_with_weights": "replay",
    "write": "saving",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
