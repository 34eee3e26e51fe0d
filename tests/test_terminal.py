"""What a file says is shown, and obeyed by no terminal; errors are one line whatever raises them.

Help is plain text.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from commandline import SIDE, Done, call, edit, run, save_npz, save_source
from PIL import Image

import gatecli.cli
from gatecli.cli import progress
from gatecli.cli.app import COMMANDS, app
from gatecli.cli.text import LONGEST, one_line, printable
from gatecli.errors import GatecliError
from gatecli.stages import evaluate as evaluation

ROOT = Path(gatecli.cli.__file__).parent.parent.parent
EVIL = "\x1b[2J\x1b]0;owned\x07\r\b\x9b31m\u202egnp.\u2028\x7f"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a gated checkpoint whose recipe holds what terminals obey wherever text may be."""
    folder = tmp_path_factory.mktemp("shelf")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_npz(Path("data.npz"))
        save_source(Path("r20.pt"))
        call(
            "attach",
            "r20.pt",
            "--method",
            "aig-perbatch",
            "--input-size",
            SIDE,
            "--out",
            "good.safetensors",
        )
        edit(Path("good.safetensors"), Path("evil.safetensors"), recipe=spoil)
        shutil.rmtree(".gatecli")
    return folder


def spoil(said: dict[str, Any]) -> None:
    said["source"]["file"] = f"r20{EVIL}.pt"
    for step in said["steps"]:
        step["at"] = EVIL
        step["results"]["note"] = EVIL
    said["steps"].append({"op": f"tune{EVIL}", "at": EVIL, "settings": {EVIL: EVIL}, "results": {}})


@pytest.fixture
def here(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for file in shelf.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def tame(done: Done) -> Done:
    """Nothing that was printed makes a terminal do anything but show it."""
    for line in (done.out + done.err).split("\n"):
        assert line.isprintable(), line
    return done


# --- a terminal never obeys a file ---


@pytest.mark.parametrize(
    "text",
    [
        "a\x1b[31m",
        "\r",
        "\n",
        "\x00",
        "\x7f",
        "\x9b",
        "\u202e",
        "\u2028",
        "\ud800",
        "\udcff",  # noqa: PT014 - ruff takes one lone surrogate for another
        "\u200b",
        "\xa0",
    ],
)
def test_what_is_not_printable_is_escaped(text: str) -> None:
    assert printable(text).isascii() and printable(text).isprintable()
    assert printable(text).encode("ascii").decode("unicode_escape") == text


def test_what_is_printable_stays() -> None:
    for text in ("", "a b", "naïve 漢字 café [red] C:\\x", "€"):
        assert printable(text) == text


@pytest.mark.parametrize("length", [0, 1, 599, 600, 601, 100_000])
@pytest.mark.parametrize("sign", ["a", "\x1b", "漢"])
def test_error_lines_are_cut(length: int, sign: str) -> None:
    text = f"begin {sign * length}. the way out"
    line = one_line(text)
    assert len(line) <= LONGEST and line.isprintable()
    assert line.startswith("begin ") and line.endswith(". the way out")
    assert len(line) == LONGEST or line == printable(text)


@pytest.mark.parametrize(
    "command",
    [
        "log",
        "inspect",
        "inspect --kind all",
        "eval --data npz:data.npz",
        "gates --data npz:data.npz",
        "profile --repeats 3",
        "profile --repeats 3 --data npz:data.npz",
        "prune --data npz:data.npz",
        "export",
        "finetune --data npz:data.npz --epochs 1 --batch-size 48",
        "calibrate --data npz:data.npz --target-acc 1",
    ],
)
def test_texts_from_a_checkpoint(here: Path, command: str) -> None:
    name, *options = command.split()
    done = tame(run(name, "evil.safetensors", *options))
    assert "Traceback" not in done.err and "a bug in gatecli" not in done.err
    assert done.code == 0, done.err


def test_a_log_still_tells(here: Path) -> None:
    told = tame(run("log", "evil.safetensors")).out
    assert r"tune\x1b[2J" in told and r"r20\x1b[2J" in told


@pytest.mark.parametrize("where", ["arch", "file", "method", "site"])
def test_errors_that_repeat_a_file(here: Path, where: str) -> None:
    def change(said: dict[str, Any]) -> None:
        places: dict[str, tuple[Any, Any]] = {
            "arch": (said["source"], "arch"),
            "file": (said["source"], "arch_args"),
            "method": (said["steps"][0]["settings"], "method"),
            "site": (said["steps"][0]["settings"]["sites"], 0),
        }
        owner, key = places[where]
        owner[key] = "cifar:" + EVIL + "x" * 100_000

    edit(Path("good.safetensors"), Path("bad.safetensors"), recipe=change)
    done = tame(run("inspect", "bad.safetensors"))
    assert done.code == 1 and done.err.count("\n") == 1 and len(done.err) <= LONGEST + 1, done.err[
        :2000
    ]


def test_names_of_classes_images_and_files(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # a narrower table wraps them
    evil = "\x1b[2J\u202e\n"
    for split in ("train", "val"):
        for number in range(10):
            Path("images", split, f"{number}{evil}").mkdir(parents=True)
            Image.fromarray(np.full((9, 9, 3), 20 * number, np.uint8)).save(
                f"images/{split}/{number}{evil}/0.png"
            )
    picture, moved = f"cat{evil}.png", f"net{evil}.safetensors"
    shutil.copy(f"images/val/0{evil}/0.png", picture)
    shutil.copy("good.safetensors", moved)
    told = tame(run("run", moved, picture, "--data", "imagefolder:images"))
    assert (
        told.code == 0 and r"0\x1b[2J\u202e\n" in told.out and r"cat\x1b[2J\u202e\n.png" in told.out
    )
    assert tame(run("use", moved)).code == 0
    assert tame(run("inspect")).code == 0
    Path(picture).write_bytes(b"no image")
    assert tame(run("run", "good.safetensors", picture, "-q")).err.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        ["\x1b[2J"],
        ["eval", "--\x1b[2J"],
        ["eval", "a", "\x1b[2J"],
        ["eval", "--batch-size", "\x1b[2J"],
        ["eval", "--workers", "1\x1b[2J"],
    ],
)
def test_usage_errors(here: Path, line: list[str]) -> None:
    assert tame(run(*line)).code == 2


