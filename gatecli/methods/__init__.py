"""The gating methods. Each is one file here; importing the package registers them all."""

from __future__ import annotations

import importlib
import pkgutil

from gatecli.methods.base import (
    Method,
    apply_decisions,
    forget,
    get,
    names,
    parse_settings,
    recorded_decisions,
    recorded_settings,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "Method",
    "apply_decisions",
    "forget",
    "get",
    "names",
    "parse_settings",
    "recorded_decisions",
    "recorded_settings",
]
