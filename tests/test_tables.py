"""Tables fit the terminal: text is wrapped, numbers never, and what is too wide comes in pieces."""

from __future__ import annotations

from typing import Any

import pytest
from commandline import run
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from gatecli.cli.grid import columns_of, grids
from gatecli.cli.render import table
from gatecli.cli.session import Session

SESSION = Session(json_=False, quiet=False, debug=False, device="cpu", seed=0, threads=None)
HEADINGS = ("<checkpoint", "batch", "median ms", "p95", "GMACs expected", "speed-up", "realised")
NAME = "resnet50.aig-perbatch.tuned.pruned.safetensors"
ROWS = [
    (NAME, 32, "1234.56", "2345.67", "4.089", "2.41x", "0.93"),
    ("resnet50.pt", 1, "34.56", "45.67", "4.089", "1.00x", "1.00"),
]
NUMBERS = [cell for row in ROWS for cell in map(str, row[1:])]


def shown(capsys: pytest.CaptureFixture[str], headings: Any, rows: Any) -> list[str]:
    table(SESSION, "a title", headings, rows, "a foot that is long enough to be wrapped " * 3)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 200])
def test_a_wide_table(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = shown(capsys, HEADINGS, ROWS)
    assert max(map(len, lines)) <= columns, lines
    words = " ".join(lines).split()
    assert all(words.count(cell) >= NUMBERS.count(cell) for cell in NUMBERS)


def test_a_table_that_fits_is_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = shown(capsys, HEADINGS, ROWS)
    assert sum("checkpoint" in line for line in lines) == 1
    assert any("GMACs expected" in line for line in lines)


def test_pieces_repeat_the_first_column(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    headings = ("<class", *(f"layer{number}.0" for number in range(20)))
    rows = [(name, *(f"0.{number:02d}" for number in range(20))) for name in ("cat", "dog")]
    lines = shown(capsys, headings, rows)
    pieces = sum(line.startswith("class") for line in lines)
    assert pieces >= 3 and sum(line.startswith("cat") for line in lines) == pieces
    assert sum("0.13" in line for line in lines) == 2 and max(map(len, lines)) <= 60


def test_a_file_gets_wide_tables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = shown(capsys, HEADINGS, ROWS)
    assert any(NAME in line for line in lines)


def test_no_rows(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert any("checkpoint" in line for line in shown(capsys, HEADINGS, []))


CELL = st.text(alphabet="ab1 漢[]\x1b\n", max_size=24)


@settings(max_examples=40)
@given(
    rows=st.lists(st.tuples(CELL, st.integers(), CELL, st.floats()), max_size=4),
    width=st.integers(40, 120),
)
def test_any_cells_fit(rows: list[tuple[Any, ...]], width: int) -> None:
    """Whatever cells hold, lines stay within the width, measured as a terminal shows them."""
    console = Console(width=width, markup=False, emoji=False)
    columns = columns_of(("<name", "count", "<what", "share of all"), rows)
    for grid in grids(columns, width):
        with console.capture() as captured:
            console.print(grid)
        assert all(cell_len(line.rstrip()) <= width for line in captured.get().splitlines())


@pytest.mark.parametrize("columns", [60, 80])
def test_methods_fit(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest tables that there are without a checkpoint, apart from what is no table."""
    monkeypatch.setenv("COLUMNS", str(columns))
    text = run("methods").out
    tables = [part for part in text.split("\n\n") if "────" in part]
    assert len(tables) > 5
    for part in tables:
        rule = next(place for place, line in enumerate(part.splitlines()) if "────" in line)
        assert max(map(len, part.splitlines()[rule:])) <= columns