def test_progress(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)

    def work(*args: Any, **named: Any) -> Any:
        with named["progress"].task(EVIL, 3) as task:
            task.advance(**{EVIL: EVIL})
        named["progress"].say(EVIL)
        raise GatecliError(EVIL)

    monkeypatch.setattr(evaluation, "evaluate", work)
    assert r"\x1b[2J" in tame(run("eval", "good.safetensors", "--data", "npz:data.npz")).err
    shown: list[str] = []
    monkeypatch.setattr(progress, "_bar", lambda: Seen(shown))
    monkeypatch.setattr(
        progress, "sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True))
    )
    run("eval", "good.safetensors", "--data", "npz:data.npz")
    assert len(shown) == 2 and all(text.isprintable() for text in shown)


class Seen:
    """In the place of rich's bar: what it would show."""

    def __init__(self, shown: list[str]) -> None:
        self.shown = shown

    def __enter__(self) -> Seen:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add_task(self, label: str, **_: Any) -> int:
        self.shown.append(label)
        return 0

    def update(self, *_: Any, shown: str, **__: Any) -> None:
        self.shown.append(shown)


def test_one_place_prints() -> None:
    """In the command line's files only these call print.

    The text module, tables (of escaped cells), the JSON (which is ASCII), and the version.
    """
    calls = {
        file.name: sum(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
            for node in ast.walk(ast.parse(file.read_text()))
        )
        for file in Path(gatecli.cli.__file__).parent.glob("*.py")
    }
    assert {name: count for name, count in calls.items() if count} == {
        "text.py": 2,
        "render.py": 1,
        "session.py": 1,
        "program.py": 1,
    }


