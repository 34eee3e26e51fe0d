"""gatecli demo: the other commands, one after the other, on a small network."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from gatecli.cli.progress import Reporter
from gatecli.cli.render import MACS_FOOT, gmacs, megabytes, millions, percent, table
from gatecli.cli.session import Session
from gatecli.cli.typed import typed

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
        attached = typed(session, ATTACH.format(SOURCE, SIZE))
        tuned = typed(session, FINETUNE.format(epochs))
        pruned = typed(session, PRUNE)
        scores = [typed(session, f"{EVAL.format(SOURCE)} --input-size {SIZE}")]
        for file in (tuned["out"], pruned["out"]):
            scores.append(typed(session, EVAL.format(file)))
        profiled = typed(session, PROFILE.format(f"{tuned['out']} {pruned['out']}", REPEATS))
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
