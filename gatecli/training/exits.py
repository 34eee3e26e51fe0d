"""Train exits alone: the network is frozen, BatchNorm's statistics too, so one pass through it
feeds all exits of a batch.

Without augmentation what the exits see never changes: with `cache_features` it is computed once,
for all epochs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gatecli.data import batches, steps
from gatecli.data.augment import ORDER, generator
from gatecli.errors import SettingError, TrainingError
from gatecli.inference import Scores
from gatecli.network import Network
from gatecli.schedules import learning_rate
from gatecli.training.distill import Teacher, distillation
from gatecli.training.goals import Row, TargetRate
from gatecli.training.loop import LOG_EVERY, Loop
from gatecli.training.trained import Trained

Features = dict[str, Tensor]  # exit -> (N, C)
Seen = tuple[
    Features, Tensor, Tensor
]  # and the logits of the network's own end (N, K), and of who teaches the exits
Walked = tuple[Features, Tensor, Tensor, Tensor]  # and labels (N,)


class BestExits(TargetRate):
    """Exits have no target: the best epoch is the one whose exits are right most often on val."""

    def targets(self, epoch: int) -> dict[str, float]:
        return {}

    def mean(self, targets: Mapping[str, float], of: Trained | None = None) -> float:
        return 0.0

    def reported(self, row: Row) -> None:
        return None

    def meets(self, row: Row) -> bool:
        return True

    def rank(self, row: Row) -> tuple[float, ...]:
        return (sum(row["exits"].values()),)

    def chosen(self, best: Row | None) -> str:
        assert best is not None
        return f"best: epoch {best['epoch']}, whose exits are right most often on val"


class ExitLoop(Loop):
    """Trains the exits of the method alone; the network stays as it is, to the bit."""

    summed = frozenset({"loss"})

    def _make_teacher(self, given: Network | None) -> Teacher | None:
        """None: the network's own end teaches."""
        return None if given is None else Teacher(given)

    def _make_goal(self) -> TargetRate:
        if self.options.max_drop is not None or self.options.max_gmacs is not None:
            raise SettingError(
                "--max-drop and --max-gmacs are for layer gates: exits are set to an accuracy or a"
                " cost with gatecli calibrate"
            )
        if self.options.cache_features and self.options.augment not in (None, "none"):
            raise SettingError(
                "--cache-features computes each image once, so it goes without augmentation, but"
                f" got --augment {self.options.augment}"
            )
        self.augment = "none" if self.options.cache_features else self.augment
        self.exits: dict[str, Any] = {
            site: gate
            for site, gate in self.network.site_gates.items()
            if self.network.gated_by[site] == self.method.name
        }
        self.cached: dict[str, Walked] = {}
        return BestExits(self.network, self.trained, self.options)

    def _groups(self) -> list[dict[str, Any]]:
        return [
            self.trained[0].group(
                [p for gate in self.exits.values() for p in gate.parameters()], self.options
            )
        ]

    def _epoch(self, epoch: int) -> None:
        start = self.position.step - epoch * self.steps_per_epoch
        self.network.eval()
        with self.progress.task(
            f"epoch {epoch + 1}/{self.options.epochs}", self.steps_per_epoch - start
        ) as task:
            for features, taught, labels in self._features(epoch, start):
                self._fit(features, taught, labels, epoch)
                self._save_sometimes()
                task.advance(loss=f"{self._means()['loss']:.3f}")

    def _features(self, epoch: int, start: int) -> Iterator[tuple[Features, Tensor, Tensor]]:
        """The training batches of an epoch as the exits see them, from index `start` on, with their
        teacher's logits; the same with and without a cache.
        """
        if not self.options.cache_features:
            for x, y in self.batches(epoch, start):
                features, _, taught = self._seen(x)
                yield features, taught, y.to(self.network.device)
            return
        ((features, _, taught, labels),) = self._walk("train")
        order = torch.randperm(len(labels), generator=generator(ORDER, self.options.seed, epoch))
        for number in range(start, self.steps_per_epoch):
            rows = order[number * self.batch_size : (number + 1) * self.batch_size]
            own = {site: seen[rows].to(self.network.device) for site, seen in features.items()}
            yield own, taught[rows].to(self.network.device), labels[rows].to(self.network.device)

    def _seen(self, x: Tensor) -> Seen:
        """What the exits see of images, what the network's own end says, and what their teacher
        says.
        """
        x = x.to(self.network.device)
        with torch.no_grad():
            values, logits = self.network.at_exits(x)
            taught = logits if self.teacher is None else self.teacher(x)
            return (
                {site: gate.features(values[site]) for site, gate in self.exits.items()},
                logits.float(),
                taught.float(),
            )

    def _walk(self, split: str) -> Iterator[Walked]:
        """Features, the end's logits, the teacher's and labels of a whole split, in order.

        Kept for the next time with `cache_features`.
        """
        if split in self.cached:
            yield self.cached[split]
            return
        part, kept = self.data.splits[split], list[Walked]()
        with self.progress.task(
            f"features of {split}" if self.options.cache_features else "validating",
            steps(part, self.options.batch_size),
        ) as task:
            for x, y in batches(
                part,
                input=self.network.input,
                batch_size=self.options.batch_size,
                workers=self.options.workers,
            ):
                features, logits, taught = self._seen(x)
                seen = (
                    {site: value.cpu() for site, value in features.items()},
                    logits.cpu(),
                    taught.cpu(),
                    y,
                )
                if self.options.cache_features:
                    kept.append(seen)
                else:
                    yield seen
                task.advance()
        if self.options.cache_features:
            _, *columns = zip(*kept, strict=True)
            logits, taught, labels = (torch.cat(column) for column in columns)
            self.cached[split] = (
                {site: torch.cat([each[0][site] for each in kept]) for site in self.exits},
                logits,
                taught,
                labels,
            )
            yield self.cached[split]

    def _fit(self, features: Features, taught: Tensor, labels: Tensor, epoch: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                self.options.schedule, group["base_lr"], self.position.step / self.total_steps
            )
        loss = torch.stack(
            [gate.loss(features[site], labels) for site, gate in self.exits.items()]
        ).sum()  # no exit's gradient reaches another
        if self.options.distill:
            heads = [
                distillation(gate.linear(features[site]), taught, self.options.temperature)
                for site, gate in self.exits.items()
            ]
            loss = loss + self.options.distill * torch.stack(heads).sum()
        value = loss.item()
        if not torch.isfinite(loss):
            raise TrainingError(self._diverged(f"the loss is {value}"))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.position.step += 1
        for name, number in (("batches", 1.0), ("loss", value)):
            self.position.sums[name] = self.position.sums.get(name, 0.0) + number
        if self.run is not None and self.position.step % LOG_EVERY == 0:
            self.run.log(
                {
                    "step": self.position.step,
                    "epoch": epoch + 1,
                    "loss": value,
                    "lr": self.optimizer.param_groups[0]["lr"],
                }
            )

    def _row(self, epoch: int) -> dict[str, Any]:
        top1, exits = self._exit_scores()
        return {
            "step": self.position.step,
            "epoch": epoch + 1,
            "train_loss": self._means()["loss"],
            "val_top1": top1,
            "exits": exits,
        }

    def _exit_scores(self) -> tuple[float, dict[str, float]]:
        """Val top-1 of the network's own end, and of each exit on all samples."""
        hits, total = dict.fromkeys((None, *self.exits), 0), 0
        with torch.no_grad():
            for features, logits, _, labels in self._walk("val"):
                heads = {
                    site: gate.linear(features[site].to(self.network.device)).cpu()
                    for site, gate in self.exits.items()
                }
                for site, head in ((None, logits), *heads.items()):
                    hits[site] += int((head.argmax(1) == labels).sum())
                total += len(labels)
        shares = {site: 100 * count / total for site, count in hits.items()}
        return shares.pop(None), {site: share for site, share in shares.items() if site is not None}

    def _told(self, row: Row) -> str:
        return (
            f"epoch {row['epoch']}/{self.options.epochs}: loss {row['train_loss']:.3f}, val top-1 "
            + ", ".join(f"{site} {top1:.2f}" for site, top1 in row["exits"].items())
        )

    def finish(self) -> tuple[dict[str, Any], Scores]:
        """What the trained network does on val.

        There are no BatchNorm statistics to re-estimate.
        """
        scores = self.validate()
        return {"before": scores.top1, "after": None, "kept": "before"}, scores
