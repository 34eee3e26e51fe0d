"""Files that are replaced, what killed writers leave, and odd names."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commandline import SIDE, call, refused, run, same, save_npz, save_source, strict
from PIL import Image

import gatecli
from gatecli.checkpoint import atomic
from gatecli.checkpoint.atomic import OURS, replacing
from gatecli.cli import workspace
from gatecli.errors import CheckpointError

ROOT = Path(gatecli.__file__).parent.parent
KILLED = """
import os, signal, sys
from pathlib import Path
from gatecli.checkpoint.atomic import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(path: Path) -> Path:
    """What a process that is killed while it writes `path` leaves."""
    before = set(path.parent.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == -signal.SIGKILL
    (left,) = set(path.parent.iterdir()) - before
    assert OURS.fullmatch(left.name), left
    return left


def write(path: Path, text: str = "new") -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


# --- temporary files ---


def test_what_killed_writers_leave_is_swept(tmp_path: Path) -> None:
    """By whoever writes in that folder next, whatever file."""
    first, second = killed(tmp_path / "x.safetensors"), killed(tmp_path / "y")
    assert second.exists() and not first.exists()  # the second writer has swept what the first left
    write(tmp_path / "z")
    assert [file.name for file in tmp_path.iterdir()] == ["z"]


def test_a_command_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_source(Path("r20.pt"))
    Path(".gatecli").mkdir()
    killed(Path("r20.ind-perbatch.safetensors").absolute())
    killed(Path(".gatecli/current").absolute())
    call("attach", "r20.pt", "--method", "ind-perbatch", "--input-size", SIDE)
    assert not list(Path().rglob("*.tmp"))


def test_others_files_stay(tmp_path: Path) -> None:
    """A writer's that lives, another machine's that is young, and whatever has another name."""
    alive = tmp_path / f".x.gatecli-{atomic._machine()}-{os.getpid()}-abc.tmp"
    elsewhere = tmp_path / ".x.gatecli-00000000-1-abc.tmp"
    others = [
        ".x.abc.tmp",
        "x.gatecli-00000000-1-abc.tmp",
        ".x.gatecli-00000000-1-abc.tmp.bak",
        ".x.gatecli-00000000-1.tmp",
        ".vimrc",
        ".gatecli-1.tmp",
        f".x.gatecli-{atomic._machine()}-9999999999999-a.tmp",
    ]
    for path in (alive, elsewhere, *(tmp_path / name for name in others)):
        path.write_text("kept")
        if path not in (alive, elsewhere):
            os.utime(path, (0, 0))
    write(tmp_path / "x")
    assert all(
        path.read_text() == "kept"
        for path in (alive, elsewhere, *(tmp_path / name for name in others))
    )
    os.utime(elsewhere, (0, time.time() - 2 * atomic.FORGOTTEN))
    write(tmp_path / "x")
    assert alive.exists() and not elsewhere.exists()


def test_two_writers_at_once(tmp_path: Path) -> None:
    with replacing(tmp_path / "x") as first, replacing(tmp_path / "x") as second:
        first.write_text("first")
        second.write_text("second")
        write(tmp_path / "y")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "x": "first",
        "y": "new",
    }


def test_a_folder_or_a_link_with_such_a_name(tmp_path: Path) -> None:
    """A folder stays; of a link, what it leads to."""
    (tmp_path / ".a.gatecli-00000000-1-abc.tmp").mkdir()
    (tmp_path / "precious").write_text("kept")
    (tmp_path / ".b.gatecli-00000000-1-abc.tmp").symlink_to("precious")
    os.utime(tmp_path / ".b.gatecli-00000000-1-abc.tmp", (0, 0), follow_symlinks=False)
    os.utime(tmp_path / ".a.gatecli-00000000-1-abc.tmp", (0, 0))
    write(tmp_path / "x")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        ".a.gatecli-00000000-1-abc.tmp",
        "precious",
        "x",
    ]


