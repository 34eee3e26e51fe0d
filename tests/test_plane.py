"""The experiment that puts all methods on one network: it trains, keeps, times and draws."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from claims.problem import read_problem
from glyphs import save_glyphs
from plane import __main__ as command
from plane.networks import PAPER
from plane.page import page

KEPT = "ind-perbatch, t = 0.5"
NARROW = "ResNet-20 of 0.5 the width, from scratch"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small problem, and of the runs one that is kept and one whose network is built anew."""
    short = {"start": {"epochs": 1, "train": {"lr": 0.01, "batch_size": 32}}}
    named = {each.name: replace(each, epochs=1) for each in PAPER.variants}
    kept = named[KEPT]
    variants = [replace(kept, settings={**kept.settings, **short}), named[NARROW]]
    few = replace(PAPER, variants=variants)
    for module in ("__main__", "page"):
        monkeypatch.setattr(f"plane.{module}.PAPER", few)
    for module in ("clock", "page"):
        monkeypatch.setattr(f"plane.{module}.RUNTIMES", ("native",))
    monkeypatch.setattr("plane.clock.ROUNDS", 2)
    small = {"train": 64, "folds": 2, "each": 8}
    monkeypatch.setattr("claims.command.QUICK", small)
    monkeypatch.setattr(command, "read_problem", lambda path: read_problem(path, **small))
    return save_glyphs(tmp_path / "glyphs.npz")


def test_every_run_has_a_name_and_a_file_of_its_own() -> None:
    names = {each.name for each in PAPER.variants}
    files = {each.settings["file"] for each in PAPER.variants}
    assert len(names) == len(files) == len(PAPER.variants)


def test_the_page_is_written_without_any_run() -> None:
    text = page([], None)
    assert text.count("| not run |") == len(PAPER.variants)


def test_it_trains_then_measures_and_draws(data: Path, tmp_path: Path) -> None:
    runs, out = tmp_path / "runs.jsonl", tmp_path / "plane.md"
    words = ["--data", str(data), "--runs", str(runs), "--page", str(out)]
    words += ["--cache", str(tmp_path / "cache")]
    assert command.main(words) == 0
    assert out.read_text().count("not measured") == 2 and not out.with_suffix(".svg").exists()
    assert command.main([*words, "--time"]) == 0
    ms = json.loads((tmp_path / "times.json").read_text())["ms"]["native"]
    assert ms.keys() == {KEPT, NARROW} and min(ms.values()) > 0
    assert f"{ms[KEPT]:.3f} |" in out.read_text() and out.with_suffix(".svg").exists()
    before = runs.read_text()
    assert command.main(words) == 0 and runs.read_text() == before


def test_a_try_prints_the_page_and_leaves_nothing(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--data", str(data), "--quick"]) == 0
    assert f"| {NARROW} | " in capsys.readouterr().out
