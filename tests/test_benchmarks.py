"""The command that runs all benchmarks: one that fails is a line, and the others go on."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from gatecli.architectures.build import build
from gatecli.runtimes import registry

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


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Gives a benchmark's module by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_without_a_gpu_one_line_says_so(
    bench: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tests", "--docs", "nowhere.md"])
    assert bench("gpu").main() == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("not measured: torch sees no GPU here")


def test_a_section_is_filled_between_its_marks_alone(
    bench: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    docs, sections = tmp_path / "docs.md", bench("sections")
    docs.write_text("a\n<!-- it: measured -->\nold\n<!-- it: end -->\nz\n")
    for text in ("| new |", "| newer |"):
        sections.fill(docs, "it", text)
        assert docs.read_text() == (f"a\n<!-- it: measured -->\n\n{text}\n\n<!-- it: end -->\nz\n")
    before = docs.read_text()
    with pytest.raises(SystemExit, match="another: measured"):
        sections.fill(docs, "another", "text")
    assert docs.read_text() == before


def test_what_is_left_out_stays_as_it_was(
    bench: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    """A case comes twice, as a runtime that two networks are measured in."""
    rows = ["| case | x |", "|---|", "| a | 1 |", "| a | 2 |", "| b | 3 |", "| a | 4 |"]
    docs = tmp_path / "docs.md"
    docs.write_text("\n".join(["<!-- it: measured -->", *rows, "<!-- it: end -->"]))
    text = "\n".join(["| case | x |", "|---|", "| a | - |", "| b | 5 |", "| a | - |", "| c | - |"])
    with_old = bench("sections").with_old
    assert with_old(docs, "it", text, {"a", "c"}).splitlines() == [
        *rows[:4],
        "| b | 5 |",
        "| a | 4 |",
        "| c | - |",
    ]
    assert with_old(docs, "it", text, set()) == text


def test_the_documentation_has_the_marks_of_what_fills_it() -> None:
    docs = (BENCHMARKS.parent.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name in ("runtimes", "deciding", "heads", "hidden", "gpu"):
        assert docs.count(f"<!-- {name}: measured -->") == docs.count(f"<!-- {name}: end -->") == 1


def test_what_each_runtime_makes_of_a_cut_network(bench: Callable[[str], ModuleType]) -> None:
    runtimes = bench("runtimes")
    torch.manual_seed(0)
    model = build("torchvision:resnet18", {"stem": "cifar", "num_classes": 10}).eval()
    found = runtimes.measured(
        bench("runtime_cases").blocks("a network", model, 8), registry.get("native"), "fp32", 2
    )
    lines = {row.variant: row for row in found}
    assert lines["static half"].target == ">= 0.98" and lines["static half"].of_hand is not None
    assert lines["half by hand"].of_hand is None and lines["half by hand"].of_ideal is not None


def test_a_runtime_that_is_missing_is_a_line(
    bench: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtimes = bench("runtimes")
    gone = registry.get("onnxruntime")
    monkeypatch.setattr(type(gone), "missing", lambda self: "it is not installed")
    monkeypatch.setattr(runtimes.registry, "names", lambda: ["onnxruntime"])
    monkeypatch.setattr(runtimes, "groups", lambda quick: [SimpleNamespace(name="it")])
    (row,) = runtimes.rows(argparse.Namespace(quick=True, without="", only=""))
    assert row.note.startswith("not measured: ") and "it is not installed" in row.note
