"""The command line in this process, and small things to try it on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer.testing
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from gatecli.architectures.build import build
from gatecli.cli.app import app

SIDE = 8  # pixels of the images below
# All commands are built from their signatures in a twentieth of a second, anew for each invocation.
typer.testing._get_command = cache(typer.main.get_command)


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code, and what it printed where."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        lines = [line for line in self.err.splitlines() if line.strip()]
        return lines[-1] if lines else ""


def run(*args: object) -> Done:
    result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="gatecli")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def call(*args: object) -> dict[str, Any]:
    """Run a command with --json and return its object."""
    done = run(*args, "--json")
    assert done.code == 0, done.err
    return strict(done.out)


def strict(text: str) -> dict[str, Any]:
    """The one JSON object that `text` is, without infinity or NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no strict JSON")

    found = json.loads(text, parse_constant=refuse)
    assert isinstance(found, dict)
    return found


def refused(args: str | list[object], *words: str, code: int = 1) -> str:
    """Run a command that must fail, in one line that has the words, and leave the folder as it is.

    Returns that line.
    """
    before = listing()
    done = run(*(args.split() if isinstance(args, str) else args))
    assert (done.code, done.out) == (code, ""), (done.code, done.out, done.err)
    assert done.last.startswith("error: ") and done.err.count("error: ") == 1, done.err
    assert "Traceback" not in done.err and "a bug in gatecli" not in done.last, done.err
    for word in words:
        assert word in done.last, (word, done.last)
    assert listing() == before
    return done.last


def listing() -> dict[str, bytes]:
    """Every file of the current folder by name, with its bytes; gatecli's own folder left out."""
    return {
        str(path): path.read_bytes()
        for path in sorted(Path().rglob("*"))
        if path.is_file() and ".gatecli" not in path.parts
    }


def current() -> str:
    return Path(".gatecli/current").read_text(encoding="utf-8").strip()


def save_source(path: Path, arch: str = "cifar:resnet20", seed: int = 0, **args: Any) -> Path:
    """A state dict with random weights, as a user would have it."""
    torch.manual_seed(seed)
    torch.save(build(arch, args).state_dict(), path)
    return path


def save_npz(path: Path, train: int = 96, val: int = 40, classes: int = 10) -> Path:
    """Images that a network can learn in no time: each class is bright in a place of its own."""
    chance = np.random.RandomState(0)
    arrays = {}
    for name, count in (("train", train), ("val", val), ("test", val)):
        labels = np.arange(count) % classes
        images = chance.randint(0, 60, (count, SIDE * SIDE))
        for place in range(5):
            images[np.arange(count), (labels * 6 + place) % (SIDE * SIDE)] += 190
        arrays |= {
            f"{name}_images": images.reshape(-1, SIDE, SIDE).astype(np.uint8),
            f"{name}_labels": labels.astype(np.uint8)[:, None],
        }
    np.savez(path, **arrays)
    return path


def contents(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint's tensors and its recipe."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(
            file.metadata()["gatecli"]
        )


def same(ours: str | os.PathLike[str], theirs: str | os.PathLike[str]) -> bool:
    """Whether two checkpoints hold the same tensors to the bit, and the same recipe but for the
    times in it.
    """
    (mine, recipe), (other, second) = contents(ours), contents(theirs)
    for step in (*recipe["steps"], *second["steps"]):
        del step["at"]
    return (
        list(mine) == list(other)
        and all(torch.equal(mine[name], other[name]) for name in mine)
        and recipe == second
    )


def edit(
    path: Path,
    out: Path,
    tensors: Callable[[dict[str, Tensor]], None] | None = None,
    recipe: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """A copy of a checkpoint with its tensors or its recipe changed."""
    held, said = contents(path)
    for change, thing in ((tensors, held), (recipe, said)):
        if change is not None:
            change(thing)  # type: ignore[arg-type]
    save_file(held, out, {"gatecli": json.dumps(said)})
    return out
