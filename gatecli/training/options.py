"""The options of a training run; the defaults are the papers' ImageNet schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gatecli.data import AUGMENTS
from gatecli.data.changes import RANDAUGMENT
from gatecli.errors import SettingError
from gatecli.methods.schedules import LEARNING_RATES
from gatecli.training.optimizers import ADAMW, OPTIMIZERS

__all__ = ["TrainOptions"]

PRECISIONS = ("fp32", "bf16", "fp16")
RANGES = {
    "epochs": (1, math.inf),
    "lr": (0, 1e30),
    "batch_size": (2, math.inf),
    "accumulate": (1, math.inf),
    "weight_decay": (0, 1e30),
    "momentum": (0, 1),
    "warmup": (0, math.inf),
    "erase": (0, 1),
    "mixup": (0, 1000),
    "cutmix": (0, 1000),
    "label_smoothing": (0, 1),
    "seed": (0, 2**32 - 1),
    "workers": (0, 1024),
    "bn_batches": (0, math.inf),
    "bn_batch_size": (2, math.inf),
    "save_every": (0, math.inf),
    "max_drop": (0, 100),
    "max_gmacs": (0, math.inf),
    "max_ms": (0, math.inf),
    "distill": (0, 1e30),
    "temperature": (0.01, 1e6),
}
WITHIN = {"clip_grad": (0, math.inf), "ema": (0, 1)}  # neither end is allowed
LEAST_MIXED = 0.001  # below, float32 has no Beta distribution
BN_GATES = ("sampled", "decided")
KEEPS = ("best", "last")
CHOICES = {
    "optimizer": OPTIMIZERS,
    "schedule": LEARNING_RATES,
    "precision": PRECISIONS,
    "augment": (*AUGMENTS, RANDAUGMENT),
    "bn_gates": BN_GATES,
    "keep": KEEPS,
}


@dataclass(frozen=True)
class TrainOptions:
    """How to train; by default with SGD as the papers do on ImageNet.

    Attributes:
        epochs: Passes over the training split.
        lr: Learning rate at the start.
        batch_size: Images a batch, that of all processes together.
        accumulate: Batches whose gradients a step is the mean of; each has a loss of its own.
        optimizer: One of OPTIMIZERS.
        weight_decay: Of the optimizer; AdamW's is decoupled, rate times decay in a step.
        momentum: Of SGD; of AdamW its beta1.
        clip_grad: The norm that a step's gradients, of weights and gates together, are shortened
            to where theirs is larger; None: they are not.
        ema: The share that the average of the weights keeps in a step, see
            gatecli.training.average; this average is validated, and what comes out. None: none.
        schedule: One of LEARNING_RATES; the papers' milestones scale with `epochs`.
        milestones: The epochs before which schedule `step` lowers the learning rate, in place of
            the papers' or the method's own; a text has commas between them.
        warmup: Epochs, or part of one, in which the learning rate rises to the schedule's.
        nesterov: Let SGD's momentum be Nesterov's.
        precision: One of PRECISIONS; bf16 and fp16 are autocast, fp16 with a scaled loss.
        augment: How images are augmented; None: the data set's own way; RANDAUGMENT: that, and
            then RandAugment.
        erase: The chance of an image that a rectangle of it is filled with the mean colour.
        mixup: Images are mixed in pairs, in shares drawn from Beta(mixup, mixup); 0: they are not.
        cutmix: The same for rectangles of images; with both, each batch has one of them.
        label_smoothing: Of the cross-entropy.
        seed: Of all that is random.
        workers: Processes that read images; None: as many as help.
        channels_last: Whether images and weights lie in memory pixel by pixel.
        bn_batches: Batches for the BatchNorm statistics' re-estimation, at most one pass over the
            training split.
        bn_batch_size: Images in each of these; None: as in training. The paper's are large.
        bn_gates: How gates decide then, one of BN_GATES: sampled, as in training (the paper's way),
            or as evaluation decides them.
        keep: Which epoch's state to end with, one of KEEPS: the best on val of those that came down
            to the rate that is aimed at, or the last whatever its rate.
        sync_norms: Let BatchNorms normalise by the batch of all processes together, rather than
            each by its part.
        save_every: Seconds between saved states.
        max_drop: Points of val top-1 below the baseline; takes the target rate's place, see
            gatecli.training.goals.
        max_gmacs: GMACs of an image; likewise.
        max_ms: Milliseconds of an image, by the table that the network keeps; likewise.
        any_machine: Take that table wherever it was measured.
        runtime: Where milliseconds are measured, or were, for gates priced by them; None: native,
            or where the table that the network keeps was measured.
        cache_features: Compute what exits see once, rather than in every epoch.
        train: The methods to train, with commas between; None: the latest attached; `weights`: the
            network's own weights alone.
        distill: Weight of the distillation loss, see gatecli.training.distill.
        temperature: Of distillation.

    Reference: Herrmann et al. 2018, section 4.1.1.
    """

    epochs: int = 100
    lr: float = 0.1
    batch_size: int = 256
    accumulate: int = 1
    optimizer: str = "sgd"
    weight_decay: float = 1e-4
    momentum: float = 0.9
    clip_grad: float | None = None
    ema: float | None = None
    schedule: str = "step"
    milestones: tuple[int, ...] | None = None
    warmup: float = 0.0
    nesterov: bool = False
    precision: str = "fp32"
    augment: str | None = None
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    seed: int = 0
    workers: int | None = None
    channels_last: bool = False
    bn_batches: int = 200
    bn_batch_size: int | None = None
    bn_gates: str = "sampled"
    keep: str = "best"
    sync_norms: bool = False
    save_every: float = 60.0
    max_drop: float | None = None
    max_gmacs: float | None = None
    max_ms: float | None = None
    any_machine: bool = False
    runtime: str | None = None
    cache_features: bool = False
    train: str | None = None
    distill: float = 0.0
    temperature: float = 4.0

    @property
    def methods(self) -> list[str]:
        """The methods named to be trained; none: the latest attached."""
        return [name for name in (self.train or "").split(",") if name]

    def __post_init__(self) -> None:
        for name in RANGES:
            self._check_range(name)
        for name in CHOICES:
            self._check_choice(name)
        for name in WITHIN:
            self._check_within(name)
        object.__setattr__(self, "milestones", _epochs(self.milestones))
        self._check_milestones()
        self._check_together()

    def _check_milestones(self) -> None:
        if self.milestones is None:
            return
        told = ",".join(map(str, self.milestones))
        if self.schedule != "step":
            raise SettingError(
                f"expected --milestones to go with --schedule step, but got {told} with --schedule"
                f" {self.schedule}: leave one of them out"
            )
        is_within = all(0 < each < self.epochs for each in self.milestones)
        if not is_within or list(self.milestones) != sorted(set(self.milestones)):
            raise SettingError(
                f"expected --milestones to rise, each between 1 and {self.epochs - 1} (of"
                f" {self.epochs} epochs), but got {told}"
            )

    def _check_together(self) -> None:
        if self.warmup > self.epochs:
            raise SettingError(
                f"expected --warmup to be at most the {self.epochs} epochs, but got {self.warmup:g}"
            )
        limits = (self.max_drop, self.max_gmacs, self.max_ms)
        if self.keep == "last" and any(limit is not None for limit in limits):
            raise SettingError(
                "expected --keep last to go with a target rate, but got a price to come down to,"
                " which says itself which epoch is kept: leave one out"
            )
        for name in ("mixup", "cutmix"):
            if 0 < getattr(self, name) < LEAST_MIXED:
                raise SettingError(
                    f"expected --{name} to be 0, or at least {LEAST_MIXED}, but got"
                    f" {getattr(self, name)}"
                )
        self._check_optimizer()

    def _check_optimizer(self) -> None:
        if self.optimizer == ADAMW and self.nesterov:
            raise SettingError(
                "expected --nesterov to go with --optimizer sgd, but got --optimizer adamw: leave"
                " one out"
            )
        if self.nesterov and self.momentum == 0:
            raise SettingError(
                "expected --nesterov to go with a momentum, but got --momentum 0: leave one out"
            )

    def _check_range(self, name: str) -> None:
        low, high = RANGES[name]
        value = getattr(self, name)
        if value is None:
            return
        if not low <= value <= high or value == math.inf:
            span = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise SettingError(f"expected --{name.replace('_', '-')} to be {span}, but got {value}")

    def _check_within(self, name: str) -> None:
        low, high = WITHIN[name]
        value = getattr(self, name)
        if value is not None and not low < value < high:
            span = f"above {low}" if high == math.inf else f"between {low} and {high}, neither"
            raise SettingError(
                f"expected --{name.replace('_', '-')} to be {span}, but got {value:g}"
            )

    def _check_choice(self, name: str) -> None:
        value = getattr(self, name)
        if value is None and name == "augment":
            return
        if value not in CHOICES[name]:
            raise SettingError(
                f"expected --{name.replace('_', '-')} to be one of {', '.join(CHOICES[name])},"
                f" but got `{value}`"
            )


def _epochs(given: Any) -> tuple[int, ...] | None:
    """Whole numbers, or a text with commas between them; None stays None."""
    if given is None:
        return None
    parts = given.split(",") if isinstance(given, str) else list(given)
    try:
        return tuple(_whole(part) for part in parts or [""])
    except ValueError:
        told = given if isinstance(given, str) else ",".join(map(str, parts))
        raise SettingError(
            "expected --milestones to be whole numbers with commas between, as 150,250, but got"
            f" `{told}`"
        ) from None


def _whole(given: Any) -> int:
    if isinstance(given, (bool, float)):
        raise ValueError(given)
    return int(given)
