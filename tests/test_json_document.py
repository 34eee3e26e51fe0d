"""docs/json.md against the data classes that commands print, and against the list of commands."""

from __future__ import annotations

import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from json_objects import JSON_OBJECTS

from gatecli.cli.app import COMMANDS

TEXT = (Path(__file__).parent.parent / "docs/json.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", TEXT, re.M))
OUTSIDE = "\n".join(line for line in TEXT.splitlines() if not line.startswith("|"))
PRINTED = [
    (command, getattr(import_module(module), name))
    for command, module, names in JSON_OBJECTS
    for name in names
]


def test_every_command_has_a_row() -> None:
    assert set(ROWS) == set(COMMANDS)


@pytest.mark.parametrize(("command", "printed"), PRINTED)
def test_every_field_is_told(command: str, printed: Any) -> None:
    """In the command's row, or in a paragraph that speaks of several commands."""
    told = set(re.findall(r"`(\w+)`", ROWS[command] + OUTSIDE))
    assert not {field.name for field in fields(printed)} - told
