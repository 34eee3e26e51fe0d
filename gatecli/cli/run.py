"""gatecli run: classify image files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatecli.cli.options import Data, reads_checkpoints
from gatecli.cli.parsing import check_between, remembered
from gatecli.cli.render import table
from gatecli.cli.session import Session
from gatecli.errors import DataError
from gatecli.files import check_name

if TYPE_CHECKING:
    from gatecli.running import Prediction, Runner

__all__ = ["run"]

MOST = 10000  # classes shown, or timed calls


@reads_checkpoints
def run(
    session: Session,
    model: Annotated[
        str, typer.Argument(help="A checkpoint, or an ONNX file that gatecli export wrote.")
    ],
    images: Annotated[list[str], typer.Argument(help="Image files.")],
    top: Annotated[int, typer.Option(help="How many classes to show.")] = 3,
    repeats: Annotated[
        int, typer.Option(help="Timed calls an image, of which the median is printed.")
    ] = 5,
    data: Data = None,
) -> dict[str, Any]:
    """Classify image files: the classes, the exit taken, the blocks skipped, and milliseconds."""
    from gatecli import running

    check_between("top", top, 1, MOST)
    check_between("repeats", repeats, 1, MOST)
    check_name(Path(model))
    if model.endswith(".onnx"):
        runner = running.exported(Path(model))
    else:
        runner = _native(session, model, remembered(data))
    found = running.predict(runner, images, top, repeats)
    if not session.json_:
        _print(session, found, runner)
    return {
        "checkpoint": model,
        "arch": runner.facts["arch"],
        "exits": runner.facts["exits"],
        "gates": runner.facts["gates"],
        "predictions": [asdict(one) for one in found],
    }


def _native(session: Session, model: str, data: str | None) -> Runner:
    """The checkpoint's network.

    With the classes' names and the normalisation of its data set where that is to be had.
    """
    from gatecli import running
    from gatecli.inputs import open_data

    network = session.open(Path(model))
    classes: tuple[str, ...] = ()
    try:
        if data is not None or network.recipe.data:
            classes = open_data(network, data).classes
    except DataError:
        if data is not None:
            raise
    return running.native(network, classes)


def _print(session: Session, found: list[Prediction], runner: Runner) -> None:
    rows = []
    for one in found:
        left_at = (one.exit or "not told") if runner.facts["exits"] else "-"
        skipped = _skipped(one, len(runner.facts["gates"]))
        rows.append((one.image, _classes(one), left_at, skipped, f"{one.ms:.2f}"))
    untold = any(one.exit is None or one.skipped is None for one in found)
    foot = "not told: export with --decisions" if untold else ""
    table(session, "", ("<image", "<classes", "<left at", "skipped", "ms"), rows, foot)


def _classes(one: Prediction) -> str:
    """The likeliest classes with their probabilities."""
    words = []
    for each in one.classes:
        words.append(f"{each['name'] or each['class']} {100 * each['probability']:.1f} %")
    return ", ".join(words)


def _skipped(one: Prediction, gates: int) -> str:
    if one.skipped is None:
        return "not told"
    return f"{len(one.skipped)} of {gates}" if gates else "-"
