"""The command that runs all benchmarks: one that fails is a line, and the others go on."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"
GOOD = """
import timing
def rows(asked):
    full = timing.Row("a case", "ours", 1.0, 2.0, 0.9, ">= 0.95", "a note")
    return [full, timing.Row("quick", str(asked.quick), None, None)]

timing.main("", "Good", rows, pinned=False)
"""
MISSING = "import timing\ntiming.needs('no-such-package')\n"


@pytest.fixture
def everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with two benchmarks of the test's own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("all_benchmarks", BENCHMARKS / "all.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, source in {"missing": MISSING, "good": GOOD}.items():
        (tmp_path / f"{name}.py").write_text(
            f"import sys\nsys.path.insert(0, {str(BENCHMARKS)!r})\n{source}"
        )
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "BENCHMARKS", ("missing", "good"))
    monkeypatch.chdir(tmp_path)
    return module


def test_a_benchmark_that_fails_is_one_line_and_the_others_go_on(
    everything: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["all.py", "--quick"])
    assert everything.main() == 1
    table = capsys.readouterr().out.splitlines()[-3:]
    assert (
        table[0].startswith("| missing |  | failed |")
        and "no-such-package cannot be imported" in table[0]
        and "pip install '.[bench]'" in table[0]
    )
    assert table[1:] == [
        "| good | a case | ours | 2 | 0.900 | >= 0.95 | no | a note |",
        "| good | quick | True |  |  |  |  |  |",
    ]
    written = json.loads((tmp_path / "bench.json").read_text())
    assert list(written) == ["missing", "good"] and written["good"]["rows"][0]["held"] == "no"


def test_without_failures_the_exit_code_is_zero_and_a_target_missed_is_none(
    everything: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(everything, "BENCHMARKS", ("good",))
    monkeypatch.setattr(sys, "argv", ["all.py", "--json", "elsewhere.json"])
    assert everything.main() == 0
    assert (tmp_path / "elsewhere.json").exists() and not (tmp_path / "bench.json").exists()
