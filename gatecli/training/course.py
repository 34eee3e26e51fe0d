"""The course of a training: the baseline, the epochs, validation, and the best state."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from gatecli.data import DataSet
from gatecli.errors import CheckpointError, Interrupted, TrainingError
from gatecli.gates.observe import strategy
from gatecli.methods.settings import Length
from gatecli.network import Network
from gatecli.progress import Progress
from gatecli.stages.predict import ExitScore, Scores, score, score_exits
from gatecli.training.descent import Descent, check_precision
from gatecli.training.distill import Teacher, check_teacher
from gatecli.training.examples import Examples
from gatecli.training.goals import Row, TargetRate
from gatecli.training.optimizers import ADAMW, make_optimizer
from gatecli.training.options import TrainOptions
from gatecli.training.position import Position
from gatecli.training.pricing import priced
from gatecli.training.processes import processes
from gatecli.training.rates import set_learning_rates
from gatecli.training.resumable import Resumable
from gatecli.training.told import of_suited
from gatecli.training.trained import Trained

__all__ = ["Course"]


class Course(Resumable):
    """Takes a network, in place, from the first step to the end of the last epoch.

    Subclasses say what is trained, and how.

    Attributes:
        summed: What each batch adds to the position's sums, by name.
        goal: Says which epoch's state is the best.
        sites: Each trained method's sites, by the method's name.
    """

    summed: ClassVar[frozenset[str]]

    def __init__(
        self,
        network: Network,
        data: DataSet,
        trained: Sequence[Trained],
        options: TrainOptions,
        progress: Progress,
        teacher: Network | None = None,
    ) -> None:
        """Prepare a training of `network`, which is as the training begins.

        Raises:
            SettingError: The options contradict each other, the method or the teacher.
            DataError: The data has no train or val split, or too few images.
        """
        check_precision(network, options)
        if options.channels_last:
            network.to(memory_format=torch.channels_last)
        self.network = network
        self.data = data
        self.options = options
        self.progress = progress
        self.examples = Examples(network, data, options)
        shares = [priced(each, network, options) for each in trained]
        self.trained = [each.suited_to(self._length(), network) for each in shares]
        check_teacher(network, teacher, options)
        self.teacher = self._make_teacher(teacher)
        goal = self._make_goal()
        # looking for them walks through all modules, which is too slow for each step
        self.sites = {each.name: each.sites(network) for each in trained}
        optimizer = make_optimizer(self._groups(), options)
        several = processes(self.examples.batch_size, synced=options.sync_norms)
        descent = Descent(network, optimizer, options)
        super().__init__(network, descent, goal, options, progress, several)

    @abstractmethod
    def _make_teacher(self, given: Network | None) -> Teacher | None:
        """Who teaches in distillation, `given` being whom the user named."""

    @abstractmethod
    def _make_goal(self) -> TargetRate:
        """What the training aims at.

        Raises:
            SettingError: The options do not go with what is trained.
        """

    @abstractmethod
    def _groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, each with its `base_lr`."""

    @abstractmethod
    def _epoch(self, epoch: int) -> None:
        """Train from the position to the end of the epoch."""

    @abstractmethod
    def _row(self, epoch: int) -> dict[str, Any]:
        """The figures of an epoch that has ended."""

    @abstractmethod
    def _told(self, row: Row) -> str:
        """An epoch's figures in a line for people."""

    @abstractmethod
    def finish(self) -> tuple[dict[str, Any], Scores]:
        """Do what comes after the last step.

        Returns:
            What became of the BatchNorm statistics, and what the network does on val.
        """

    def tensors(self) -> dict[str, Tensor]:
        """The network's tensors as a checkpoint shall hold them: copies, by name."""
        tensors = self.network.state_dict()
        return {name: each.detach().clone() for name, each in tensors.items()}

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.options.epochs * self.examples.steps_per_epoch

    def _length(self) -> Length:
        return Length(
            epochs=self.options.epochs,
            steps=self.total_steps,
            lr=self.options.lr,
            weight_decay=self.options.weight_decay,
            is_adaptive=self.options.optimizer == ADAMW,
        )

    @property
    def suited(self) -> dict[str, dict[str, float]]:
        """The settings that nobody set and that follow from the training's length, by method."""
        return {each.name: each.told for each in self.trained if each.told}

    def train(self) -> float:
        """Run to the end of the last epoch, from wherever the position is.

        Returns:
            Val top-1 before training, with all gates open.

        Raises:
            Interrupted: The user stopped it; what was done is saved before.
            TrainingError: The loss or a weight is no longer finite.
        """
        for line in of_suited(self.suited, self.total_steps):
            self.progress.say(line)
        try:
            baseline = self._baseline()
            self.goal.begin(baseline)
            torch.manual_seed(self.options.seed)
            for each in self.trained:
                each.objective.begin(self.network, self.sites[each.name], each.settings)
            while self.position.closed < self.options.epochs:
                epoch = self.position.closed
                self._epoch(epoch)
                self._close(epoch)
            return baseline
        except Interrupted as error:
            self.save()
            raise Interrupted(
                f"interrupted after step {self.position.step} of {self.total_steps}"
            ) from error

    def _baseline(self) -> float:
        """Val top-1 before the training.

        Measured once in a checkpoint's life, and then known from its recipe, unless that was on
        other data, or on images prepared in another way.
        """
        known = self.network.recipe.known_top1(self.data.spec)
        if known is not None:
            return known
        if self.position.baseline is None:
            with strategy(self.network, "always-on"):
                self.position.baseline = self.validate().top1
            self.progress.say(
                f"before training: val top-1 {self.position.baseline:.2f} with all gates open"
            )
        return self.position.baseline

    def _begin_step(self) -> None:
        """Set the learning rates of the next step, and forget the gradients of the one before."""
        first = self.trained[0]
        steps = self.examples.steps_per_epoch
        set_learning_rates(self.optimizer, first, self.options, self.position.step, steps)
        self.descent.begin()

    def _backward(self, loss: Tensor) -> float:
        """Add the gradients of a batch's loss, a scalar, to those of the step.

        Returns:
            The loss, averaged over the processes.

        Raises:
            TrainingError: The loss is not finite.
        """
        value = self.processes.mean(loss.detach()).item()
        if not math.isfinite(value):
            raise TrainingError(self._diverged(f"the loss is {value}"))
        self.descent.add(loss)
        return value

    def _move(self) -> None:
        """Move the parameters by the gradients that the step's batches have added up.

        Raises:
            TrainingError: The gradients are not finite, where their norm is looked at.
        """
        self._share_gradients()
        norm = self.descent.clip()
        if not math.isfinite(norm):
            raise TrainingError(self._diverged(f"the norm of the gradients is {norm}"))
        self.descent.move()

    def _moved(self) -> None:
        """All that a step changes in the network is changed: it is made."""
        self.descent.follow()
        self.position.step += 1

    def _share_gradients(self) -> None:
        """Average the gradients over the processes, where nothing has done so yet."""

    def _close(self, epoch: int) -> None:
        """Validate the epoch that has ended, keep it if it is the best, and save."""
        with self.descent.averaged():
            row = self._row(epoch)
            if self._is_best(row):
                self.position.best = epoch
                self.best_tensors = self.tensors()
                if self.run is not None:
                    self.run.save_best(self.best_tensors)
        self.goal.learn(row)
        self.position.goal = self.goal.state
        self.position.close(row)
        if self.run is not None:
            self.run.log(row)
        self.save()
        self.progress.say(self._told(row))

    def _is_best(self, row: Row) -> bool:
        rank = self.goal.rank(row)
        if rank is None:
            return False
        best = self.position.best_row()
        highest = None if best is None else self.goal.rank(best)
        return highest is None or rank > highest

    def validate(self) -> Scores:
        """What the network does on val.

        Raises:
            TrainingError: Logits are not finite.
        """
        images = self.examples.in_order("val")
        try:
            return score(self.network, images, self.progress, "validating", self.examples.val_steps)
        except CheckpointError as error:
            reason = str(error)
            if self.position.step:
                reason = self._diverged(reason)
            raise TrainingError(reason) from error

    def exit_scores(self) -> dict[str, ExitScore]:
        """What the exits say of val's images, where the method trained is one of exits."""
        if not self.trained[0].objective.traits.at_least:
            return {}
        images = self.examples.in_order("val")
        return score_exits(self.network, images, self.progress, self.examples.val_steps)

    def _is_between_epochs(self, position: Position) -> bool:
        return position.step == position.closed * self.examples.steps_per_epoch

    def _check_position(self) -> None:
        at = self.position
        at.check(self.options.epochs, self.examples.steps_per_epoch)
        for row in at.history:
            self._told(row)
            self.goal.rank(row)
            self.goal.reported(row)
        begun = at.step > at.closed * self.examples.steps_per_epoch
        if begun and at.targets.keys() != self.goal.targets(at.closed).keys():
            raise ValueError("targets of other gates")
        if at.sums and not (at.sums["batches"] >= 1 and self.summed <= at.means().keys()):
            raise ValueError("sums of nothing")
