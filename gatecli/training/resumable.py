"""A training whose state is saved, and that goes on from there, equal to the bit.

Nothing random is carried from step to step: each step seeds the generators from (seed, step), each
batch is a function of (seed, epoch, index). So the weights, the momentum and the position are the
whole state.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gatecli.errors import TrainingError
from gatecli.network import Network
from gatecli.training.goals import TargetRate
from gatecli.training.options import TrainOptions
from gatecli.training.position import Position
from gatecli.training.processes import OneProcess
from gatecli.training.run import Run, intact
from gatecli.training.state import is_finite, load_state, state_tensors

__all__ = ["Resumable"]


class Resumable(ABC):
    """Keeps what a training changes, and saves it in a run.

    Attributes:
        run: Where the state is kept; None before `keep_in`, and where nothing is.
        position: Where the training is.
        best_tensors: The best state so far; empty before there is one.
        saved_step: The step of the state that was saved last.
    """

    def __init__(
        self, network: Network, optimizer: Optimizer, goal: TargetRate, options: TrainOptions
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.goal = goal
        self.options = options
        self.processes = OneProcess()
        self.run: Run | None = None
        self.position = Position(goal=goal.state)
        self.best_tensors: dict[str, Tensor] = {}
        self.saved_step = 0
        self.saved_at = time.monotonic()

    @abstractmethod
    def _check_position(self) -> None:
        """Read of the position what will be read of it later.

        Raises what `intact` expects where the position is none of this training's.
        """

    def keep_in(self, run: Run) -> None:
        """Keep a resumable state in `run`, and go on from the one that is there, if any.

        Raises:
            CheckpointError: The state is damaged, or not one of this training.
        """
        self.run = run
        saved = run.saved()
        if saved is None:
            self.save()  # whatever happens from now on, there is a state to resume from
        else:
            self._restore(run, *saved)

    def save(self) -> None:
        """Save the state, unless a weight is no longer finite: the last good state stays.

        Raises:
            TrainingError: A weight is no longer finite.
        """
        if self.run is None or not self.processes.is_main:
            return
        tensors = state_tensors(self.network, self.optimizer)
        if not is_finite(tensors):
            raise TrainingError(self._diverged("a weight is no longer finite"))
        self.run.save(tensors, asdict(self.position))
        self.saved_step = self.position.step
        self.saved_at = time.monotonic()

    def _save_sometimes(self) -> None:
        if self.run is not None and time.monotonic() - self.saved_at > self.options.save_every:
            self.save()

    def _restore(
        self, run: Run, tensors: Mapping[str, Tensor], position: Mapping[str, Any]
    ) -> None:
        with intact(run.state):
            self.position = Position(**position)
            if self.position.goal.keys() != self.goal.state.keys():
                raise KeyError("goal")
            self.goal.state = self.position.goal
            load_state(self.network, self.optimizer, tensors)
            self._check_position()
        self.saved_step = self.position.step
        run.rewind_log(self.position.step, self.position.closed)
        if self.position.best is not None:
            self.best_tensors = run.best()

    def _diverged(self, what: str) -> str:
        """Say what went wrong in the step being made, and what is left."""
        kept = "nothing was saved"
        if self.run is not None:
            kept = f"the last good state, of step {self.saved_step}, is in {self.run.folder}"
        return (
            f"training stopped at step {self.position.step + 1}: {what}; {kept}. Begin again with a"
            " lower --lr"
        )
