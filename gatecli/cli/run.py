"""The command `gatecli run`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatecli import exporting
from gatecli.checkpoint.atomic import check_name
from gatecli.cli.images import open_data, show_images
from gatecli.cli.options import Data, reads_checkpoints
from gatecli.cli.parsing import check_between, remembered
from gatecli.cli.precision import Precision, run_in
from gatecli.cli.render import table
from gatecli.cli.session import Session
from gatecli.errors import DataError, SettingError
from gatecli.exporting.split.names import SUFFIX

if TYPE_CHECKING:
    from gatecli.exporting.runner import Runner
    from gatecli.stages.classify import Prediction

__all__ = ["run"]

NOT_TOLD = "not told"
MOST = 10000  # classes to show, and timed calls


def _models() -> str:
    """What a network can be read from, for the help."""
    nouns = [each.noun for each in exporting.registered() if each.open is not None]
    return f"A checkpoint, or {' or '.join(nouns)} that gatecli export wrote (--split: *{SUFFIX})."


@reads_checkpoints
def run(
    session: Session,
    model: Annotated[str, typer.Argument(help=_models())],
    images: Annotated[list[str], typer.Argument(help="Image files.")],
    top: Annotated[int, typer.Option(help="How many classes to show.")] = 3,
    repeats: Annotated[
        int, typer.Option(help="Timed calls an image, of which the median is printed.")
    ] = 5,
    precision: Precision = "fp32",
    data: Data = None,
) -> dict[str, Any]:
    """Classify image files: the classes, the exit taken, the blocks skipped, and milliseconds."""
    from gatecli.stages.classify import predict

    check_between("top", top, 1, MOST)
    check_between("repeats", repeats, 1, MOST)
    check_name(Path(model))
    opener = exporting.opener(model)
    if opener is None:
        runner = _native(session, model, remembered(data), precision)
    else:
        _check_untold(precision)
        runner = opener(Path(model))
    _show_images(session, runner)
    found = predict(runner, images, top, repeats)
    if not session.json_:
        _print(session, found, runner)
    return {
        "checkpoint": model,
        "arch": runner.facts.arch,
        "exits": runner.facts.exits,
        "gates": runner.facts.gates,
        "precision": precision if opener is None else runner.facts.precision,
        "predictions": [asdict(one) for one in found],
    }


def _check_untold(precision: str) -> None:
    if precision != "fp32":
        raise SettingError(
            "expected --precision with a checkpoint: what an exported file computes in is fixed in"
            " it, or chosen by its runtime"
        )


def _native(session: Session, model: str, data: str | None, precision: str) -> Runner:
    """A checkpoint's network.

    With the classes' names and the normalisation of its data set, where that is to be had.
    """
    from gatecli.stages.classify import native

    network = session.open(Path(model))
    classes: tuple[str, ...] = ()
    try:
        if data is not None or network.recipe.data:
            classes = open_data(session, network, data).classes
    except DataError:
        if data is not None:
            raise
    run_in(session, network, precision)
    return native(network, classes)


def _show_images(session: Session, runner: Runner) -> None:
    """Say how the files are prepared, and what was assumed of it."""
    from gatecli.stages.fit import with_usual

    if session.input is not None:  # said with the data set
        return
    spec, notes = with_usual(runner.facts.input())
    for note in notes:
        session.say(f"note: {note}")
    show_images(session, spec, cropped=runner.facts.crop)


def _print(session: Session, found: list[Prediction], runner: Runner) -> None:
    columns = ("<image", "<classes", "<left at", "skipped", "ms")
    rows = [_row(one, runner) for one in found]
    told = all(one.exit is not None and one.skipped is not None for one in found)
    foot = "" if told else f"{NOT_TOLD}: a file in one piece, exported with --decisions, tells"
    table(session, "", columns, rows, foot)


def _row(one: Prediction, runner: Runner) -> tuple[str, ...]:
    gates = len(runner.facts.gates)
    classes = [_named(each) for each in one.classes]
    left = "-"
    if runner.facts.exits:
        left = one.exit or NOT_TOLD
    skipped = "-"
    if one.skipped is None:
        skipped = NOT_TOLD
    elif gates:
        skipped = f"{len(one.skipped)} of {gates}"
    return one.image, ", ".join(classes), left, skipped, f"{one.ms:.2f}"


def _named(found: dict[str, Any]) -> str:
    return f"{found['name'] or found['class']} {100 * found['probability']:.1f} %"
