"""Write a network with exits in pieces, and a runner beside them."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatecli.errors import DataError, ExportError
from gatecli.exporting.facts import KEY
from gatecli.exporting.registry import Format, Logits, Piece, Pieces, Task, titles
from gatecli.exporting.split import standalone
from gatecli.exporting.split.cut import pieces
from gatecli.exporting.split.names import piece_files, runner_file, split_files
from gatecli.network import Network
from gatecli.stages.fit import with_usual

__all__ = ["check_split", "digest", "runner_source", "write_split"]

RUNNER = """

{open_piece}

def load(threads: int = 0) -> Pieces:
    return Pieces(Path(__file__).with_name({name}), open_piece, threads)


if __name__ == "__main__":
    main(load)
"""


def check_split(format: Format, *, all_computed: bool, decisions: bool) -> None:
    """Raise ExportError where a format has no pieces, or an option says nothing about them."""
    if format.pieces is None:
        able = titles("pieces", " files")
        raise ExportError(f"--split is for {able}: {format.name} has no pieces")
    for option, given in (("--all-computed", all_computed), ("--decisions", decisions)):
        if given:
            raise ExportError(
                f"--split and {option} exclude each other: pieces take batches of any size, compute"
                " every branch within a stage, and tell the exit taken; leave one of them out"
            )


def write_split(task: Task, format: Format) -> Logits:
    """Write a description, a runner, and the stages of a network.

    Args:
        task: its files are those of `split_files`.
        format: of the stages.

    Returns:
        A function that runs the pieces as the runner does, and compares the exits taken.

    Raises:
        ExportError: the network has no exits, or the format cannot take a stage.
    """
    assert format.pieces is not None
    way = format.pieces()
    parts = pieces(task.network, task.image)
    with tempfile.TemporaryDirectory() as folder:  # runtimes open files by their own names
        out = Path(folder, task.out.name)
        for number, part in enumerate(parts):
            way.write(part, task.opset, piece_files(out, format, number))
        _describe(task, format, parts, out)
        runner_file(out).write_text(runner_source(way, out), encoding="utf-8")
        network = standalone.Pieces(out, way.open, torch.get_num_threads())
        files = split_files(out, format, len(parts) - 1)
        for source, target in zip(files, task.files, strict=True):
            shutil.copyfile(source, target)
    return lambda images: _same_exits(task.network, network, images)


def _describe(task: Task, format: Format, parts: Sequence[Piece], out: Path) -> None:
    """Write what the runner has to know: thresholds, and how images are prepared."""
    stages: list[dict[str, Any]] = []
    for number, part in enumerate(parts):
        files = piece_files(out, format, number)
        exit_ = part.exit
        stages.append(
            {
                "files": {file.name: digest(file) for file in files},
                "exit": None if exit_ is None else exit_.site,
                "threshold": None if exit_ is None else float(exit_.limit()),
            }
        )
    about = {KEY: _facts(task), "format": format.name, "stages": stages}
    out.write_text(json.dumps(about, indent=1), encoding="utf-8")


def digest(file: Path) -> str:
    """What a description says of a file: its SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _facts(task: Task) -> dict[str, Any]:
    """The facts, with the usual normalisation in full: the runner knows no usual one."""
    facts: dict[str, Any] = json.loads(task.facts[KEY])
    try:
        spec, _ = with_usual(task.network.input)
    except DataError:  # nothing is known of it: the runner takes normalised images alone
        return facts
    return {**facts, "mean": spec.mean, "std": spec.std, "origin": dict(spec.origin)}


def runner_source(way: Pieces, out: Path) -> str:
    """The source of the runner, which is what gatecli itself runs pieces with."""
    own = RUNNER.format(open_piece=inspect.getsource(way.open), name=json.dumps(out.name))
    source = re.sub(r"(from __future__|__all__) .*\n\n", "", inspect.getsource(standalone))
    return source.rstrip() + own


def _same_exits(network: Network, written: standalone.Pieces, images: Tensor) -> Tensor:
    """The pieces' logits. Raises ExportError where images leave elsewhere than in the network."""
    found, taken = written(images.numpy())
    with torch.no_grad():
        _, expected = network(images, return_exits=True)
    if taken.tolist() != expected.tolist():
        raise ExportError(
            "images leave the pieces by other exits than the network: this is a bug in gatecli;"
            " nothing was written"
        )
    return torch.from_numpy(found)
