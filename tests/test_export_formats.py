"""Formats of export: one registration is all that another one needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commandline import call, refused, run, save_source
from PIL import Image
from torch import Tensor

from gatecli import exporting
from gatecli.exporting import Format, Logits, Task, registry
from gatecli.exporting.facts import KEY, Facts
from gatecli.exporting.runner import Answer, Runner

REGISTER = """
import sys
from gatecli import exporting
exporting.register(exporting.Format(
    name="toy", suffix=".toy", noun="a toy file", about="for tests", write=None,
    can_decisions=True, open=print,
))
from gatecli.cli.app import app
try:
    app(sys.argv[1:])
except SystemExit:
    assert "torch" not in sys.modules and "numpy" not in sys.modules
"""


def write_toy(task: Task) -> Logits:
    """A file that holds the network itself, and a list of its gates beside it."""
    file, beside = task.files
    beside.write_text(f"{task.dynamic} {list(task.network.site_gates)}", encoding="utf-8")
    torch.save([task.network, task.facts[KEY]], file)
    return lambda images: torch.load(file, weights_only=False)[0].eval()(images)


def open_toy(path: Path) -> Runner:
    network, facts = torch.load(path, weights_only=False)

    def answer(image: Tensor) -> Answer:
        with torch.no_grad():
            return Answer(logits=network(image)[0], exit=0, skipped=[])

    return Runner(answer=answer, call=answer, facts=Facts.from_json(facts, str(path)))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Format:
    """A format registered for one test."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    format = Format(
        name="toy",
        suffix=".toy",
        noun="a toy file",
        write=write_toy,
        files=lambda out: [out, out.with_suffix(".gates")],
        can_skip=False,
        open=open_toy,
    )
    exporting.register(format)
    return format


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_source(tmp_path / "r20.pt")
    Image.new("RGB", (20, 14), (200, 30, 90)).save(tmp_path / "one.png")
    return tmp_path


def helped(*command: str) -> str:
    """The help of a command where `toy` is registered, its frame and line breaks taken out."""
    done = subprocess.run(
        [sys.executable, "-c", REGISTER, *command, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.replace("│", " ").split())


def test_a_registered_format_is_offered_without_torch() -> None:
    export = helped("export")
    assert "torch alone) or toy (for tests)." in export
    assert "ONNX, OpenVINO, toy: the gates' decisions" in export and "Of ONNX." in export
    assert "an ONNX file or an OpenVINO file or a toy file that gatecli" in helped("run")


def test_a_registered_format_is_used(toy: Format, here: Path) -> None:
    done = call("export", "r20.pt", "--input-size", 8, "--format", "toy")
    assert done["format"] == "toy" and not done["dynamic"] and done["batch"] is None
    assert done["files"] == ["r20.toy", "r20.gates"] and done["max_logit_change"] <= 1e-5
    assert (here / "r20.gates").read_text(encoding="utf-8") == "False []"
    found = call("run", "r20.toy", "one.png", "--repeats", 1)
    assert found["arch"] == done["arch"] and len(found["predictions"][0]["classes"]) == 3
    assert "one.png" in run("run", "r20.toy", "one.png").out
    refused(["export", "r20.pt", "--format", "toy", "--input-size", 8], "r20.toy", "--force")


def test_a_registered_format_is_named_in_errors(toy: Format, here: Path) -> None:
    refused(
        ["export", "r20.pt", "--format", "tflite"], "onnx, openvino, pt2, weights, toy", "tflite"
    )
    refused(
        ["export", "r20.pt", "--format", "toy", "--decisions", "--input-size", 8],
        "--decisions is for ONNX files, OpenVINO files: toy has the logits alone",
    )


def test_a_name_or_a_suffix_is_registered_once(toy: Format) -> None:
    for name, suffix in (("toy", ".other"), ("other", ".toy")):
        with pytest.raises(ValueError, match="registered twice"):
            exporting.register(Format(name=name, suffix=suffix, noun="a toy file", write=write_toy))


def test_what_each_format_can() -> None:
    told = {
        each.name: [
            each.suffix,
            len(each.files(Path("a"))),
            each.can_skip,
            each.can_decisions,
            each.pieces is not None,
        ]
        for each in exporting.registered()
    }
    assert told == {
        "onnx": [".onnx", 1, True, True, True],
        "openvino": [".xml", 2, True, True, True],
        "pt2": [".pt2", 1, True, False, False],
        "weights": [".weights.safetensors", 2, False, False, False],
    }
    assert exporting.opener("a.onnx") is not None and exporting.opener("a.pt2") is None
    assert exporting.opener("a.split.json") is not None
