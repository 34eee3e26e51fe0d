"""gatecli doctor: what is there, what is missing for what, and a torch that is broken."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from commandline import call, run
from packaging.requirements import Requirement

import gatecli
from gatecli.runtimes import machine, registry
from gatecli.stages import doctor, installed, torch_facts

ROOT = Path(gatecli.__file__).parent.parent
HEALTHY = {
    "versions": {"torch": "2.14.1", "torchvision": "0.29.1"},
    "errors": {},
    "threads": 3,
    "gpus": [{"name": "H100", "memory_bytes": 80_000_000_000}],
    "cuda": "13.0",
}


def asked(*lines: str) -> list[tuple[Requirement, str]]:
    """Requirements as installed._asked gives them; `line @ extra` is an extra's."""
    parts = [line.partition(" @ ") for line in lines]
    return [(Requirement(text), extra) for text, _, extra in parts]


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that works, without the seconds that it takes to import one."""
    monkeypatch.setattr(torch_facts, "ask", lambda: HEALTHY)
    monkeypatch.setattr(installed, "_asked", lambda: asked("numpy>=1"))


def test_what_torch_says_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked in another process, it is what it says here, whatever lies in the current folder."""
    (tmp_path / "torch.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    found = torch_facts.ask()
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["torchvision"].startswith(version("torchvision").split("+")[0])
    assert found["errors"] == {} and found["threads"] >= 1
    assert len(found["gpus"]) == torch.cuda.device_count() + torch.backends.mps.is_available()


@pytest.mark.usefixtures("healthy")
def test_the_json() -> None:
    found = call("doctor")
    assert found["versions"]["gatecli"] == gatecli.__version__
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert [each["name"] for each in found["runtimes"]] == registry.names()
    for each in found["runtimes"]:
        assert tuple(each["precisions"]) == registry.get(each["name"]).precisions
        assert (each["missing"] or "") == registry.get(each["name"]).missing()
    assert found["processor"]["cores"] >= found["processor"]["usable"] >= 1
    assert found["broken"] == [] and found["repair"] is None and found["threads"]["torch"] == 3


@pytest.mark.usefixtures("healthy")
def test_what_people_see(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = asked("numpy>=1", "onnx>=999 @ onnx", "no-such-package>=2 @ report")
    monkeypatch.setattr(installed, "_asked", lambda: wanted)
    done = run("doctor")
    assert done.code == 0
    for text in ("2.14.1", "H100 (80000.00 MB)", "no-such-package>=2 (not installed)", "native"):
        assert text in done.out, text
    assert "pip install 'gatecli[onnx,report]'" in done.out


def test_extras_that_ask_for_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = asked("gatecli[a] @ b", "no-such-package>=2 @ a", "numpy>=1 @ b", "numpy>=999 @ c")
    monkeypatch.setattr(installed, "_asked", lambda: wanted)
    found = {each.name: each for each in installed.extras()}
    assert found["a"].missing == found["b"].missing == ("no-such-package>=2 (not installed)",)
    assert found["b"].install == "pip install 'gatecli[b]'"
    assert found["c"].missing == (f"numpy>=999 ({version('numpy')} is installed)",)


def test_every_extra_is_explained() -> None:
    """An extra is for users, and says what for, or for developers."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = re.findall(r"^(\w+) = \[", table, re.M)
    assert extras and set(extras) <= {*installed.PURPOSES, *installed.DEVELOPERS}


@pytest.mark.usefixtures("healthy")
def test_a_core_package_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "_asked", lambda: asked("numpy>=999"))
    done = run("doctor", "--json")
    assert done.code == 1 and json.loads(done.out)["broken"]
    assert done.last.startswith("error: gatecli needs numpy>=999 (") and "pip install" in done.last


def test_without_what_reads_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_facts, "ask", lambda: HEALTHY)
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    done = run("doctor")
    assert done.code == 1 and "native" in done.out
    assert "packaging.requirements (not installed): pip install --upgrade gatecli" in done.last


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ImportError('libtorch_cpu.so: no such file')", "libtorch_cpu.so: no such file"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGILL)", "SIGILL"),
        ("import sys\nsys.exit('no licence')", "no licence"),
    ],
)
def test_a_torch_that_is_broken(tmp_path: Path, source: str, said: str) -> None:
    """It is said in one line, beside all that is known without torch; the exit code is 1."""
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "gatecli", "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)
    assert done.returncode == 1 and said in " ".join(found["broken"]), done.stderr
    assert found["versions"]["torch"] is None and found["threads"]["torch"] is None
    assert found["runtimes"] and found["processor"]["name"]
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: torch cannot be imported (") and "pip install" in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "there", "absent"),
    [
        (
            "flags : fpu avx2 avx512f amx_tile amx_bf16",
            {"AVX2", "AVX-512", "AMX", "bf16"},
            {"VNNI"},
        ),
        ("flags : fpu avx avx2", {"AVX2"}, {"AVX-512", "AMX", "VNNI", "bf16"}),
        ("Features : fp asimd bf16", {"NEON", "bf16"}, {"SVE"}),
    ],
)
def test_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, there: set[str], absent: set[str]
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    found = machine.features() or {}
    assert {name for name, has in found.items() if has} == there
    assert {name for name, has in found.items() if not has} == absent


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CPUINFO", "MAPS"):
        monkeypatch.setattr(machine, name, tmp_path / "none")
    assert machine.features() is None and machine.allocator()
    monkeypatch.setattr(torch_facts, "ask", lambda: HEALTHY)
    assert doctor.check().processor.features is None


def test_an_allocator_that_was_preloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "maps").write_text("7f00-7f01 r-xp 0 08:01 1 /usr/lib/libtcmalloc_minimal.so.4\n")
    monkeypatch.setattr(machine, "MAPS", tmp_path / "maps")
    assert machine.allocator() == "tcmalloc"
