"""The options of a training run; the defaults are the papers' ImageNet schedule."""
from __future__ import annotations

from dataclasses import dataclass

from gatecli.data import AUGMENTS
from gatecli.errors import SettingError
from gatecli.schedules import LEARNING_RATES

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class TrainOptions:
    """SGD as in Herrmann et al. 2018, section 4.1.1: 100 epochs, momentum .9, weight decay 1e-4, lr .1 divided by 10 every 30 epochs, batches of 256.

    Milestones scale with `epochs`. `augment` none: the data set's own. `bn_batches`: batches for the BatchNorm statistics' re-estimation, at most
    one pass over the training split. `save_every`: seconds between saved states.
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

    def __post_init__(self) -> None:
        for name, low, high in (("epochs", 1, None), ("batch_size", 2, None), ("workers", 0, None), ("bn_batches", 0, None), ("lr", 0, None), ("weight_decay", 0, None), ("momentum", 0, 1), ("label_smoothing", 0, 1)):
            value = getattr(self, name)
            if not value >= low or (high is not None and value > high) or value == float("inf"):
                raise SettingError(f"expected --{name.replace('_', '-')} to be {f'between {low} and {high}' if high else f'at least {low}'}, but got {value}")
        for name, value, choices in (("schedule", self.schedule, LEARNING_RATES), ("precision", self.precision, PRECISIONS), ("augment", self.augment, (None, *AUGMENTS))):
            if value not in choices:
                raise SettingError(f"expected --{name} to be one of {', '.join(str(c) for c in choices if c)}, but got `{value}`")
