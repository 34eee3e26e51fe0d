"""gatecli demo: the other commands, one after the other, on a small network."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from gatecli.cli.progress import Reporter
from gatecli.cli.render import MACS_FOOT, gmacs, megabytes, millions, percent, table
from gatecli.cli.session import Session
from gatecli.errors import GatecliError

__all__ = ["demo"]

SOURCE = "resnet20.pt"
REPEATS = 50  # timed calls
ATTACH = (
    "attach {0} --method ind-perbatch --set target_rate=0.5 --set loss_weight=4 --set gate_lr=10"
    " --input-size {1} --force"
)
FINETUNE = "finetune --data digits --epochs {0} --batch-size 64 --lr 0.05 --schedule cosine --force"
PRUNE = "prune --threshold 0.5 --force"
PROFILE = "profile {0} --batch 1,32 --repeats {1}"
EVAL = "eval {0} --data digits --split test"


def demo(
    session: Session,
    folder: Annotated[Path, typer.Option(help="Where the demo works.")] = Path("gatecli-demo"),
    epochs: Annotated[int, typer.Option(help="Epochs of each of the two trainings.", min=1)] = 16,
) -> dict[str, Any]:
    """Take a small network down the whole road: train, gate, fine-tune, prune, profile.

    Under three minutes on two cores.
    """
    from gatecli.stages.demo import SIZE, train_source

    folder.mkdir(parents=True, exist_ok=True)
    with _inside(folder):
        session.say(
            f"A CIFAR-style ResNet-20 on scikit-learn's handwritten digits, {SIZE}x{SIZE} pixels,"
            f" in {folder}/"
        )
        train_source(Path(SOURCE), epochs, Reporter(session), session.seed)
        attached = _call(session, ATTACH.format(SOURCE, SIZE))
        tuned = _call(session, FINETUNE.format(epochs))
        pruned = _call(session, PRUNE)
        scores = [_call(session, f"{EVAL.format(SOURCE)} --input-size {SIZE}")]
        for file in (tuned["out"], pruned["out"]):
            scores.append(_call(session, EVAL.format(file)))
        profiled = _call(session, PROFILE.format(f"{tuned['out']} {pruned['out']}", REPEATS))
    rows = []
    for row, score in zip(profiled["rows"], scores, strict=True):
        rows.append({**row, "top1": score["top1"]})
    _print(session, rows, profiled["threads"])
    removed = ", ".join(pruned["removed"]) or "nothing"
    session.say("")
    session.say(
        f"removed {removed}; the files are in {folder}/. Now yours: gatecli attach YOUR.pt --method"
        f" {attached['method']}"
    )
    return {
        "rows": rows,
        "out": str(folder / pruned["out"]),
        "removed": pruned["removed"],
        "split": "test",
        "threads": profiled["threads"],
    }


def _call(session: Session, line: str) -> dict[str, Any]:
    """Run a command as a user would, after printing it, and return its JSON."""
    from gatecli.cli.app import app

    session.say("")
    session.say(f"$ gatecli {line}")
    common = ["--json", "--seed", str(session.seed), "--device", session.device]
    if session.quiet:
        common.append("--quiet")
    if session.debug:
        common.append("--debug")
    if session.threads is not None:
        common += ["--threads", str(session.threads)]
    captured = io.StringIO()
    with contextlib.redirect_stdout(captured):
        code = app([*shlex.split(line), *common], standalone_mode=False)
    if code:
        raise GatecliError(f"the demo stopped at: gatecli {line}")
    result: dict[str, Any] = json.loads(captured.getvalue())
    return result


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in another folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _print(session: Session, rows: list[dict[str, Any]], threads: int) -> None:
    names = ("source", "gated and fine-tuned", "pruned")
    sizes = list(rows[0]["latency_ms"])
    columns = [
        "<",
        "test top-1",
        "GMACs",
        "parameters",
        "file",
        *(f"ms, batch {size}" for size in sizes),
        "speed-up",
        "ideal",
        "realised",
    ]
    cells = [_cells(name, row) for name, row in zip(names, rows, strict=True)]
    foot = (
        f"{MACS_FOOT}. Latency measured ({threads} threads, medians of interleaved calls); speed-up"
        f" at batch {sizes[0]}; ideal: by MACs."
    )
    table(session, "\nbefore and after", columns, cells, foot)


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    return [
        name,
        percent(row["top1"]),
        gmacs(row["macs_expected"]),
        millions(row["params"]),
        megabytes(row["file_bytes"]),
        *(f"{times['median']:.2f}" for times in row["latency_ms"].values()),
        f"{row['speedup']:.2f}x",
        f"{row['ideal_speedup']:.2f}x",
        f"{row['realised']:.2f}",
    ]
