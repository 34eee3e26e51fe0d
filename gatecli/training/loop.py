"""Train a network and its gates together: the steps of an epoch, and what is shown of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatecli.errors import SettingError
from gatecli.gates.decider import Decider
from gatecli.gates.observe import Record, observe, record_answers
from gatecli.network import Network
from gatecli.network.costs import expected_macs, overall_rate, site_rates
from gatecli.stages.predict import Scores
from gatecli.training.course import Course
from gatecli.training.distill import Teacher, distillation
from gatecli.training.goals import Row, TargetRate, goal_of
from gatecli.training.norms import decide_in_training, reestimate
from gatecli.training.pricing import PRICED, WORDS, of_first, rates_of
from gatecli.training.run import LOG_EVERY
from gatecli.training.synced import synced
from gatecli.training.told import asked, mean_rate, of_epoch
from gatecli.training.trained import idle_modules, optimizer_groups
from gatecli.training.weights import PLAIN, check_no_exits

__all__ = ["Loop"]

V = TypeVar("V")
RATE = "rate "  # the sums of a site's decisions are called so, with the site behind
Answered = tuple[Tensor, Tensor]  # logits (N, K), and labels (N,)
Decisions = Mapping[str, Tensor]
Shares = Mapping[str, float]  # see gatecli.training.pricing


class Loop(Course):
    """Trains a network with the losses of the methods `trained` beside the cross-entropy.

    Other methods' gates decide as they do. Without a teacher a copy of the network as it is at the
    beginning is the one for distillation.
    """

    summed = frozenset({"loss", "top1"})

    def _make_teacher(self, given: Network | None) -> Teacher | None:
        if not self.options.distill:
            return None
        return Teacher(given or self.network.copy())

    def _make_goal(self) -> TargetRate:
        if self.trained[0].method is PLAIN:
            check_no_exits(self.network)
        if self.options.cache_features:
            raise SettingError(
                "--cache-features is for exits, which leave the network as it is;"
                f" {self.trained[0].name} trains it"
            )
        return goal_of(self.network, self.trained, self.options)

    def _groups(self) -> list[dict[str, Any]]:
        return optimizer_groups(self.network, self.trained, self.options)

    @cached_property
    def model(self) -> nn.Module:
        """What is called in training: the network, or what averages its gradients."""
        return self.processes.wrap(self.network)

    @cached_property
    def by_image(self) -> list[str]:
        """The sites of which a loss looks at each image by itself."""
        found = []
        for each in self.trained:
            if each.objective.traits.by_image or each.share is not None:
                found.extend(self.sites[each.name])
        return found

    @cached_property
    def gates(self) -> dict[str, list[Decider]]:
        """Each trained method's gates, by the method's name."""
        found = {}
        for each in self.trained:
            own = each.own(self.network, self.network.site_gates)
            found[each.name] = list(own.values())
        return found

    def own(self, by_site: Mapping[str, V]) -> dict[str, V]:
        """What belongs to the gates being trained, in the order of their methods.

        Other methods' gates may stand in the network too.
        """
        found: dict[str, V] = {}
        for each in self.trained:
            found.update(each.own(self.network, by_site))
        return found

    def _epoch(self, epoch: int) -> None:
        start = self.position.step - epoch * self.examples.steps_per_epoch
        if start == 0:
            self._begin_epoch(epoch)
        self._to_training()
        device = self.network.device
        record = Record()
        label = f"epoch {epoch + 1}/{self.options.epochs}"
        count = self.examples.steps_per_epoch - start
        with (
            observe(self.network, record),
            record_answers(self.network, record),
            synced(self.network, on=self.options.sync_norms),
            self.progress.task(label, count) as task,
        ):
            for x, y in self.examples.training(epoch, start):
                record.clear()
                self._step(record, x.to(device), y.to(device), epoch)
                self._step_done()
                task.advance(**self._shown())

    def _begin_epoch(self, epoch: int) -> None:
        self.position.targets = self.goal.targets(epoch)
        done = epoch / self.options.epochs
        for each in self.trained:
            sites = self.sites[each.name]
            each.objective.begin_epoch(self.network, sites, each.settings, done)

    def _to_training(self) -> None:
        """Training mode, but for what decides and is not trained: it decides as it does."""
        self.network.train()
        for module in idle_modules(self.network, self.trained):
            module.training = False

    def _step(self, record: Record, x: Tensor, y: Tensor, epoch: int) -> None:
        self._set_learning_rate()
        seed = self.options.seed * 1_000_003 + self.position.step
        with self.processes.seeded(seed, x.device):
            logits, task_loss = self._answer(x, y)
        decisions = self.processes.whole(self.own(record.latest()), self.by_image)
        loss = self._with_exits(self._with_gates(task_loss, decisions), record.answers, y)
        value = self._descend(loss)
        for each in self.trained:
            each.objective.after_step(self.network, self.sites[each.name])
        if not self.options.sync_norms:
            self.processes.settle(self.network)
        self.position.step += 1
        shares = rates_of(self.trained, decisions)
        self._add(value, (logits.detach(), y), decisions, shares)
        if self.run is not None and self.position.step % LOG_EVERY == 0:
            self.run.log(
                {
                    "step": self.position.step,
                    "epoch": epoch + 1,
                    "loss": value,
                    "rate": mean_rate(decisions),
                    "lr": self.optimizer.param_groups[0]["lr"],
                    **of_first(self.trained, shares),
                }
            )

    def _answer(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (N, K) of images (N, C, H, W), and the loss that they come to."""
        options = self.options
        half = options.precision == "bf16"
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            logits = self.model(x)
            loss = self._task_loss(logits, y)
            if self.teacher is not None:
                taught = self.teacher(x)
                distilled = distillation(logits, taught, options.temperature)
                loss = loss + options.distill * self.processes.weigh(distilled)
        return logits, loss

    def _task_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """What answers (N, K) to images with labels (N,) cost: a scalar, see `weigh`."""
        smoothing = self.options.label_smoothing
        loss = F.cross_entropy(logits.float(), y, label_smoothing=smoothing)
        return self.processes.weigh(loss)

    def _with_exits(self, loss: Tensor, answers: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """The loss with what the methods add to it for their exits' answers, (N, K) each."""
        for each in self.trained:
            own = each.own(self.network, answers)
            losses = {site: self._task_loss(logits, y) for site, logits in own.items()}
            loss = loss + each.objective.traits.supervision(losses, each.settings)
        return loss

    def _with_gates(self, loss: Tensor, decisions: Mapping[str, Tensor]) -> Tensor:
        """The loss with what the methods add to it for their gates' decisions, (N, units) each.

        The decisions are the whole batch's: rates are of all its images before they are squared.
        """
        targets = self.position.targets
        for each in self.trained:
            gates = self.gates[each.name]
            own = each.own(self.network, decisions)
            loss = loss + each.loss(own, each.own(self.network, targets))
            loss = loss + each.objective.penalty(gates, each.settings)
        return loss

    def _add(self, loss: float, answered: Answered, decisions: Decisions, shares: Shares) -> None:
        """Add a batch to the open epoch's sums, and let the targets follow it."""
        means = [z.detach().mean() for z in decisions.values()]
        rates = dict(zip(decisions, torch.stack(means).tolist() if means else [], strict=True))
        logits, y = answered
        here = (logits.argmax(1) == y).double().mean()
        right = self.processes.mean(self.processes.weigh(here)).item()
        figures = {"loss": loss, "top1": 100 * right}
        figures.update({RATE + site: rate for site, rate in rates.items()})
        figures.update(of_first(self.trained, shares))
        self.position.add(figures)
        count = int(self.position.sums["batches"])
        targets = dict(self.position.targets)
        for each in self.trained:
            own = each.own(self.network, targets)
            seen = each.own(self.network, rates)
            if each.name in shares:  # one target for all of them follows one rate
                seen = dict.fromkeys(seen, shares[each.name])
            targets.update(each.objective.follow(each.settings, own, seen, count))
        self.position.targets = targets

    def _shown(self) -> dict[str, str]:
        """What the progress shows behind a step: the open epoch's means."""
        means = self.position.means()
        rates = {}
        for name, mean in means.items():
            if name.startswith(RATE):
                site = name.removeprefix(RATE)
                rates[site] = [mean] * self.network.sites[site].units
        target = self.goal.mean(self.position.targets)
        return {
            "loss": f"{means['loss']:.3f}",
            "top-1": f"{means['top1']:.1f}",
            "rate": f"{means.get(PRICED, overall_rate(rates)):.2f}{asked(target)}",
            "GMACs": f"{expected_macs(self.network, rates) / 1e9:.4g}",
        }

    def _row(self, epoch: int) -> dict[str, Any]:
        means = self.position.means()
        scores = self.validate()
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
        return of_epoch(row, self.options.epochs, WORDS[self.trained[0].price])

    def figures(self, scores: Scores) -> dict[str, Any]:
        """What a goal looks at."""
        achieved = {}
        for each in self.trained:
            achieved[each.name] = each.achieved(self.network, scores.rates, scores.busy)
        return {
            "val_top1": scores.top1,
            "achieved_rate": achieved[self.trained[0].name],
            "achieved": achieved,
            "macs_expected": expected_macs(self.network, scores.rates, scores.busy),
            **self.goal.figures(scores),
        }

    def finish(self) -> tuple[dict[str, Any], Scores]:
        """Re-estimate the BatchNorm statistics.

        They are kept unless val says that the network was better before, or was what was asked for.
        """
        before = self.validate()
        if not self.options.bn_batches:
            return {"before": before.top1, "after": None, "kept": "before"}, before
        old = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self._reestimate()
        after = self.validate()
        still = self.goal.meets(self.figures(after)) or not self.goal.meets(self.figures(before))
        batchnorm = {"before": before.top1, "after": after.top1, "kept": "after"}
        if after.top1 >= before.top1 and still:
            return batchnorm, after
        self.network.load_state_dict(old)
        return {**batchnorm, "kept": "before"}, before

    def _reestimate(self) -> None:
        self._to_training()
        if self.options.bn_gates == "decided":
            decide_in_training(self.network)
        size = self.examples.size(self.options.bn_batch_size)
        images = self.examples.training(self.options.epochs, batch_size=size)
        whole = len(self.data.splits["train"]) // size
        with (
            # the gates sample: a resumed run must sample alike
            self.processes.seeded(self.options.seed, self.network.device, size),
            synced(self.network),
        ):
            reestimate(self.network, images, min(self.options.bn_batches, whole), self.progress)
        self.network.eval()
