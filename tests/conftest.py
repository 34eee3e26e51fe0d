"""What all tests share: one thread, no test on time, and the versions that they ran with.

One thread, as the tests' networks are so small that a second one costs more than it gives; and sums
stay the same on every machine.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, requires, version

import pytest
import torch
from floor import direct
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "tests", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # a busy machine is no failure
settings.load_profile("tests")


def installed(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    names = sorted({each.name for each in direct(requires("gatecli") or [], ["test"])})
    terminalreporter.write_line(
        ", ".join([f"ran with Python {platform.python_version()}", *map(installed, names)])
    )
