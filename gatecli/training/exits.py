"""Train exits alone: the network is frozen, and one pass through it feeds all exits of a batch.

BatchNorm's statistics are frozen too. Without augmentation what the exits see never changes: with
`cache_features` it is computed once, for all epochs.

Exits that ask for it are trained on standardised features (`standard`). From the first step on they
hold weights for these, in a resumable state too; what becomes a checkpoint has them folded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from gatecli import together
from gatecli.data.augment import ORDER, generator
from gatecli.errors import SettingError
from gatecli.network import Network
from gatecli.stages.predict import Scores
from gatecli.training.course import Course
from gatecli.training.distill import Teacher, distillation
from gatecli.training.features import Seen, joined
from gatecli.training.goals import Row, TargetRate
from gatecli.training.mixing import check_unmixed
from gatecli.training.run import LOG_EVERY
from gatecli.training.standard import IMAGES, Standard
from gatecli.training.trained import Trained

__all__ = ["BestExits", "ExitLoop"]


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


class ExitLoop(Course):
    """Trains the exits of the method alone; the network stays as it is, to the bit."""

    summed = frozenset({"loss"})

    def _make_teacher(self, given: Network | None) -> Teacher | None:
        """None: the final classifier teaches."""
        return None if given is None else Teacher(given)

    def _make_goal(self) -> TargetRate:
        options = self.options
        check_unmixed(options)
        if options.precision == "fp16":
            raise SettingError(
                "--precision fp16 is for training the network: exits that are trained alone are"
                " trained in fp32; leave it out"
            )
        limits = (options.max_drop, options.max_gmacs, options.max_ms)
        if any(limit is not None for limit in limits):
            raise SettingError(
                "--max-drop, --max-gmacs and --max-ms are for layer gates: exits are set to an"
                " accuracy or a cost with gatecli calibrate"
            )
        if options.cache_features and (options.erase or options.augment not in (None, "none")):
            told = f"--erase {options.erase:g}" if options.erase else f"--augment {options.augment}"
            raise SettingError(
                "--cache-features computes each image once, so it goes without augmentation, but"
                f" got {told}"
            )
        return BestExits(self.network, self.trained, self.options)

    def _groups(self) -> list[dict[str, Any]]:
        return self.trained[0].groups(self.network, self.options)

    @cached_property
    def exits(self) -> dict[str, Any]:
        """The exits being trained, by site."""
        return self.trained[0].own(self.network, self.network.site_gates)

    @cached_property
    def _cache(self) -> dict[str, Seen]:
        """What the exits see of a whole split, on the CPU, by the split's name."""
        return {}

    @cached_property
    def _standards(self) -> dict[str, Standard]:
        """How the features of exits that ask for it are standardised, by site.

        By what the first images of the training are like. When the training begins, these exits'
        weights become those for standardised features.
        """
        sites = [site for site, gate in self.exits.items() if gate.standardises]
        if not sites:
            return {}
        count = min(self.examples.batches_per_epoch, -(-IMAGES // self.examples.batch_size))
        kept: dict[str, list[Tensor]] = {site: [] for site in sites}
        with self.progress.task("how features lie", count) as task:
            for seen in islice(self._training(0, 0), count):
                for site, features in kept.items():
                    features.append(seen.features[site].cpu())
                task.advance()
        standards = {}
        for site, features in kept.items():
            whole = torch.cat(together.gathered(torch.cat(features)))
            standards[site] = Standard.of(whole).to(self.network.device)
            if self.position.step == 0:
                standards[site].unfold(self.exits[site].linear)
        return standards

    def save(self) -> None:
        """Save the state; before the first step there is nothing to save but what is there."""
        is_unfolded = "_standards" in self.__dict__
        if self.position.step or not is_unfolded:
            super().save()

    def tensors(self) -> dict[str, Tensor]:
        with ExitStack() as stack:
            for site, standard in self._standards.items():
                stack.enter_context(standard.folded(self.exits[site].linear))
            return super().tensors()

    def _logits(self, site: str, seen: Seen) -> Tensor:
        """What an exit says of what it has seen of images: (N, K)."""
        features = seen.features[site].to(self.network.device)
        if site in self._standards:
            features = self._standards[site](features)
        logits: Tensor = self.exits[site].linear(features)
        return logits

    def _epoch(self, epoch: int) -> None:
        start = self.position.step - epoch * self.examples.steps_per_epoch
        self.network.eval()
        label = f"epoch {epoch + 1}/{self.options.epochs}"
        count = self.examples.steps_per_epoch - start
        batches = self._training(epoch, start * self.options.accumulate)
        with self.progress.task(label, count) as task:
            for _ in range(count):
                self._fit(islice(batches, self.options.accumulate), epoch)
                self._step_done()
                task.advance(loss=f"{self.position.means()['loss']:.3f}")

    def _training(self, epoch: int, start: int) -> Iterator[Seen]:
        """The training batches of an epoch from index `start` on.

        The same with and without a cache.
        """
        if not self.options.cache_features:
            for x, y in self.examples.training(epoch, start):
                yield self._seen(x, y)
            return
        (everything,) = self._walk("train")
        count = len(everything.labels)
        order = torch.randperm(count, generator=generator(ORDER, self.options.seed, epoch))
        size = self.examples.batch_size
        for number in range(start, self.examples.batches_per_epoch):
            rows = order[number * size : (number + 1) * size][together.part(size)]
            yield everything.take(rows).to(self.network.device)

    def _seen(self, x: Tensor, y: Tensor) -> Seen:
        """What the exits see of images (N, C, H, W) with labels (N,)."""
        x = x.to(self.network.device)
        with torch.no_grad():
            values, logits = self.network.at_exits(x)
            taught = logits if self.teacher is None else self.teacher(x)
            features = {site: gate.features(values[site]) for site, gate in self.exits.items()}
        return Seen(
            features=features,
            logits=logits.float(),
            taught=taught.float(),
            labels=y.to(self.network.device),
        )

    def _walk(self, split: str) -> Iterator[Seen]:
        """What the exits see of a whole split, in order, on the CPU.

        In batches, or with `cache_features` as one, which is kept for the next time.
        """
        if split in self._cache:
            yield self._cache[split]
            return
        caching = self.options.cache_features
        label = f"features of {split}" if caching else "validating"
        kept: list[Seen] = []
        with self.progress.task(label, self.examples.steps_in_order(split)) as task:
            for x, y in self.examples.in_order(split):
                seen = self._seen(x, y).to("cpu")
                if caching:
                    kept.append(seen)
                else:
                    yield seen
                task.advance()
        if caching:
            self._cache[split] = joined(together.in_order(kept))
            yield self._cache[split]

    def _fit(self, batches: Iterable[Seen], epoch: int) -> None:
        self._begin_step()
        values = [self._backward(self._loss(seen)) for seen in batches]
        self._move()
        self._moved()
        for value in values:
            self.position.add({"loss": value})
        if self.run is not None and self.position.step % LOG_EVERY == 0:
            self.run.log(
                {
                    "step": self.position.step,
                    "epoch": epoch + 1,
                    "loss": sum(values) / len(values),
                    "lr": self.optimizer.param_groups[0]["lr"],
                }
            )

    def _loss(self, seen: Seen) -> Tensor:
        """The sum of the exits' losses, a scalar; no exit's gradient reaches another."""
        logits = {site: self._logits(site, seen) for site in self.exits}
        own = [gate.loss(logits[site], seen.labels) for site, gate in self.exits.items()]
        loss = torch.stack(own).sum()
        if self.options.distill:
            distilled = []
            for each in logits.values():
                distilled.append(distillation(each, seen.taught, self.options.temperature))
            loss = loss + self.options.distill * torch.stack(distilled).sum()
        return self.processes.weigh(loss)

    def _share_gradients(self) -> None:
        for group in self.optimizer.param_groups:
            self.processes.average_gradients(group["params"])

    def _row(self, epoch: int) -> dict[str, Any]:
        top1, exits = self._top1s()
        return {
            "step": self.position.step,
            "epoch": epoch + 1,
            "train_loss": self.position.means()["loss"],
            "val_top1": top1,
            "exits": exits,
        }

    def _top1s(self) -> tuple[float, dict[str, float]]:
        """Val top-1 of the final classifier, and of each exit on all samples."""
        counts = torch.zeros(2 + len(self.exits), dtype=torch.float64)
        with torch.no_grad():
            for seen in self._walk("val"):
                right = [_right(seen.logits, seen.labels)]
                for site in self.exits:
                    right.append(_right(self._logits(site, seen).cpu(), seen.labels))
                counts += torch.tensor([len(seen.labels), *right])
        if not self.options.cache_features:  # else every process has walked through all
            counts = together.summed(counts)
        top1s = (100 * counts[1:] / counts[0]).tolist()
        return top1s[0], dict(zip(self.exits, top1s[1:], strict=True))

    def _told(self, row: Row) -> str:
        exits = ", ".join(f"{site} {top1:.2f}" for site, top1 in row["exits"].items())
        return (
            f"epoch {row['epoch']}/{self.options.epochs}: loss {row['train_loss']:.3f}, val top-1 "
            + exits
        )

    def finish(self) -> tuple[dict[str, Any], Scores]:
        """What the trained network does on val.

        There are no BatchNorm statistics to re-estimate.
        """
        scores = self.validate()
        return {"before": scores.top1, "after": None, "kept": "before"}, scores


def _right(logits: Tensor, labels: Tensor) -> int:
    """How many rows of logits (N, K) are highest at the label."""
    return int((logits.argmax(1) == labels).sum())