# --- permissions ---


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664, 0o755, 0o400])
def test_permissions_of_a_replaced_file_are_kept(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "x"
    path.write_text("before")
    path.chmod(mode)
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_text() == "new"


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away"
)
def test_the_owner_of_a_replaced_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("before")
    os.chown(path, 12345, 23456)
    write(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


def test_an_owner_that_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    path = tmp_path / "x"
    path.write_text("before")
    path.chmod(0o640)
    monkeypatch.setattr(atomic.os, "chown", refuse)
    write(path)
    assert path.read_text() == "new" and stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_command_keeps_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_source(Path("r20.pt"))
    line = [
        "attach",
        "r20.pt",
        "--method",
        "ind-perbatch",
        "--input-size",
        SIDE,
        "--out",
        "mine.safetensors",
        "--force",
    ]
    call(*line)
    Path("mine.safetensors").chmod(0o600)
    call(*line)
    assert stat.S_IMODE(Path("mine.safetensors").stat().st_mode) == 0o600


# --- names ---


@pytest.mark.parametrize(
    "name", ["x" * 255, "漢" * 85, "é" * 127, "\n", " ", os.fsdecode(b"\xff" * 200), "x\n.tmp"]
)
def test_any_name_can_be_written(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    assert os.listdir(tmp_path) == [name]
    assert OURS.fullmatch(killed(tmp_path / name).name)
    write(tmp_path / name)
    assert os.listdir(tmp_path) == [name]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "name",
    [
        " before",
        "after ",
        "two  inside",
        "\ttab\t",
        "line\nend\n",
        "\r\n",
        "naïve 漢字",
        "-",
        "--out",
        "a\\nb",
        "%s {0} [red]",
        "x" * 200,
    ],
)
def test_the_current_checkpoint_may_have_any_name(here: Path, name: str) -> None:
    for path in (name, f"folder {name}/{name}"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_bytes(b"x")
        assert strict(run("use", "--json", "--", path).out)["checkpoint"] == path
        assert workspace.current() == Path(path)


def test_current_by_hand(here: Path) -> None:
    """With a line end or without; what is no file to read is no name."""
    Path("net").write_bytes(b"x")
    Path(".gatecli").mkdir()
    for text in ("net", "net\n"):
        workspace.CURRENT.write_text(text)
        assert workspace.current() == Path("net")
    workspace.CURRENT.unlink()
    os.mkfifo(workspace.CURRENT)
    refused("inspect", "no current checkpoint")


def test_the_road_with_odd_names(here: Path) -> None:
    """Checkpoints, data, images, exports: written, current, and read again."""
    stem = " naïve\n漢字, before and after "
    save_source(Path(f"{stem}.pt"))
    save_npz(Path(f"{stem}.npz"))
    out = call("attach", f"{stem}.pt", "--method", "ind-perbatch", "--input-size", SIDE)["out"]
    assert out == f"{stem}.ind-perbatch.safetensors"
    tuned = call("finetune", "--data", f"npz:{stem}.npz", "--epochs", 1, "--batch-size", 48)
    assert tuned["checkpoint"] == out
    assert call("prune")["checkpoint"] == tuned["out"]
    assert (
        call("profile", "--repeats", 3)["checkpoint"]
        == f"{stem}.ind-perbatch.tuned.pruned.safetensors"
    )
    Image.new("L", (SIDE, SIDE)).save(f"{stem}.png")
    for format in ("onnx", "weights"):
        exported = call("export", "--format", format)["out"]
        assert Path(exported).exists()
    assert (
        call("run", f"{stem}.ind-perbatch.tuned.pruned.onnx", f"{stem}.png")["predictions"][0][
            "image"
        ]
        == f"{stem}.png"
    )
    shutil.rmtree(".gatecli/runs")
    assert same(out, out) and run("log").code == 0


LATIN = os.fsdecode(b"net\xff")


def test_names_that_are_not_utf8(here: Path) -> None:
    """Where the libraries that read and write files take them, they work.

    Else they are refused in one line, by every command.
    """
    save_source(Path("r20.pt"))
    save_npz(Path("data.npz"))
    call(
        "attach",
        "r20.pt",
        "--method",
        "ind-perbatch",
        "--input-size",
        SIDE,
        "--out",
        "good.safetensors",
    )
    shutil.copy("good.safetensors", f"{LATIN}.safetensors")
    shutil.copy("data.npz", f"{LATIN}.npz")
    Image.new("L", (SIDE, SIDE)).save("x.png")
    shutil.move("x.png", f"{LATIN}.png")
    shutil.copy("r20.pt", f"{LATIN}.pt")
    bad = f"{LATIN}.safetensors"
    for line in (
        ["use", bad],
        ["inspect", bad],
        ["log", bad],
        ["eval", bad, "--data", "npz:data.npz"],
        ["profile", "good.safetensors", bad],
        ["export", bad],
        ["run", bad, f"{LATIN}.png"],
        ["inspect", f"{LATIN}.pt"],
        ["run", f"{LATIN}.onnx", f"{LATIN}.png"],
        ["prune", "good.safetensors", "--out", bad, "--force"],
        ["export", "good.safetensors", "--out", f"{LATIN}.onnx"],
        [
            "attach",
            "r20.pt",
            "--method",
            "gaternet",
            "--gater",
            f"{LATIN}.pt",
            "--input-size",
            SIDE,
        ],
        [
            "finetune",
            "good.safetensors",
            "--data",
            "npz:data.npz",
            "--epochs",
            1,
            "--distill",
            1,
            "--teacher",
            bad,
        ],
        [
            "finetune",
            "good.safetensors",
            "--data",
            "npz:data.npz",
            "--epochs",
            1,
            "--tensorboard",
            LATIN,
        ],
    ):
        assert r"net\udcff" in refused(line, "UTF-8", "rename"), line
    with pytest.raises(CheckpointError, match="UTF-8"):
        gatecli.load(bad)
    found = call(
        "finetune",
        "good.safetensors",
        "--data",
        f"npz:{LATIN}.npz",
        "--epochs",
        1,
        "--batch-size",
        48,
    )
    assert call("eval", found["out"])["samples"] == 40
    found = call("run", "good.safetensors", f"{LATIN}.png")
    assert found["predictions"][0]["image"] == f"{LATIN}.png"  # a surrogate in JSON too
    assert run("run", "good.safetensors", f"{LATIN}.png").code == 0
