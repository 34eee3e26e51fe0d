"""A training whose state is saved, and that goes on from there, equal to the bit.

Nothing random is carried from step to step: each step seeds the generators from (seed, step), each
batch is a function of (seed, epoch, index). So the weights, their averages, the optimizer's tensors
and the position are the whole state. It is saved between steps, never within one.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from gatecli import together
from gatecli.errors import TrainingError
from gatecli.network import Network
from gatecli.progress import Progress
from gatecli.training.descent import Descent
from gatecli.training.goals import TargetRate
from gatecli.training.options import TrainOptions
from gatecli.training.position import Position
from gatecli.training.processes import OneProcess
from gatecli.training.run import Run, intact
from gatecli.training.state import is_finite, load_state, state_tensors

__all__ = ["Resumable"]


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What a run holds of a training: tensors by name, the position, and the best epoch's."""

    tensors: dict[str, Tensor]
    position: Position
    best: dict[str, Tensor]


class Resumable(ABC):
    """Keeps what a training changes, and saves it in a run.

    Attributes:
        run: Where the state is kept; None before `keep_in`, and where nothing is.
        position: Where the training is.
        best_tensors: The best state so far; empty before there is one.
        saved_step: The step of the state that was saved last.
    """

    def __init__(
        self,
        network: Network,
        descent: Descent,
        goal: TargetRate,
        options: TrainOptions,
        progress: Progress,
        processes: OneProcess,
    ) -> None:
        self.network = network
        self.descent = descent
        self.optimizer = descent.optimizer
        self.goal = goal
        self.options = options
        self.progress = progress
        self.processes = processes
        self.run: Run | None = None
        self.position = Position(goal=goal.state)
        self.best_tensors: dict[str, Tensor] = {}
        self.saved_step = 0
        self.saved_at = time.monotonic()

    @abstractmethod
    def _is_between_epochs(self, position: Position) -> bool:
        """Whether an epoch is about to begin there, or the last one has ended."""

    @abstractmethod
    def _check_position(self) -> None:
        """Read of the position what will be read of it later.

        Raises what `intact` expects where the position is none of this training's.
        """

    def keep_in(self, run: Run | None) -> None:
        """Keep a resumable state in `run`, and go on from the one that is there, if any.

        Args:
            run: None in a process that is not the main one: that one tells what there is.

        Raises:
            CheckpointError: The state is damaged, or not one of this training.
        """
        self.run = run
        found = together.from_main(lambda: None if run is None else self._found(run))
        if found is None:
            self.save()  # whatever happens from now on, there is a state to resume from
        else:
            self._restore(found)

    def _found(self, run: Run) -> _Found | None:
        """What a run holds; of other processes' state, the beginning of the epoch."""
        saved = run.saved()
        if saved is None:
            return None
        with intact(run.state):
            position = Position(**saved[1])
        if position.processes != together.count():
            before = position.processes
            if not self._is_between_epochs(position):
                saved = run.epoch()
                with intact(run.folder):
                    position = Position(**saved[1])
            self.progress.say(
                f"processes before: {before}, now: {together.count()}; going on from the beginning"
                f" of epoch {position.closed + 1}"
            )
        best = {} if position.best is None else run.best()
        return _Found(tensors=saved[0], position=position, best=best)

    def save(self) -> None:
        """Save the state, unless a weight is no longer finite: the last good state stays.

        Raises:
            TrainingError: A weight is no longer finite.
        """
        if self.run is None or not self.processes.is_main:
            return
        tensors = {**state_tensors(self.network, self.optimizer), **self.descent.tensors()}
        if not is_finite(tensors):
            raise TrainingError(self._diverged("a weight is no longer finite"))
        self.position.processes = together.count()
        self.run.save(tensors, asdict(self.position))
        if self._is_between_epochs(self.position):
            self.run.keep_epoch()
        self.saved_step = self.position.step
        self.saved_at = time.monotonic()

    def _step_done(self) -> None:
        """A step is behind: save if it is time, and stop where somebody has asked to.

        Raises:
            Interrupted: Somebody has asked to stop several processes.
        """
        if self.run is not None and time.monotonic() - self.saved_at > self.options.save_every:
            self.save()
        together.agree_to_go_on(self.progress)

    def _restore(self, found: _Found) -> None:
        with intact(Path("the state") if self.run is None else self.run.state):
            self.position = found.position
            if self.position.goal.keys() != self.goal.state.keys():
                raise KeyError("goal")
            self.goal.state = self.position.goal
            load_state(self.network, self.optimizer, self.descent.load(found.tensors))
            self._check_position()
        self.saved_step = self.position.step
        self.best_tensors = found.best
        if self.run is not None:
            self.run.rewind_log(self.position.step, self.position.closed)

    def _diverged(self, what: str) -> str:
        """Say what went wrong in the step being made, and what is left."""
        kept = "nothing was saved"
        if self.run is not None:
            kept = f"the last good state, of step {self.saved_step}, is in {self.run.folder}"
        return (
            f"training stopped at step {self.position.step + 1}: {what}; {kept}. Begin again with a"
            " lower --lr"
        )
