"""The steps that gatecli replay does again, one after the other."""

from __future__ import annotations

import math
import shutil
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatecli.cli.progress import Reporter
from gatecli.cli.road import Once, Road
from gatecli.cli.road_state import road_file
from gatecli.cli.session import Session
from gatecli.cli.typed import as_typed
from gatecli.errors import CheckpointError, Interrupted

if TYPE_CHECKING:
    from gatecli.data import DataSet
    from gatecli.network import Network
    from gatecli.traced.recipe import Recipe, Step
    from gatecli.training import Run

__all__ = ["Replaying"]

STRUCTURE = ("attach", "prune")
KNOWN = (*STRUCTURE, "finetune", "calibrate", "price")
GOALS = ("target_acc", "max_drop", "max_gmacs", "max_ms")
WITHOUT_DATA = "it takes data: say --data"


class Replaying:
    """Does steps again, each once: stopped anywhere, the same command goes on.

    Each step's network is kept in a file until all are done, and the next step begins with that
    file. So what comes out is the same, to the bit, whether or not it was stopped between.
    """

    def __init__(
        self, session: Session, out: Path, *, line: str, recorded: Path, data: DataSet | None
    ) -> None:
        """Begin, or go on with what was stopped.

        Args:
            session: The command's.
            out: What shall be written in the end.
            line: What the user typed.
            recorded: The checkpoint whose steps they are.
            data: With which trainings and calibrations are run; None: they are left out.

        Raises:
            CheckpointError: What is kept of it is damaged.
        """
        import torch

        self.session = session
        self.line = as_typed(session, line)
        self.recorded = recorded
        self.data = data
        threads = session.threads or torch.get_num_threads()
        self.road = Road(session, road_file("replay", out), {}, threads, again="the same command")
        self.folder = self.road.path.with_suffix("")
        torch.set_num_threads(self.road.state.threads)

    def replay(
        self, network: Network, path: Path, recipe: Recipe
    ) -> tuple[Network, list[dict[str, Any]]]:
        """The network behind all steps, and what became of each.

        Args:
            network: The source.
            path: Its file.
            recipe: What is done to it.

        Raises:
            GatecliError: A step cannot be done.
            Interrupted: The user stopped it.
        """
        told = []
        self.folder.mkdir(parents=True, exist_ok=True)
        for number, step in enumerate(recipe.steps, 1):
            why = self._left_out(step)
            if why is None:
                out = self.folder / f"{number}.safetensors"
                network = self._once(network, path, out, step)
                path = out
            said = f"done again: {step.op}" if why is None else f"left out: {step.op}, as {why}"
            self.session.say(said)
            told.append({"op": step.op, "done": why is None, "reason": why})
        return network, told

    def clear(self) -> None:
        """All is done: forget the steps between."""
        shutil.rmtree(self.folder)
        self.road.path.unlink()

    def _left_out(self, step: Step) -> str | None:
        """Why a step is not done again; None where it is."""
        if step.op not in KNOWN:
            return "gatecli replay does not know how: do it by its command"
        return WITHOUT_DATA if step.op not in STRUCTURE and self.data is None else None

    def _once(self, network: Network, path: Path, out: Path, step: Step) -> Network:
        """The network behind one step more, done now or before."""
        import torch

        from gatecli.checkpoint import load, write
        from gatecli.training import Run

        run = Run(out.with_suffix(""), {})

        def do() -> dict[str, Any]:
            torch.manual_seed(self.session.seed)
            write(self._again(network, step, run), out)
            run.finish()
            return {}

        line = f"{self.line}: step {out.stem}, {step.op}"
        try:
            taken = Once(line=line, reads=[self.recorded, path], out=out, state=run.state)
            self.road.once(taken, do)
        except (Interrupted, KeyboardInterrupt) as error:
            raise self.road.stopped() from error
        arch = self.session.reading["arch"]
        return load(out, arch).to(self.session.torch_device())

    def _again(self, network: Network, step: Step, run: Run) -> Network:
        """The network behind one step more.

        Raises:
            CheckpointError: The step lacks something.
        """
        from gatecli.stages import replay as structure

        try:
            if step.op == "attach":
                return structure.replay_attach(network, step)
            if step.op == "prune":
                return structure.replay_prune(network, step)
            assert self.data is not None  # else it was left out
            if step.op == "price":
                return self._priced(network, step)
            if step.op == "finetune":
                return self._tuned(network, step, self.data, run)
            return self._calibrated(network, step, self.data)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"the step {step.op} cannot be done again ({error!r}): the file is damaged"
            ) from error

    def _tuned(self, network: Network, step: Step, data: DataSet, run: Run) -> Network:
        from gatecli.training import Run, TrainOptions, finetune

        names = {each.name for each in fields(TrainOptions)}
        told = {name: value for name, value in step.settings.items() if name in names}
        return finetune(
            network,
            data,
            TrainOptions(**told),
            changes=_changes(network, step),
            run=run if run.state.exists() else Run.begin(run.folder, {}),
            progress=Reporter(self.session),
        ).network

    def _priced(self, network: Network, step: Step) -> Network:
        from gatecli.stages import price

        return price.price(network, price.How(**step.settings), progress=Reporter(self.session))[0]

    def _calibrated(self, network: Network, step: Step, data: DataSet) -> Network:
        from gatecli.calibration import calibrate
        from gatecli.calibration.exits.calibrate import calibrate_exits

        goal: dict[str, Any] = {name: step.settings.get(name) for name in GOALS}
        progress = Reporter(self.session)
        if network.site_exits:
            told = _told_of_exits(step)
            return calibrate_exits(
                network, data, **goal, **told, seed=self.session.seed, progress=progress
            ).network
        per_gate = step.settings.get("per_gate", False)
        return calibrate(network, data, **goal, per_gate=per_gate, progress=progress).network


def _told_of_exits(step: Step) -> dict[str, Any]:
    """What a calibration of exits was told besides its goal."""
    told = step.settings
    by_hand = told.get("thresholds")
    if by_hand is not None:  # JSON has no infinity
        by_hand = {site: math.inf if each is None else each for site, each in by_hand.items()}
    in_ms = told.get("max_ms") is not None
    return {
        "thresholds": by_hand,
        "confidence": told.get("confidence"),
        "cost": told.get("cost", "latency" if in_ms else "macs"),  # --reuse records none
    }


def _changes(network: Network, step: Step) -> dict[str, Any]:
    """The settings that a training was told, rather than what it took from its own length."""
    from gatecli.stages.told_steps import changes_of

    attached = network.recipe.last("attach")
    if attached is None or step.settings["method"] not in network.gated_by.values():
        return {}
    return changes_of(step, attached)
