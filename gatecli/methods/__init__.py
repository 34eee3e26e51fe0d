"""The gating methods. Each is one file here; importing the package registers them all."""

from __future__ import annotations

from gatecli.importing import import_modules_of
from gatecli.methods.base import About, Method
from gatecli.methods.deciding import always_runs
from gatecli.methods.objective import Objective, Traits
from gatecli.methods.parsing import parse_settings, record_settings, recorded_settings
from gatecli.methods.registry import apply_decisions, forget, get, names, register

import_modules_of(__name__)

__all__ = [
    "About",
    "Method",
    "Objective",
    "Traits",
    "always_runs",
    "apply_decisions",
    "forget",
    "get",
    "names",
    "parse_settings",
    "record_settings",
    "recorded_settings",
    "register",
]
