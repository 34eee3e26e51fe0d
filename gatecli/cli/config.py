"""finetune's options as a YAML file: read for `--config`, and printed by `gatecli log --config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gatecli.cli import several
from gatecli.cli.parsing import is_function
from gatecli.cli.recipe_file import read_recipe_file, spelled_name, told_by
from gatecli.cli.training_options import Training
from gatecli.errors import CheckpointError, SettingError

if TYPE_CHECKING:
    from gatecli.traced.recipe import Recipe, Step

__all__ = ["config_of", "config_text", "configured"]

# what only the command line says: how this one run behaves, who runs it, whether code may run
TYPED = (
    "config",
    "resume",
    "force",
    "json_",
    "quiet",
    "debug",
    "trust_pickle",
    "processes",
    "help",
)


def configured(path: Path, context: typer.Context, *, resume: bool) -> dict[str, Any]:
    """The options that a file says and that the command line does not, by the parameter's name.

    Args:
        path: The file.
        context: The command line.
        resume: Whether a run is resumed, which has options of its own.

    Raises:
        SettingError: The file is of no use here.
    """
    if resume:
        raise SettingError(
            "--resume goes on with the run's own settings: leave --config out, or start a new run"
            " without --resume"
        )
    told = told_by(read_recipe_file(path), path, context, TYPED)
    if "device" in told and several.started() > 1:
        raise SettingError(
            f"{path} says `device`, but the processes have met on theirs before it is read: type"
            f" --device {told['device']}"
        )
    return told


def config_of(recipe: Recipe, path: Path) -> dict[str, Any]:
    """The options of the latest finetune of a recipe, as a file has them; none stays away.

    Args:
        recipe: Of a checkpoint.
        path: The checkpoint, for errors.

    Raises:
        CheckpointError: There is no finetune.
    """
    step = recipe.last("finetune")
    if step is None:
        raise CheckpointError(
            f"{path} has not been trained by gatecli finetune, so it has no options of one"
        )
    names = ["data", *(each.name for each in fields(Training)), "seed"]
    found: dict[str, Any] = {}
    for name in names:
        value = step.settings.get(name)
        if value is not None:
            found[spelled_name(name)] = list(value) if isinstance(value, tuple) else value
    changes = _changes(recipe, step)
    return {**found, "set": changes} if changes else found


def _changes(recipe: Recipe, step: Step) -> dict[str, Any]:
    """What --set said, in the command line's words where these are no numbers."""
    from gatecli.methods.values import told
    from gatecli.stages.told_steps import changes_of

    method = step.settings["method"]
    attached = None
    for each in recipe.steps:
        if each.op == "attach" and each.settings["method"] == method:
            attached = each
    if attached is None:
        return {}
    found = {}
    for name, value in changes_of(step, attached).items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        found[name] = value if is_number else told(value)
    return found


def config_text(config: Mapping[str, Any]) -> str:
    """The file's text; what it must not say, or cannot know, stands there as a comment."""
    import yaml

    said = dict(config)
    lines = []
    if is_function(str(said.get("data", ""))):
        lines.append(f"# names code, so it is to be typed: --data {said.pop('data')}\n")
    if said.get("distill"):
        lines.append("# a teacher, if it was another network, is to be typed: --teacher FILE\n")
    text: str = yaml.safe_dump(said, sort_keys=False, allow_unicode=True)
    return "".join(lines) + text