def program(*line: str, code: str = "-m gatecli", **env: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    path = os.pathsep.join([*filter(None, [env.pop("STUBS", "")]), str(ROOT)])
    return subprocess.run(
        [sys.executable, *(code.split() if code.startswith("-m") else ["-c", code]), *line],
        env={**os.environ, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
    )


def test_a_traceback(here: Path) -> None:
    done = program("inspect", f"no{EVIL}.pt", "--debug")
    assert "Traceback" in done.stderr and "CheckpointError" in done.stderr
    tame(Done(done.returncode, done.stdout, done.stderr))


def test_a_terminal_without_unicode(here: Path) -> None:
    done = program("log", "good.safetensors", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0 and "aig-perbatch" in done.stdout, done.stderr


# --- one clear line, whatever raises ---

FULL = [
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory:"
        " you tried to allocate 9 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried"
        " to allocate 9 bytes."
    ),
    RuntimeError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("CUDA out of memory. Tried to allocate 9 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    RuntimeError("Failed to allocate memory for requested buffer of size 9"),
    torch.OutOfMemoryError("tried"),
    MemoryError(),
    MemoryError("Unable to allocate 9 TiB for an array"),
    getattr(np, "exceptions", np).AxisError("Unable to allocate"),
    OSError(12, "Cannot allocate memory"),
]


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> str:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(evaluation, "evaluate", fail)
    done = run("eval", "good.safetensors", "--data", "npz:data.npz", "-q")
    assert (
        (done.code, done.out, done.err.count("\n")) == (1, "", 1)
        and done.err.startswith("error: ")
        and "a bug in gatecli" not in done.err
    )
    return done.last


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:40])
def test_no_memory_in_any_words(
    here: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    assert "not enough memory: take smaller" in failing(monkeypatch, error)


def test_damaged_compression(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "damaged" in failing(
        monkeypatch, zlib.error("Error -3 while decompressing data: invalid block type")
    )


def test_a_name_that_a_library_cannot_encode(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnicodeEncodeError) as caught:
        "net\udcff.x".encode()
    assert r"net\udcff.x" in failing(monkeypatch, caught.value)


# --- Ctrl-C while modules are imported ---

SCRIPT = "import re\nimport sys\nfrom gatecli.cli.app import main\nsys.exit(main())"
STUB = """import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except BaseException:  # as many do
    pass
"""


@pytest.mark.parametrize("code", ["-m gatecli", SCRIPT], ids=["module", "script"])
@pytest.mark.parametrize("module", ["typer", "torch", "gatecli_own"])
def test_an_interrupted_import(here: Path, code: str, module: str) -> None:
    """Of what the command line needs, of torch, and of a user's code.

    One line, whatever the import makes of exceptions.
    """
    Path("stubs", module).mkdir(parents=True)
    Path("stubs", module, "__init__.py").write_text(STUB)
    done = program(
        "inspect",
        "r20.pt",
        *(["--arch", "gatecli_own:net"] if module == "gatecli_own" else []),
        code=code,
        STUBS=str(here / "stubs"),
    )
    assert (done.returncode, done.stdout) == (
        130,
        "",
    ) and done.stderr == "error: interrupted; nothing was written\n", done


def test_nothing_heavy_comes_before_the_handler() -> None:
    code = (
        "import sys; before = set(sys.modules); import gatecli.cli.app;"
        " print(*sorted(set(sys.modules) - before))"
    )
    loaded = set(program(code=code).stdout.split())
    assert loaded <= {
        "gatecli",
        "gatecli.cli",
        "gatecli.cli.app",
        "gatecli.cli.interrupts",
        "__future__",
        "signal",
        "enum",
        "types",
        "operator",
        "_operator",
        "functools",
        "_functools",
        "collections",
        "_collections",
        "keyword",
        "reprlib",
        "itertools",
    }


def test_sigint_stays_ignored() -> None:
    """As where a shell starts a command in the background."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nfrom gatecli.cli import app,"
        " program\nprogram.start = lambda: print(signal.getsignal(signal.SIGINT) is"
        " signal.SIG_IGN)\napp.main()"
    )
    assert program(code=code).stdout == "True\n"


# --- help is plain text ---


@pytest.mark.parametrize("rich", ["1", "0"])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_shown_as_it_is_written(
    command: str, rich: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer.main

    monkeypatch.setattr("gatecli.cli.program.MARKUP", rich == "1")
    monkeypatch.setattr(typer.core, "HAS_RICH", rich == "1", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    told = " ".join(
        re.sub(r"[│╭╮╰╯─]", " ", run(*([command] if command else []), "--help").out).split()
    )
    group: Any = typer.main.get_command(app)
    shown = group.commands[command] if command else group
    helps = [shown.help, *(each.help for each in shown.params if getattr(each, "help", None))]
    for text in helps:
        assert "\\" not in text
        for bracket in re.findall(r"\[[^]]*\]", text):
            assert bracket in told, (bracket, told)
    for word in " ".join(helps).split():
        assert word in told, word
    assert "\\[" not in told


def test_brackets_are_in_some_help() -> None:
    assert "gatecli[report]" in " ".join(run("finetune", "--help").out.split())
