"""Settings of the layer gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gatecli.errors import SettingError
from gatecli.methods.losses import FORMS as LOSS_FORMS
from gatecli.methods.objective import COUNT, PRICES
from gatecli.methods.schedules import raised
from gatecli.methods.settings import Length, Settings, setting
from gatecli.methods.targets import FORMS, TARGETS, VARIABLE

__all__ = ["RESIDUAL", "AigSettings", "LayerGateSettings"]

EVERY, RESIDUAL = "every", "residual"

TRAVEL = 500.0  # what the gates' learning rate comes to over a run's steps, at least
FASTEST = 10.0  # ... and no rate is higher, however short the run
ADAPTIVE = 10.0, 1.0  # the same two where steps are as long as the rate, as AdamW's are
HEAVIEST = 4.0  # weight of the loss in the shortest runs
FEW = 10.0  # these are for so many units; of n a unit has 1/n of the loss's gradient


@dataclass(frozen=True)
class LayerGateSettings(Settings):
    """Settings of the layer gates; defaults are the paper's where it gives one.

    Gates of two logits are not decayed: decay alone draws them together at the gates' own rate.
    With a rate of 3 it takes P(on) from .98 to .72 in 938 steps, which looks like learning.
    """

    gate_lr: float | None = setting(
        None,
        "learning rate of the gates; none: that of the weights, more in a short_run",
        low=0,
        high=1e30,
    )
    gate_weight_decay: float | None = setting(
        0.0,
        "weight decay of the gates; none: that of the weights",
        low=0,
        high=1e30,
        before=lambda stored: None,
    )
    target_rate: float = setting(
        0.6, "share of branches to run, t in the paper (.4, .5, .6 there)", low=0, high=1
    )
    loss_weight: float | None = setting(
        None,
        "weight of the target loss beside the cross-entropy; none: 1 as in the paper, more in a"
        " short_run",
        low=0,
        high=1e30,
    )
    short_run: int = setting(
        5000,
        "a run of fewer steps is short, too short for the paper's rates to move gates: gate_lr, if"
        f" none, is then {TRAVEL:g} / steps (at most {FASTEST:g}; with AdamW {ADAPTIVE[0]:g} /"
        f" steps, at most {ADAPTIVE[1]:g}), and loss_weight, if none,"
        f" short_run / steps (at most {HEAVIEST:g}). n units of a kind, more than {FEW:g}, take n /"
        f" {FEW:g} times the steps, or that rate: each has 1/n of the loss; 0: no run is short",
        low=0,
        before=lambda stored: 0,
    )
    loss_form: str = setting(
        "quadratic",
        "quadratic, or const-quad: no penalty at or below the target (S2.2)",
        choices=LOSS_FORMS,
    )
    anneal_step: float = setting(
        0.0,
        "lower the target by this much from anneal_start on (S2.1; typical .05); 0: no annealing",
        low=0,
        high=1,
    )
    anneal_every: int = setting(5, "... every so many epochs", low=1)
    anneal_start: float = setting(1.0, "the target that annealing starts from", low=0, high=1)
    targets: Mapping[str, float] | tuple[float | None, ...] | None = setting(
        None,
        f"targets of their own: {FORMS}; 1 leaves a gate out",
        structural=True,
        value=TARGETS,
    )
    granularity: int = setting(
        1,
        "split the output filters of each branch, dense layer or convolution into so many groups,"
        " a gate each (S2.3); 1: as the kind has them, a branch or layer as a whole, each filter",
        low=1,
        high=65536,
        structural=True,
    )
    coupled: bool = setting(
        default=False,
        help="gate filters that share an addition (a ResNet's stage width) as one site, so that"
        " prune takes their channels out of the whole stream; for --kind filter",
        structural=True,
    )
    granularity_of: str = setting(
        EVERY,
        "what granularity splits: every site, or residual branches alone",
        choices=(EVERY, RESIDUAL),
        structural=True,
        before=lambda stored: RESIDUAL,
    )
    variable: str = setting(
        "none",
        "let the target follow the network's rate within each epoch (S2.2): moving (the mean so"
        " far) or exponential",
        choices=VARIABLE,
    )
    variable_momentum: float = setting(
        0.9, "of the exponential average, for each batch", low=0, high=1
    )
    price: str = setting(
        COUNT,
        "what target_rate is a share of: count, of the gated units (the papers'); macs, of the MACs"
        " that they can save; ms, of the milliseconds, by the table of gatecli price, measured by"
        " finetune where there is none. What lies in something closed counts once",
        choices=PRICES,
    )

    def check(self, epochs: int) -> None:
        if self.price != COUNT and self.targets is not None:
            raise SettingError(
                f"expected price={COUNT} where gates have `targets` of their own, but got"
                f" price={self.price}: it holds one rate for all of them; leave one out"
            )

    def suited(self, length: Length) -> dict[str, float]:
        """What lets gates move in a short run, where it has not been set.

        Of n units alike each has 1/n of the loss's gradient, and moves the rate by 1/n: for the
        same way in as many steps the learning rate goes with n. A heavier loss would do it too, but
        drown what the network's own loss says of single units, which gets smaller with n as well.

        The step that weight decay takes, rate times decay, stays that of the weights. Where steps
        do not depend on the gradient's size, neither n nor the loss's weight matters to them: their
        rate is the way that a logit has to go, over the steps.
        """
        many = 1.0 if length.is_adaptive else max(1.0, length.alike / FEW)
        if length.steps >= many * self.short_run:
            return {}
        travel, fastest = ADAPTIVE if length.is_adaptive else (many * TRAVEL, many * FASTEST)
        rate = raised(length.lr, travel, length.steps, fastest)
        found = {}
        if self.gate_lr is None and rate > length.lr:
            found["gate_lr"] = rate
            if self.gate_weight_decay is None:
                found["gate_weight_decay"] = float(f"{length.weight_decay * length.lr / rate:.2g}")
        if self.loss_weight is None and length.steps < self.short_run:
            found["loss_weight"] = raised(1.0, self.short_run, length.steps, HEAVIEST)
        return found


@dataclass(frozen=True)
class AigSettings(LayerGateSettings):
    """Settings of AIG: the layer gates' and its own."""

    gate_weight_decay: float | None = setting(
        None,
        "weight decay of the gates; none: that of the weights, and in a short_run as little in a"
        " step as at their rate",
        low=0,
        high=1e30,
    )
    hidden: int = setting(16, "width of the gate's hidden layer", low=1, high=4096, structural=True)
