"""The options of a training run; the defaults are the papers' ImageNet schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gatecli.data import AUGMENTS
from gatecli.errors import SettingError
from gatecli.schedules import LEARNING_RATES

PRECISIONS = ("fp32", "bf16")
RANGES = {
    "epochs": (1, math.inf),
    "lr": (0, 1e30),
    "batch_size": (2, math.inf),
    "weight_decay": (0, 1e30),
    "momentum": (0, 1),
    "label_smoothing": (0, 1),
    "seed": (0, 2**32 - 1),
    "workers": (0, 1024),
    "bn_batches": (0, math.inf),
    "save_every": (0, math.inf),
    "max_drop": (0, 100),
    "max_gmacs": (0, math.inf),
    "distill": (0, 1e30),
    "temperature": (0.01, 1e6),
}


@dataclass(frozen=True)
class TrainOptions:
    """SGD as in Herrmann et al.

    2018, section 4.1.1: 100 epochs, momentum .9, weight decay 1e-4, lr .1 divided by 10 every 30
    epochs, batches of 256.

    Milestones scale with `epochs`. `augment` none: the data set's own. `bn_batches`: batches for
    the BatchNorm statistics' re-estimation, at most one pass over the training split. `save_every`:
    seconds between saved states. `max_drop` (points of val top-1 below the baseline) and
    `max_gmacs` take the target rate's place, see gatecli.training.goals. `cache_features`: compute
    what exits see once, rather than in every epoch.
    `train`: the methods to train, with commas between; none: the latest attached. `distill`: the
    weight of the distillation loss, and its `temperature`, see gatecli.training.distill.
    """

    epochs: int = 100
    lr: float = 0.1
    batch_size: int = 256
    weight_decay: float = 1e-4
    momentum: float = 0.9
    schedule: str = "step"
    precision: str = "fp32"
    augment: str | None = None
    label_smoothing: float = 0.0
    seed: int = 0
    workers: int = 0
    bn_batches: int = 200
    save_every: float = 60.0
    max_drop: float | None = None
    max_gmacs: float | None = None
    cache_features: bool = False
    train: str | None = None
    distill: float = 0.0
    temperature: float = 4.0

    @property
    def methods(self) -> list[str]:
        """The methods named to be trained; none: the latest attached."""
        return [name for name in (self.train or "").split(",") if name]

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is None:
                continue
            if not low <= value <= high or value == math.inf:
                span = f"at least {low}" if high == math.inf else f"between {low} and {high}"
                raise SettingError(
                    f"expected --{name.replace('_', '-')} to be {span}, but got {value}"
                )
        for name, choices in (
            ("schedule", LEARNING_RATES),
            ("precision", PRECISIONS),
            ("augment", (None, *AUGMENTS)),
        ):
            if getattr(self, name) not in choices:
                raise SettingError(
                    f"expected --{name} to be one of {', '.join(filter(None, choices))}, but got"
                    f" `{getattr(self, name)}`"
                )
