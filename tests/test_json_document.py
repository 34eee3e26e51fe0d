"""docs/json.md against the data classes that commands print, and against the list of commands."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from gatecli.cli.app import COMMANDS
from gatecli.cli.frontier import Figures
from gatecli.stages.alike import Counts, Distances
from gatecli.stages.analyse import SiteUse
from gatecli.stages.classify import Prediction
from gatecli.stages.doctor import Checkup, Processor, RuntimeState, Threads
from gatecli.stages.for_processor import ForProcessor
from gatecli.stages.installed import Extra
from gatecli.stages.int8 import Int8, Side
from gatecli.stages.predict import ExitScore
from gatecli.stages.profile import Latency, Row, SiteRow
from gatecli.traced.latency import SiteTimes
from gatecli.traced.recipe import Step

TEXT = (Path(__file__).parent.parent / "docs/json.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", TEXT, re.M))
OUTSIDE = "\n".join(line for line in TEXT.splitlines() if not line.startswith("|"))
PRINTED = [
    ("doctor", Checkup, Processor, Threads, RuntimeState, Extra),
    ("profile", Latency, Row, SiteRow),
    ("gates", SiteUse, Counts, Distances),
    ("run", Prediction),
    ("log", Step),
    ("price", SiteTimes),
    ("export", Int8, Side, ForProcessor),
    ("eval", ExitScore),
    ("calibrate", Figures),
]


def test_every_command_has_a_row() -> None:
    assert set(ROWS) == set(COMMANDS)


@pytest.mark.parametrize(
    ("command", "printed"), [(command, each) for command, *those in PRINTED for each in those]
)
def test_every_field_is_told(command: str, printed: Any) -> None:
    """In the command's row, or in a paragraph that speaks of several commands."""
    told = set(re.findall(r"`(\w+)`", ROWS[command] + OUTSIDE))
    assert not {field.name for field in fields(printed)} - told
