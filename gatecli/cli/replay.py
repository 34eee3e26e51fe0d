"""gatecli replay: do to another source what a checkpoint's steps have done to its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from gatecli.cli.images import open_data
from gatecli.cli.options import READING, Output, reads_checkpoints
from gatecli.cli.parsing import remembered
from gatecli.cli.render import gmacs, millions
from gatecli.cli.replay_steps import Replaying
from gatecli.cli.session import Session
from gatecli.cli.typed import options_spelled, spelled
from gatecli.cli.workspace import output_of
from gatecli.errors import CheckpointError

if TYPE_CHECKING:
    from gatecli.network import Network
    from gatecli.traced.recipe import Recipe

__all__ = ["replay"]

NAMES = {"attach": "", "finetune": "tuned", "calibrate": "calibrated", "prune": "pruned"}


@reads_checkpoints
def replay(
    session: Session,
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint whose steps are done again.")],
    *,
    on: Annotated[
        str,
        typer.Option("--on", help="Another source of the same architecture.", show_default=False),
    ],
    data: Annotated[
        Optional[str],
        typer.Option(
            help=(
                "Data set with which trainings and calibrations are run again, as they were set;"
                " none: they are left out."
            ),
            show_default=False,
        ),
    ] = None,
    output: Output = Output(),
) -> dict[str, Any]:
    """Do a checkpoint's steps again, on another source.

    The same sites are gated and the same units removed, on the other source's weights. Stopped, it
    goes on when the same is typed again.
    """
    from gatecli.checkpoint import write
    from gatecli.stages.replay import check_replayable

    recipe = _recipe(checkpoint)
    target = output_of(Path(on), _named(recipe, with_data=data is not None), output)
    line = spelled("replay", checkpoint, "--on", on, *options_spelled(session.reading, READING))
    if session.reading["input_size"] is None:
        session.reading["input_size"] = "x".join(map(str, recipe.input.size))
    source = session.open(Path(on))
    check_replayable(recipe, source)
    dataset = None
    if data is not None:
        dataset = open_data(session, source, remembered(data))
        line = f"{line} {spelled('--data', dataset.spec)}"
    work = Replaying(session, target, line=line, recorded=checkpoint, data=dataset)
    with session.working():
        network, steps = work.replay(source, Path(on), recipe)
    write(network, target, reload=True)
    work.clear()
    session.say(
        f"parameters {millions(source.params)} -> {millions(network.params)}, GMACs"
        f" {gmacs(source.macs_dense)} -> {gmacs(network.macs_dense)}"
    )
    session.written(target)
    session.say(
        f"next: gatecli finetune --data ...{'' if network.gated_by else ' --train weights'}"
    )
    return _json(network, on, target, steps)


def _recipe(path: Path) -> Recipe:
    """The recipe of the checkpoint whose steps are done again."""
    from gatecli.checkpoint import read_recipe

    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    recipe = read_recipe(path)
    if recipe is None or not recipe.steps:
        raise CheckpointError(f"{path} carries no steps that could be done again")
    return recipe


def _named(recipe: Recipe, *, with_data: bool) -> str:
    """What the name of the output says was done."""
    words = []
    for step in recipe.steps:
        if step.op == "attach":
            words.append(str(step.settings["method"]))
        elif step.op == "prune" or (with_data and step.op in NAMES):
            words.append(NAMES[step.op])
    return ".".join(words) or "replayed"


def _json(network: Network, on: str, target: Path, steps: list[dict[str, Any]]) -> dict[str, Any]:
    from gatecli.network.costs import expected_macs, known_rates

    return {
        "checkpoint": on,
        "out": str(target),
        "arch": network.recipe.source.arch,
        "steps": steps,
        "params": network.params,
        "macs_dense": network.macs_dense,
        "macs_expected": expected_macs(network, known_rates(network)),
    }
