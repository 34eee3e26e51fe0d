"""The tutorials of the documentation: each page's commands and scripts, in order, as they stand.

A comment before a block says what is other here: `not run: REASON`, `file: NAME` (the block is
written there), `run with: --epochs 1` (in place of what the page says, where that takes long).
"""

from __future__ import annotations

import atexit
import functools
import math
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from commandline import call, run

FOLDER = Path(__file__).parent.parent / "docs/tutorials"
BLOCK = re.compile(r"^(?:<!-- ([\w ]+): ([^\n]+) -->\n)?```(bash|python)\n(.*?)^```$", re.M | re.S)
WRITTEN = ("mynet", "animals_data")  # modules that pages write, and gatecli imports


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in WRITTEN:
        sys.modules.pop(name, None)


def follow(page: str) -> list[str]:
    """Do what a tutorial says; the commands that it had."""
    done = []
    for mark, value, language, text in BLOCK.findall((FOLDER / page).read_text(encoding="utf-8")):
        assert mark in ("", "not run", "file", "run with"), (page, mark)
        if mark == "file":
            Path(value).write_text(text, encoding="utf-8")
        elif mark != "not run" and language == "python":
            exec(compile(text, page, "exec"), {})
        elif mark != "not run":
            lines = shortened(text, value if mark else "").splitlines()
            for line in lines:
                type_in(line)
            done += lines
    return done


def shortened(text: str, options: str) -> str:
    """Commands with other values of the options that are named."""
    words = options.split()
    for name, value in zip(words[::2], words[1::2], strict=True):
        text, count = re.subn(rf"({name}) \S+", rf"\1 {value}", text)
        assert count, (name, text)
    return text


def type_in(line: str) -> None:
    """One line in a shell."""
    program, *words = shlex.split(line, comments=True)
    if program == "cd":
        os.chdir(*words)
        return
    assert program == "gatecli", line
    if words[0] == "demo":
        shutil.copytree(demo(*words), "gatecli-demo")
        return
    done = run(*words)
    assert done.code == 0, (line, done.err)


@functools.cache
def demo(*words: str) -> Path:
    """The folder that `gatecli demo` leaves; two tutorials begin with it."""
    kept = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, kept)
    done = run(*words, "--folder", kept / "demo")
    assert done.code == 0, done.err
    return kept / "demo"


def test_digits() -> None:
    assert len(follow("digits.md")) >= 12
    assert Path("plots/classes.png").exists() and Path("report.html").exists()


def test_your_network_ends_in_a_smaller_onnx_file() -> None:
    follow("your-network.md")
    (file,) = Path().glob("resnet18.*.onnx")
    source = call("inspect", "resnet18.pt", "--input-size", 64)
    ours = call("inspect", file.with_suffix(".safetensors"))
    assert ours["macs_dense"] < 0.6 * source["macs_dense"]
    assert ours["params"] < 0.6 * source["params"]
    numbers = sum(math.prod(each.dims) for each in onnx.load(file).graph.initializer)
    assert 0 < numbers < 1.01 * ours["params"]


def test_your_data_is_the_same_in_every_form() -> None:
    scores = [call(*shlex.split(line)[1:]) for line in follow("your-data.md")]
    assert len(scores) == 4
    assert len({score["top1"] for score in scores}) == 1


def test_exits_on_top() -> None:
    follow("exits.md")
    assert Path("careful.split.json").exists()
