"""gatecli log and gatecli use: what made a checkpoint, and which one is current."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatecli.checkpoint.atomic import check_name
from gatecli.cli import workspace
from gatecli.cli.config import config_of, config_text
from gatecli.cli.options import Checkpoint
from gatecli.cli.render import gmacs, percent, table
from gatecli.cli.session import Session
from gatecli.cli.text import show
from gatecli.errors import CheckpointError

if TYPE_CHECKING:
    from gatecli.traced.recipe import Recipe, Step

__all__ = ["log", "use"]


def log(
    session: Session,
    *,
    checkpoint: Checkpoint = None,
    config: Annotated[
        bool,
        typer.Option(
            "--config",
            help="Print instead the latest finetune's options, as a file for finetune --config.",
        ),
    ] = False,
) -> dict[str, Any]:
    """Print the steps that made a checkpoint.

    What, when, with which settings, accuracy and MACs then.
    """
    from gatecli.checkpoint import read_recipe

    path = session.checkpoint(checkpoint)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    recipe = read_recipe(path)
    if recipe is None:
        raise CheckpointError(f"{path} is no gatecli checkpoint, so it carries no steps")
    try:
        rows = _rows(recipe)
        options = {"config": config_of(recipe, path)} if config else {}
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise CheckpointError(
            f"{path} carries steps that make no sense ({error}): the file is damaged"
        ) from error
    if config and not session.json_:
        for line in config_text(options["config"]).splitlines():
            show(line)
    elif not session.json_:
        table(session, str(path), ("<step", "<when", "<settings", "val top-1", "GMACs"), rows)
    return {
        "checkpoint": str(path),
        "arch": recipe.source.arch,
        "source": asdict(recipe.source),
        "baseline": recipe.baseline,
        "steps": [asdict(step) for step in recipe.steps],
        **options,
    }


def _rows(recipe: Recipe) -> list[tuple[str, ...]]:
    source = recipe.source
    baseline = percent((recipe.baseline or {}).get("top1"))
    first = ("source", "", f"{source.file}: {source.arch}", baseline, gmacs(source.macs))
    return [first, *(_row(step) for step in recipe.steps)]


def _row(step: Step) -> tuple[str, ...]:
    from gatecli.stages.told_steps import settings_in_words

    macs = step.results.get("macs_expected")
    return (
        step.op,
        step.at.replace("+00:00", "Z"),
        settings_in_words(step),
        percent(step.results.get("top1")),
        "" if macs is None else gmacs(macs),
    )


def use(
    session: Session,
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint to make current.")],
) -> dict[str, Any]:
    """Make a checkpoint the current one of this folder."""
    if not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint} does not exist")
    check_name(checkpoint)
    workspace.make_current(checkpoint)
    session.say(f"{checkpoint} is now current")
    return {"checkpoint": str(checkpoint)}
