"""gatecli run"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatecli.checkpoint.atomic import check_name
from gatecli.cli.render import table
from gatecli.cli.session import Data, Session, reads_checkpoints, remembered
from gatecli.errors import DataError, SettingError

if TYPE_CHECKING:
    from gatecli.running import Prediction, Runner


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

    for name, value in (("top", top), ("repeats", repeats)):
        if not 1 <= value <= 10000:
            raise SettingError(f"expected --{name} to be between 1 and 10000, but got {value}")
    check_name(Path(model))
    runner = (
        running.exported(Path(model))
        if model.endswith(".onnx")
        else _native(session, model, remembered(data))
    )
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
    """The checkpoint's network, with the classes' names and the normalisation of its data set where
    that is to be had.
    """
    from gatecli import running
    from gatecli.inputs import open_data

    network, classes = session.open(Path(model)), tuple[str, ...]()
    try:
        if data is not None or network.recipe.data:
            classes = open_data(network, data).classes
    except DataError:
        if data is not None:
            raise
    return running.native(network, classes)


def _print(session: Session, found: list[Prediction], runner: Runner) -> None:
    gates, rows = len(runner.facts["gates"]), []
    for one in found:
        classes = ", ".join(
            f"{each['name'] or each['class']} {100 * each['probability']:.1f} %"
            for each in one.classes
        )
        skipped = (
            "not told"
            if one.skipped is None
            else f"{len(one.skipped)} of {gates}"
            if gates
            else "-"
        )
        rows.append(
            (
                one.image,
                classes,
                (one.exit or "not told") if runner.facts["exits"] else "-",
                skipped,
                f"{one.ms:.2f}",
            )
        )
    foot = (
        "not told: export with --decisions"
        if any(one.exit is None or one.skipped is None for one in found)
        else ""
    )
    table(session, "", ("<image", "<classes", "<left at", "skipped", "ms"), rows, foot)
