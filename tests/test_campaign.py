"""The campaign itself: a few dozen of its cases, so that it does not rot."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from campaigns import campaign, files, kills, odd, outcome, shelf, splits, worker
from campaigns.outcome import FAILED, OTHER, REFUSED, RIGHT, Outcome

CASES = 24  # at least: which verdicts these bring depends on where in a file a damage falls
MOST = 96


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short shelf: one method, nothing exported."""
    folder = tmp_path_factory.mktemp("shelf")
    shelf.make(folder, shelf.FEW, exports=False)
    return folder


def test_damaged_files_are_right_other_or_refused(store: Path, tmp_path: Path) -> None:
    verdicts: Counter[str] = Counter()
    for number in range(MOST):
        if number >= CASES and all(verdicts[each] for each in (REFUSED, OTHER, RIGHT)):
            break
        if files.plan(0, number).damage in ("bomb", "huge"):  # they take their time
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        one = worker.limited(partial(files.case, store, 0), number, folder)
        assert one.verdict != FAILED, outcome.line(one)
        verdicts[one.verdict] += 1
    assert verdicts[REFUSED] > verdicts[OTHER] > 0 and verdicts[RIGHT] > 0


def test_every_damage_changes_files(store: Path) -> None:
    """Each of them, given some tries, makes another file of the first that it is for."""
    for name, form in files.FORMS.items():
        for original in sorted(store.glob(form.pattern))[:1]:
            if original.is_dir():
                continue
            data = original.read_bytes()
            for kind, damage in form.damages.items():
                chance = files.plan(1, len(data)).chance
                changed = any(damage(chance, data) != data for _ in range(5))
                assert changed or kind in ("hostile", "bomb"), (name, kind)


def test_a_network_that_differs_from_its_file_is_noticed(store: Path) -> None:
    path = store / "tuned.ind-perbatch.safetensors"
    tensors = files.checkpoint.load(path).state_dict()
    assert files._unlike_file(tensors, path) == ""
    tensors["fc.bias"] = tensors["fc.bias"] + 1
    assert files._unlike_file(tensors, path) == "fc.bias"


def test_cases_that_die_or_raise_are_failures_and_the_next_one_runs() -> None:
    found = list(worker.run_all(odd.case, odd.label, range(4), jobs=1))
    assert [one.verdict for one in found] == [RIGHT, FAILED, FAILED, FAILED]
    died, raised, hung = (one.detail for one in found[1:])
    assert "SIGKILL" in died and "no case" in raised and "hang" in hung


def test_memory_that_a_case_takes_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def filling() -> Outcome:
        with mmap.mmap(-1, 2**26) as memory:  # past malloc, which may hold what others have freed
            for place in range(0, 2**26, mmap.PAGESIZE):
                memory[place] = 1
        return replace(odd.label(0), verdict=RIGHT, detail="filled")

    def case(number: int, folder: Path) -> worker.Trial:
        return filling

    assert worker.limited(case, 0, tmp_path).verdict == RIGHT
    monkeypatch.setattr(worker, "MEMORY", 2**20)
    one = worker.limited(case, 0, tmp_path)
    assert one.verdict == FAILED and "MiB of memory" in one.detail


def test_a_case_that_only_waits_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "STUCK", 0)
    (found,) = worker.run_all(odd.case, odd.label, [odd.SLEEPS], jobs=1)
    assert found.verdict == FAILED and "hang" in found.detail


def test_hostile_pickles_are_hostile(tmp_path: Path) -> None:
    """Python's own unpickler, in another process, runs most of them."""
    code = (
        "import pickle, sys, contextlib; from campaigns.pickles import _calls\n"
        "for number, call in enumerate(_calls('here')):\n"
        "    with contextlib.suppress(Exception):\n"
        "        pickle.loads(b'\\x80\\x02' + _calls(f'{number}.canary')[number] + b'.')\n"
    )
    tests, ours = str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")
    found = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, ours])}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=found, check=True)
    assert len(list(tmp_path.glob("*.canary"))) >= 15


def test_a_killed_command_is_whole_or_absent_and_can_be_repeated(store: Path) -> None:
    known = kills.Undisturbed(outputs={}, current="zip.pt", operations=9, seconds=1.0)
    planned = kills.Plan(name="use", share=0.6, at_operation=True)
    one = kills.outcome(store, 0, planned, known)
    assert one.kind == "use: killed at an operation"
    assert one.verdict == RIGHT, one.detail


def test_what_a_kill_breaks_is_noticed(store: Path, tmp_path: Path) -> None:
    scenario = kills.SCENARIOS["attach"]
    (tmp_path / ".gatecli").mkdir()
    (tmp_path / ".gatecli" / "current").write_text("gone\n")
    (tmp_path / "out.safetensors").write_bytes(b"half")
    known = kills.Undisturbed(
        outputs={"out.safetensors": "whole"}, current="out.safetensors", operations=1, seconds=1.0
    )
    (torn,) = kills._wrong_outputs(tmp_path, scenario, known, finished=False)
    assert torn.startswith("after the kill out.safetensors is")
    assert kills._wrong_current(tmp_path, scenario, known) == ["after the kill current is 'gone'"]


def test_times_alone_do_not_make_another_checkpoint(store: Path, tmp_path: Path) -> None:
    path, other = store / "attached.ind-perbatch.safetensors", tmp_path / "other.safetensors"
    data = path.read_bytes()
    year = data.index(b'\\"at\\": \\"20') + len(b'\\"at\\": \\"20')
    other.write_bytes(data[:year] + b"99" + data[year + 2 :])
    assert kills.fingerprint(path) == kills.fingerprint(other)
    other.write_bytes(data[:-1] + b"x")
    assert kills.fingerprint(path) != kills.fingerprint(other)


def test_splits_count_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {one.verdict for one in splits.outcomes(0, 60)} == {RIGHT, REFUSED}
    monkeypatch.setattr(splits, "_missed", lambda seed, number, draw: True)
    assert {one.verdict for one in splits.outcomes(0, 60)} == {FAILED}


def test_the_table_and_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert campaign.main(["--files", "0", "--kills", "0", "--splits", "20"]) == 0
    last = capsys.readouterr().out.splitlines()
    assert last[-2].split()[:2] == ["all", "20"] and "0 failed" in last[-1]
