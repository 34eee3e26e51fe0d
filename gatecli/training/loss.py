"""What a batch costs: the task's loss, the teacher's, and what the methods add for their gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatecli.gates.decider import Decider
from gatecli.gates.observe import Record
from gatecli.network import Network
from gatecli.training.distill import Teacher, distillation
from gatecli.training.mixing import Mixing
from gatecli.training.options import TrainOptions
from gatecli.training.pricing import rates_of
from gatecli.training.processes import OneProcess
from gatecli.training.trained import Trained

__all__ = ["Answered", "BatchLoss"]

V = TypeVar("V")
Targets = Mapping[str, float]
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a batch came to; nothing here has gradients.

    Attributes:
        logits: (N, K).
        labels: (N,); of mixed images those with the larger share.
        decisions: Of the whole batch, by site, (N, units), or a row (1, units) of means.
        shares: The rates that have a price, see gatecli.training.pricing.
    """

    logits: Tensor
    labels: Tensor
    decisions: dict[str, Tensor]
    shares: dict[str, float]


class BatchLoss:
    """The loss of a network with the gates of the methods `trained`."""

    def __init__(
        self,
        network: Network,
        trained: Sequence[Trained],
        options: TrainOptions,
        processes: OneProcess,
        teacher: Teacher | None,
    ) -> None:
        self.network = network
        self.trained = trained
        self.options = options
        self.processes = processes
        self.teacher = teacher
        self.mixing = Mixing(options, network.num_classes)

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
                found.extend(each.sites(self.network))
        return found

    @cached_property
    def gates(self) -> dict[str, list[Decider]]:
        """Each trained method's gates, by the method's name."""
        found = {}
        for each in self.trained:
            own = each.own(self.network, self.network.site_gates)
            found[each.name] = list(own.values())
        return found

    def _own(self, by_site: Mapping[str, V]) -> dict[str, V]:
        """What belongs to the gates being trained, in the order of their methods.

        Other methods' gates may stand in the network too.
        """
        found: dict[str, V] = {}
        for each in self.trained:
            found.update(each.own(self.network, by_site))
        return found

    def __call__(
        self, record: Record, x: Tensor, y: Tensor, targets: Targets, seed: int
    ) -> tuple[Tensor, Answered]:
        """The loss of a batch, a scalar, and what it came to.

        Args:
            record: What observes the network; empty.
            x: Images (N, C, H, W).
            y: Their labels (N,).
            targets: The gates', by site.
            seed: Of all that is drawn.
        """
        x, y = self.mixing(x, y, seed)
        with self.processes.seeded(seed, x.device):
            logits, task_loss = self._answer(x, y)
        decisions = self.processes.whole(self._own(record.latest()), self.by_image)
        loss = self._with_gates(task_loss, decisions, targets)
        loss = self._with_exits(loss, record, y)
        return loss, Answered(
            logits=logits.detach(),
            labels=y.argmax(1) if y.ndim == 2 else y,
            decisions={site: z.detach() for site, z in decisions.items()},
            shares=rates_of(self.trained, decisions),
        )

    def _answer(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (N, K) of images (N, C, H, W), and the loss that they come to.

        Here and below `y` are labels (N,), or shares of all classes (N, K).
        """
        options = self.options
        half = HALVES.get(options.precision)
        with torch.autocast(x.device.type, half, enabled=half is not None):
            logits = self.model(x)
            loss = self._task_loss(logits, y)
            if self.teacher is not None:
                taught = self.teacher(x)
                distilled = distillation(logits, taught, options.temperature)
                loss = loss + options.distill * self.processes.weigh(distilled)
        return logits, loss

    def _task_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """What answers (N, K) to images cost: a scalar, see `weigh`."""
        smoothing = self.options.label_smoothing
        loss = F.cross_entropy(logits.float(), y, label_smoothing=smoothing)
        return self.processes.weigh(loss)

    def _with_exits(self, loss: Tensor, record: Record, y: Tensor) -> Tensor:
        """The loss with what the methods add to it for what exits and end say of all images."""
        if record.end is None:
            return loss
        end = self._task_loss(record.end, y)
        for each in self.trained:
            own = each.own(self.network, record.answers)
            losses = {site: self._task_loss(logits, y) for site, logits in own.items()}
            loss = loss + each.objective.traits.supervision(losses, end, each.settings)
        return loss

    def _with_gates(
        self, loss: Tensor, decisions: Mapping[str, Tensor], targets: Targets
    ) -> Tensor:
        """The loss with what the methods add to it for their gates' decisions, (N, units) each.

        The decisions are the whole batch's: rates are of all its images before they are squared.
        """
        for each in self.trained:
            own = each.own(self.network, decisions)
            loss = loss + each.loss(own, each.own(self.network, targets))
            loss = loss + each.objective.penalty(self.gates[each.name], each.settings)
        return loss
