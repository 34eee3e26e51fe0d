"""Cases that go wrong in ways of their own, to try the workers on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from campaigns.outcome import FAILED, RIGHT, Outcome
from campaigns.worker import Trial

DEATHS = {1: signal.SIGKILL, 3: signal.SIGXCPU}  # the second comes where the time is used up
RAISES, SLEEPS = 2, 5


def label(number: int) -> Outcome:
    """The outcome of a case of which nothing came."""
    return Outcome(case=f"odd:{number}", kind="odd", verdict=FAILED)


def case(number: int, folder: Path) -> Trial:
    """Right, but for some numbers."""
    return lambda: _tried(number)


def _tried(number: int) -> Outcome:
    if number == RAISES:
        raise ValueError("no case")
    if number == SLEEPS:
        time.sleep(1000)
    if number in DEATHS:
        os.kill(os.getpid(), DEATHS[number])
    return Outcome(case=f"odd:{number}", kind="odd", verdict=RIGHT)
