"""Runtimes that say themselves what a call takes, so that no test reads a clock."""

from __future__ import annotations

import pytest

from gatecli.runtimes import registry
from gatecli.runtimes.base import Runtime
from gatecli.stages import timing

__all__ = ["installed"]


def installed(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a runtime be asked for by its name, and what its calls return be their milliseconds."""
    monkeypatch.setitem(registry._RUNTIMES, runtime.name, runtime)
    monkeypatch.setattr(timing, "milliseconds", lambda call, feed: call(feed))
