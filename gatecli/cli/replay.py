"""gatecli replay: do to another source what a checkpoint's steps have done to its own."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from gatecli.cli.images import open_data
from gatecli.cli.options import Output, reads_checkpoints
from gatecli.cli.parsing import remembered
from gatecli.cli.progress import Reporter
from gatecli.cli.render import gmacs, millions
from gatecli.cli.session import Session
from gatecli.cli.workspace import output_of
from gatecli.errors import CheckpointError, Interrupted

if TYPE_CHECKING:
    from gatecli.data import DataSet
    from gatecli.network import Network
    from gatecli.traced.recipe import Recipe, Step

__all__ = ["replay"]

NAMES = {"attach": "", "finetune": "tuned", "calibrate": "calibrated", "prune": "pruned"}
WITHOUT_DATA = "it takes data: say --data"


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

    The same sites are gated and the same units removed, on the other source's weights.
    """
    from gatecli.checkpoint import write
    from gatecli.stages.replay import check_replayable

    recipe = _recipe(checkpoint)
    target = output_of(Path(on), _named(recipe, with_data=data is not None), output)
    if session.reading["input_size"] is None:
        session.reading["input_size"] = "x".join(map(str, recipe.input.size))
    network = session.open(Path(on))
    check_replayable(recipe, network)
    work = _Work(session=session, data=None)
    if data is not None:
        work = _Work(session=session, data=open_data(session, network, remembered(data)))
    before = network
    steps = []
    try:
        with session.working():
            for step in recipe.steps:
                network, why = work.again(network, step)
                said = f"done again: {step.op}" if why is None else f"left out: {step.op}, as {why}"
                session.say(said)
                steps.append({"op": step.op, "done": why is None, "reason": why})
    except Interrupted as error:
        raise Interrupted(f"{error}; nothing was written") from error
    write(network, target, reload=True)
    session.say(
        f"parameters {millions(before.params)} -> {millions(network.params)}, GMACs"
        f" {gmacs(before.macs_dense)} -> {gmacs(network.macs_dense)}"
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


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What steps are done again with."""

    session: Session
    data: DataSet | None

    def again(self, network: Network, step: Step) -> tuple[Network, str | None]:
        """The network behind one step more, and why it was left out, where it was."""
        from gatecli.stages import replay as structure

        try:
            if step.op == "attach":
                return structure.replay_attach(network, step), None
            if step.op == "prune":
                return structure.replay_prune(network, step), None
            if self.data is None:
                return network, WITHOUT_DATA
            return self._with_data(network, step, self.data)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"the step {step.op} cannot be done again ({error!r}): the file is damaged"
            ) from error

    def _with_data(self, network: Network, step: Step, data: DataSet) -> tuple[Network, str | None]:
        if step.op == "finetune":
            return self._tuned(network, step, data), None
        if step.op == "price":
            return self._priced(network, step), None
        if step.op == "calibrate" and not network.site_exits:
            return self._calibrated(network, step, data), None
        return network, "gatecli replay does not know how: do it by its command"

    def _tuned(self, network: Network, step: Step, data: DataSet) -> Network:
        from gatecli.training import TrainOptions, finetune

        names = {each.name for each in fields(TrainOptions)}
        told = {name: value for name, value in step.settings.items() if name in names}
        return finetune(
            network,
            data,
            TrainOptions(**told),
            changes=_changes(network, step),
            progress=Reporter(self.session),
        ).network

    def _priced(self, network: Network, step: Step) -> Network:
        from gatecli.stages import price

        return price.price(network, price.How(**step.settings), progress=Reporter(self.session))[0]

    def _calibrated(self, network: Network, step: Step, data: DataSet) -> Network:
        from gatecli.calibration import calibrate

        names = ("target_acc", "max_drop", "max_gmacs", "max_ms", "per_gate")
        told = {name: step.settings[name] for name in names if step.settings.get(name) is not None}
        return calibrate(network, data, **told, progress=Reporter(self.session)).network


def _changes(network: Network, step: Step) -> dict[str, Any]:
    """The settings that a training was told, rather than what it took from its own length."""
    from gatecli.stages.told_steps import changes_of

    attached = network.recipe.last("attach")
    if attached is None or step.settings["method"] not in network.gated_by.values():
        return {}
    return changes_of(step, attached)


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
