"""The training loop: steps, epochs, validation, the best state, and a saved state that resumes to
the bit.

Nothing random is carried from step to step: each step seeds the generators from (seed, step), each
batch is a function of (seed, epoch, index). So the weights, the momentum and the position are the
whole state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from gatecli import methods
from gatecli.data import DataSet, batches, steps
from gatecli.errors import CheckpointError, DataError, Interrupted, SettingError, TrainingError
from gatecli.inference import ExitScore, Scores, score, score_exits
from gatecli.losses import batch_rate
from gatecli.network import Network
from gatecli.network.costs import expected_macs, overall_rate, site_rates
from gatecli.progress import Progress
from gatecli.record import Record, observe, strategy
from gatecli.training.distill import Teacher, check_teacher, distillation
from gatecli.training.goals import Row, TargetRate, goal_of
from gatecli.training.norms import reestimate
from gatecli.training.options import TrainOptions
from gatecli.training.processes import OneProcess
from gatecli.training.run import Run, intact
from gatecli.training.trained import Trained

V = TypeVar("V")
LOG_EVERY = 20  # steps


@dataclass
class Position:
    """Where a run is: val top-1 before the first step (all gates open), steps done, epochs closed
    (validated), sums and targets of the open
    epoch, the closed epochs' rows, the best epoch's index, what the goal has learnt.
    """

    baseline: float | None = None
    step: int = 0
    closed: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: int | None = None
    targets: dict[str, float] = field(default_factory=dict)
    goal: dict[str, float] = field(default_factory=dict)


class Loop:
    """Trains `network` in place with the losses of the methods `trained` beside the cross-entropy.

    Other methods' gates stay as they are.

    `network` is as the training begins, `restore` comes after that. `teacher`: for distillation;
    none: a copy of the network.
    """

    summed = frozenset({"loss", "top1"})  # of every batch

    def __init__(
        self,
        network: Network,
        data: DataSet,
        trained: Sequence[Trained],
        options: TrainOptions,
        run: Run | None,
        progress: Progress,
        teacher: Network | None = None,
    ) -> None:
        self.network, self.data, self.trained, self.options = network, data, trained, options
        self.method, self.settings = trained[0].method, trained[0].settings
        self.run, self.progress, self.processes = run, progress, OneProcess()
        check_teacher(network, teacher, options)
        self.teacher = self._make_teacher(teacher)
        for name in ("train", "val"):
            if name not in data.splits:
                raise DataError(
                    f"expected {data.spec} to have a {name} split: training fits on train and"
                    " chooses on val"
                )
        self.train_split, self.augment = data.splits["train"], options.augment or data.augment
        self.batch_size = min(options.batch_size, len(self.train_split))
        if self.batch_size < 2:
            raise DataError(
                f"expected {data.spec} to have at least 2 training images, but it has"
                f" {len(self.train_split)}"
            )
        self.steps_per_epoch = steps(self.train_split, self.batch_size, drop_last=True)
        self.goal = self._make_goal()
        self.sites = {
            each.method.name: each.sites(network) for each in trained
        }  # looking for them walks through all modules, which is too slow for each step
        self.gates = {
            each.method.name: list(each.own(network, network.site_gates).values())
            for each in trained
        }
        self.optimizer = torch.optim.SGD(
            self._groups(),
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
        )
        self.position, self.best_tensors = Position(goal=self.goal.state), dict[str, Tensor]()
        self.saved_step, self.saved_at = 0, time.monotonic()

    def _make_teacher(self, given: Network | None) -> Teacher | None:
        return Teacher(given or self.network.copy()) if self.options.distill else None

    def _make_goal(self) -> TargetRate:
        if self.options.cache_features:
            raise SettingError(
                "--cache-features is for exits, which leave the network as it is;"
                f" {self.method.name} trains it"
            )
        return goal_of(self.network, self.trained, self.options)

    def _groups(self) -> list[dict[str, Any]]:
        network = self.network
        ours = {id(p) for gate in network.site_gates.values() for p in gate.parameters()}
        ours |= {
            id(p)
            for name in {*network.gated_by.values()}
            for p in methods.get(name).shared(network)
        }
        groups: list[dict[str, Any]] = [
            {
                "params": [p for p in network.parameters() if id(p) not in ours],
                "base_lr": self.options.lr,
            }
        ]
        for each in self.trained:
            groups += each.groups(network, self.options)
        return groups

    def train(self) -> float:
        """Run to the end of the last epoch, from wherever the position is.

        Returns val top-1 before training, with all gates open.

        Raises Interrupted and TrainingError; what was done is saved before.
        """
        try:
            baseline = self._baseline()
            self.goal.begin(baseline)
            for each in self.trained:
                each.method.begin(self.network, self.sites[each.method.name])
            while self.position.closed < self.options.epochs:
                self._epoch(self.position.closed)
                self._close(self.position.closed)
            return baseline
        except Interrupted as error:
            self.save()
            raise Interrupted(
                f"interrupted after step {self.position.step} of {self.total_steps}"
            ) from error

    def _baseline(self) -> float:
        """Measured once in a checkpoint's life, and then known from its recipe, unless that was on
        other data.
        """
        known = self.network.recipe.baseline
        if known is not None and known.get("data", self.data.spec) == self.data.spec:
            return float(known["top1"])
        if self.position.baseline is None:
            with strategy(self.network, "always-on"):
                self.position.baseline = self.validate().top1
            self.progress.say(
                f"before training: val top-1 {self.position.baseline:.2f} with all gates open"
            )
        return self.position.baseline

    @property
    def total_steps(self) -> int:
        return self.options.epochs * self.steps_per_epoch

    def batches(self, epoch: int, start: int = 0) -> Any:
        """The augmented training batches of an epoch, from index `start` on."""
        o = self.options
        return batches(
            self.train_split,
            input=self.network.input,
            batch_size=self.batch_size,
            augment=self.augment,
            shuffle=True,
            seed=o.seed,
            epoch=epoch,
            start=start,
            workers=o.workers,
            drop_last=True,
        )

    def _epoch(self, epoch: int) -> None:
        start = self.position.step - epoch * self.steps_per_epoch
        if start == 0:
            self.position.targets = self.goal.targets(epoch)
            for each in self.trained:
                each.method.begin_epoch(
                    self.network,
                    self.sites[each.method.name],
                    each.settings,
                    epoch / self.options.epochs,
                )
        self._to_training()
        model, record = self.processes.wrap(self.network), Record()
        label = f"epoch {epoch + 1}/{self.options.epochs}"
        with (
            observe(self.network, record),
            self.progress.task(label, self.steps_per_epoch - start) as task,
        ):
            for x, y in self.batches(epoch, start):
                record.clear()
                self._step(
                    model, record, x.to(self.network.device), y.to(self.network.device), epoch
                )
                self._save_sometimes()
                task.advance(**self._shown())

    def _to_training(self) -> None:
        """Training mode, but for the gates that are not trained: these decide as they do."""
        self.network.train()
        mine = {each.method.name for each in self.trained}
        for site, gate in self.network.site_gates.items():
            if self.network.gated_by[site] not in mine:
                gate.eval()

    def _save_sometimes(self) -> None:
        if self.run is not None and time.monotonic() - self.saved_at > self.options.save_every:
            self.save()

    def _step(self, model: Network, record: Record, x: Tensor, y: Tensor, epoch: int) -> None:
        torch.manual_seed(self.options.seed * 1_000_003 + self.position.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.method.learning_rate(
                self.options.schedule,
                group["base_lr"],
                self.position.step / self.total_steps,
                self.settings,
            )
        with torch.autocast(
            x.device.type, torch.bfloat16, enabled=self.options.precision == "bf16"
        ):
            logits = model(x)
            task_loss = F.cross_entropy(
                logits.float(), y, label_smoothing=self.options.label_smoothing
            )
            if self.teacher is not None:
                task_loss = task_loss + self.options.distill * distillation(
                    logits, self.teacher(x), self.options.temperature
                )
        decisions = self.own(record.latest())
        loss = task_loss
        for each in self.trained:
            loss = loss + each.method.loss(
                each.own(self.network, decisions),
                each.settings,
                each.own(self.network, self.position.targets),
            )
            loss = loss + each.method.penalty(self.gates[each.method.name], each.settings)
        value = self.processes.mean(loss.detach()).item()
        if not math.isfinite(value):
            raise TrainingError(self._diverged(f"the loss is {value}"))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        for each in self.trained:
            each.method.after_step(self.network, self.sites[each.method.name])
        self.position.step += 1
        self._add(value, logits.detach(), y, decisions)
        if self.run is not None and self.position.step % LOG_EVERY == 0:
            self.run.log(
                {
                    "step": self.position.step,
                    "epoch": epoch + 1,
                    "loss": value,
                    "rate": batch_rate(decisions).item(),
                    "lr": self.optimizer.param_groups[0]["lr"],
                }
            )

    def own(self, by_site: Mapping[str, V]) -> dict[str, V]:
        """What belongs to the gates being trained.

        Other methods' gates may stand in the network too.
        """
        return {
            site: value
            for each in self.trained
            for site, value in each.own(self.network, by_site).items()
        }

    def _add(self, loss: float, logits: Tensor, y: Tensor, decisions: Mapping[str, Tensor]) -> None:
        """Add a batch to the open epoch's sums, and let the targets follow it."""
        rates = dict(
            zip(
                decisions,
                torch.stack([z.detach().mean() for z in decisions.values()]).tolist(),
                strict=True,
            )
        )
        now = {
            "batches": 1.0,
            "loss": loss,
            "top1": 100 * (logits.argmax(1) == y).double().mean().item(),
            **{f"rate {site}": rate for site, rate in rates.items()},
        }
        for name, value in now.items():
            self.position.sums[name] = self.position.sums.get(name, 0.0) + value
        count, targets = int(self.position.sums["batches"]), self.position.targets
        for each in self.trained:
            own = each.own(self.network, targets)
            targets = {
                **targets,
                **each.method.follow(each.settings, own, each.own(self.network, rates), count),
            }
        self.position.targets = targets

    def _means(self) -> dict[str, float]:
        return {
            name: total / self.position.sums["batches"]
            for name, total in self.position.sums.items()
        }

    def _shown(self) -> dict[str, str]:
        means = self._means()
        sites = self.network.sites
        rates = {
            name.removeprefix("rate "): [mean] * sites[name.removeprefix("rate ")].units
            for name, mean in means.items()
            if name.startswith("rate ")
        }
        return {
            "loss": f"{means['loss']:.3f}",
            "top-1": f"{means['top1']:.1f}",
            "rate": f"{overall_rate(rates):.2f}{asked(self.goal.mean(self.position.targets))}",
            "GMACs": f"{expected_macs(self.network, rates) / 1e9:.4g}",
        }

    def _close(self, epoch: int) -> None:
        """Validate the epoch that has ended, keep it if it is the best, and save."""
        row = self._row(epoch)
        rank = self.goal.rank(row)
        best = (
            None
            if self.position.best is None
            else self.goal.rank(self.position.history[self.position.best])
        )
        if rank is not None and (best is None or rank > best):
            self.position.best = epoch
            self.best_tensors = {
                name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()
            }
            if self.run is not None:
                self.run.save_best(self.best_tensors)
        self.goal.learn(row)
        self.position.goal = self.goal.state
        self.position.history.append(row)
        self.position.closed, self.position.sums = epoch + 1, {}
        if self.run is not None:
            self.run.log(row)
        self.save()
        self.progress.say(self._told(row))

    def _row(self, epoch: int) -> dict[str, Any]:
        means, scores = self._means(), self.validate()
        return {
            "step": self.position.step,
            "epoch": epoch + 1,
            "train_loss": means["loss"],
            "train_top1": means["top1"],
            "target_rate": self.goal.mean(self.goal.targets(epoch)),
            **self.figures(scores),
            "rates": site_rates(scores.rates),
        }

    def _told(self, row: Row) -> str:
        return (
            f"epoch {row['epoch']}/{self.options.epochs}: loss {row['train_loss']:.3f}, val top-1"
            f" {row['val_top1']:.2f}, rate {row['achieved_rate']:.3f}{asked(row['target_rate'])},"
            f" {row['macs_expected'] / 1e9:.4g} GMACs"
        )

    def figures(self, scores: Scores) -> dict[str, Any]:
        """What a goal looks at."""
        achieved = {
            each.method.name: overall_rate(each.own(self.network, scores.rates))
            for each in self.trained
        }
        macs = expected_macs(self.network, scores.rates, scores.busy)
        return {
            "val_top1": scores.top1,
            "achieved_rate": achieved[self.method.name],
            "achieved": achieved,
            "macs_expected": macs,
        }

    def validate(self) -> Scores:
        images, total = self._val()
        try:
            return score(self.network, images, self.progress, "validating", total)
        except CheckpointError as error:
            raise TrainingError(
                self._diverged(str(error)) if self.position.step else str(error)
            ) from error

    def exit_scores(self) -> dict[str, ExitScore]:
        """What the exits say of val's images, where the method trained is one of exits."""
        if not self.method.at_least:
            return {}
        images, total = self._val()
        return score_exits(self.network, images, self.progress, total)

    def _val(self) -> tuple[Any, int]:
        """The batches of the val split, and how many there are."""
        split, size = self.data.splits["val"], self.options.batch_size
        return batches(
            split, input=self.network.input, batch_size=size, workers=self.options.workers
        ), steps(split, size)

    def finish(self) -> tuple[dict[str, Any], Scores]:
        """Re-estimate the BatchNorm statistics and keep them unless val says that the network was
        better before, or was what was asked for.
        """
        before = self.validate()
        if not self.options.bn_batches:
            return {"before": before.top1, "after": None, "kept": "before"}, before
        old = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        torch.manual_seed(self.options.seed)  # the gates sample: a resumed run must sample alike
        self._to_training()
        reestimate(
            self.network,
            self.batches(self.options.epochs),
            min(self.options.bn_batches, self.steps_per_epoch),
            self.progress,
        )
        self.network.eval()
        after = self.validate()
        still = self.goal.meets(self.figures(after)) or not self.goal.meets(self.figures(before))
        kept = "after" if after.top1 >= before.top1 and still else "before"
        if kept == "before":
            self.network.load_state_dict(old)
        return {"before": before.top1, "after": after.top1, "kept": kept}, (
            after if kept == "after" else before
        )

    def save(self) -> None:
        """Save the state, unless a weight is no longer finite: the last good state stays."""
        if self.run is None or not self.processes.is_main:
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            momentum = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = momentum
        if not all(
            bool(tensor.isfinite().all())
            for name, tensor in tensors.items()
            if not name.endswith(".threshold")
        ):  # an exit's may be infinite
            raise TrainingError(self._diverged("a weight is no longer finite"))
        self.run.save(tensors, asdict(self.position))
        self.saved_step, self.saved_at = self.position.step, time.monotonic()

    def restore(self, run: Run, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        """Go back to a saved state of `run`.

        Raises CheckpointError where it does not fit this network.
        """
        parts = {
            kind: {
                name.removeprefix(f"{kind}."): t
                for name, t in tensors.items()
                if name.startswith(f"{kind}.")
            }
            for kind in ("model", "momentum")
        }
        with intact(run.state):
            self.position = Position(**position)
            if self.position.goal.keys() != self.goal.state.keys():
                raise KeyError("goal")
            self.goal.state = self.position.goal
            self.network.load_state_dict(parts["model"])
            for name, parameter in self.network.named_parameters():
                if name in parts["momentum"]:
                    self.optimizer.state[parameter]["momentum_buffer"] = (
                        parts["momentum"][name].view_as(parameter).to(parameter.device)
                    )
            self._try_position()
        self.saved_step = self.position.step
        run.rewind_log(self.position.step, self.position.closed)
        if self.position.best is not None:
            self.best_tensors = run.best()

    def _try_position(self) -> None:
        """Raises what `intact` expects where the position is none of this training's.

        What will be read of it later is read here.
        """
        at, first = self.position, self.position.closed * self.steps_per_epoch
        numbers = [
            at.baseline or 0.0,
            at.step,
            at.closed,
            *at.sums.values(),
            *at.targets.values(),
            *at.goal.values(),
        ]
        if not all(isinstance(number, int | float) for number in numbers):
            raise TypeError("position without numbers")
        if (
            not (
                0 <= at.closed <= self.options.epochs
                and first <= at.step <= first + self.steps_per_epoch
            )
            or len(at.history) != at.closed
        ):
            raise ValueError(f"step {at.step}, {at.closed} epochs closed")
        if at.best is not None and at.best not in range(at.closed):
            raise ValueError(f"best epoch {at.best}")
        for row in at.history:
            _ = self._told(row), self.goal.rank(row), self.goal.reported(row)
        if at.step > first and at.targets.keys() != self.goal.targets(at.closed).keys():
            raise ValueError("targets of other gates")
        if at.sums and not (at.sums["batches"] >= 1 and self.summed <= self._means().keys()):
            raise ValueError("sums of nothing")

    def _diverged(self, what: str) -> str:
        kept = (
            f"the last good state, of step {self.saved_step}, is in {self.run.folder}"
            if self.run is not None
            else "nothing was saved"
        )
        return (
            f"training stopped at step {self.position.step + 1}: {what}; {kept}. Begin again with a"
            " lower --lr"
        )


def asked(rate: float | None) -> str:
    """What stands behind a rate achieved: the rate asked for, if any."""
    return "" if rate is None else f" (asked {rate:.2f})"
