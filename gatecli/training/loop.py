"""Train a network and its gates together: the steps of an epoch, and what is shown of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from gatecli.errors import SettingError
from gatecli.gates.observe import Record, observe, record_answers
from gatecli.network import Network
from gatecli.network.costs import expected_macs, overall_rate, site_rates
from gatecli.network.forms import watching_end
from gatecli.stages.predict import Scores
from gatecli.training.course import Course
from gatecli.training.distill import Teacher
from gatecli.training.goals import Row, TargetRate, goal_of
from gatecli.training.loss import Answered, BatchLoss
from gatecli.training.norms import decide_in_training, reestimate
from gatecli.training.pricing import PRICED, WORDS, of_first
from gatecli.training.run import LOG_EVERY
from gatecli.training.synced import synced
from gatecli.training.told import asked, mean_rate, of_epoch
from gatecli.training.trained import idle_modules, optimizer_groups
from gatecli.training.weights import PLAIN, check_no_exits

__all__ = ["Loop"]

RATE = "rate "  # the sums of a site's decisions are called so, with the site behind


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
    def loss(self) -> BatchLoss:
        """What a batch costs."""
        return BatchLoss(self.network, self.trained, self.options, self.processes, self.teacher)

    def _epoch(self, epoch: int) -> None:
        start = self.position.step - epoch * self.examples.steps_per_epoch
        if start == 0:
            self._begin_epoch(epoch)
        self._to_training()
        record = Record()
        label = f"epoch {epoch + 1}/{self.options.epochs}"
        count = self.examples.steps_per_epoch - start
        batches = self.examples.training(epoch, start * self.options.accumulate)
        with (
            observe(self.network, record),
            record_answers(self.network, record),
            watching_end(self.network, record.see_end),
            synced(self.network, on=self.options.sync_norms),
            self.progress.task(label, count) as task,
        ):
            for _ in range(count):
                self._step(record, islice(batches, self.options.accumulate), epoch)
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

    def _step(self, record: Record, batches: Iterable[tuple[Tensor, Tensor]], epoch: int) -> None:
        self._begin_step()
        done = []
        for number, (x, y) in enumerate(batches):
            record.clear()
            done.append(self._batch(record, x, y, number))
        self._move()
        for each in self.trained:
            each.objective.after_step(self.network, self.sites[each.name])
        if not self.options.sync_norms:
            self.processes.settle(self.network)
        self._moved()
        for value, answered in done:
            self._add(value, answered)
        if self.run is not None and self.position.step % LOG_EVERY == 0:
            self.run.log({"step": self.position.step, "epoch": epoch + 1, **self._logged(done)})

    def _batch(self, record: Record, x: Tensor, y: Tensor, number: int) -> tuple[float, Answered]:
        """Add the gradients of a step's batch, by its number; its loss, and what it came to."""
        device = self.network.device
        drawn = self.position.step * self.options.accumulate + number
        seed = self.options.seed * 1_000_003 + drawn
        is_last = number + 1 == self.options.accumulate
        with self.processes.apart(self.loss.model, on=not is_last):
            loss, answered = self.loss(
                record, x.to(device), y.to(device), self.position.targets, seed
            )
            return self._backward(loss), answered

    def _logged(self, done: Sequence[tuple[float, Answered]]) -> dict[str, float]:
        """What the log says of a step: the means over its batches."""
        rows = []
        for value, answered in done:
            rate = mean_rate(answered.decisions)
            rows.append({"loss": value, "rate": rate, **of_first(self.trained, answered.shares)})
        means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        lr = {"lr": self.optimizer.param_groups[0]["lr"]}
        return {"loss": means.pop("loss"), "rate": means.pop("rate"), **lr, **means}

    def _add(self, loss: float, answered: Answered) -> None:
        """Add a batch to the open epoch's sums, and let the targets follow it."""
        decisions = answered.decisions
        means = [z.mean() for z in decisions.values()]
        rates = dict(zip(decisions, torch.stack(means).tolist() if means else [], strict=True))
        here = (answered.logits.argmax(1) == answered.labels).double().mean()
        right = self.processes.mean(self.processes.weigh(here)).item()
        figures = {"loss": loss, "top1": 100 * right}
        figures.update({RATE + site: rate for site, rate in rates.items()})
        figures.update(of_first(self.trained, answered.shares))
        self.position.add(figures)
        self._follow(rates, answered.shares)

    def _follow(self, rates: Mapping[str, float], shares: Mapping[str, float]) -> None:
        """Let the targets follow a batch's rates, by site, and those that have a price."""
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
