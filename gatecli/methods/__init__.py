"""The gating methods. Each is one file here; importing the package registers them all."""

from __future__ import annotations

from gatecli.importing import import_modules_of
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

import_modules_of(__name__)

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
