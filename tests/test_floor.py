"""The floors of pyproject.toml, as `make test-floor` installs them."""

from __future__ import annotations

from pathlib import Path

import pytest
from floor import direct, floors

ROOT = Path(__file__).parents[1]


def test_floors_follow_extras_and_markers() -> None:
    lines = [
        "torch>=2.10",
        "onnx!=1.22,>=1.21; extra == 'onnx'",
        "torch>=2.10; extra == 'onnx'",
        "old>=1; python_version < '3' and extra == 'onnx'",
        "gatecli[onnx,test]; extra == 'test'",
        "pytest>=8; extra == 'test'",
        "peers>=1; extra == 'bench'",
    ]
    assert floors(lines, ["test"]) == ["onnx==1.21", "pytest==8", "torch==2.10"]
    assert floors(lines, []) == ["torch==2.10"]


@pytest.mark.parametrize("line", ["torch", "torch<3", "torch==2.10"])
def test_what_has_no_floor_is_named(line: str) -> None:
    with pytest.raises(SystemExit, match=r"one floor .* torch"):
        floors([line], [])


def test_everything_has_a_floor() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    assert floors([line for line in lines if not line.startswith("gatecli[")], [])
    (torch,) = [each for each in direct(lines, []) if each.name == "torch"]
    assert torch.specifier.contains("2.10") and not torch.specifier.contains(
        "2.9.1"
    )  # CVE-2026-24747
