"""Layer gates: learn which residual branches to run, for each image or once for all.

    x_l = shortcut(x_{l-1}) + z_l * F_l(x_{l-1}),  z_l in {0, 1}

Herrmann, Bowen, Zabih, "Deep networks with probabilistic gates" (2018), with the gate of Veit &
Belongie, "Convolutional Networks with Adaptive Inference Graphs" (2018). One gate a residual
branch, downsampling blocks included; a projection shortcut always runs. Training samples z with the
straight-through Gumbel-softmax at temperature 1; the loss is
    cross-entropy + loss_weight * (t - mean of z over all gates and instances)^2            (per
        batch, section 3.1)
    cross-entropy + loss_weight * mean over gates g of (t_g - mean of z_g over the batch)^2   (per
        gate, Veit & Belongie)
With granularity n the branch's output filters are n groups with a gate each (S2.3). A closed gate
at a layer of a dense block puts zeros into its place of the concatenation (section 5). A gate whose
own target is 1 is left out: its branch always runs (AIG's code samples it and counts it as 1). In
evaluation a branch runs where P(on) > threshold (1/2: the most probable decision).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatecli.errors import SettingError
from gatecli.gates.cache import Remembered
from gatecli.gates.gate import Gate
from gatecli.graph.slices import drop_inputs, keep_entries
from gatecli.kinds import registry
from gatecli.kinds.base import MASK, VALUE
from gatecli.methods.base import Method, register
from gatecli.methods.losses import FORMS as LOSS_FORMS
from gatecli.methods.losses import per_batch, per_gate
from gatecli.methods.schedules import annealed_target
from gatecli.methods.settings import Settings, setting
from gatecli.methods.targets import FORMS, VARIABLE, follow, read, resolve, written
from gatecli.traced.site import Site


@dataclass(frozen=True)
class LayerGateSettings(Settings):
    """Settings of the layer gates; defaults are the paper's where it gives one."""

    target_rate: float = setting(
        0.6, "share of branches to run, t in the paper (.4, .5, .6 there)", low=0, high=1
    )
    loss_weight: float = setting(
        1.0, "weight of the target loss beside the cross-entropy", low=0, high=1e30
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
    targets: str | None = setting(
        None, f"targets of their own: {FORMS}; 1 leaves a gate out", structural=True
    )
    granularity: int = setting(
        1,
        "split each residual branch's output filters into so many groups, a gate each (S2.3)",
        low=1,
        high=65536,
        structural=True,
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


@dataclass(frozen=True)
class AigSettings(LayerGateSettings):
    """Settings of AIG: the layer gates' and its own."""

    hidden: int = setting(16, "width of the gate's hidden layer", low=1, high=4096, structural=True)


class DataDependentGate(Gate):
    """AIG's gate.

    Global average pool -> linear C -> hidden -> BatchNorm -> ReLU -> linear -> [off, on] logits.

    The last layer starts with zero weights and bias [0.1, 2]: P(on) = sigmoid(1.9) = .87 for every
    input (the authors' code draws the weights from N(0, .001), which closes some gates of a deep
    network before any training).
    """

    def __init__(
        self, site: str, channels: int, positions: tuple[int, ...], hidden: int, units: int = 1
    ) -> None:
        super().__init__(site, units)
        self.positions = positions
        self.reduce = nn.Linear(channels, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.decide = nn.Linear(hidden, 2 * units)
        nn.init.kaiming_normal_(self.reduce.weight)
        nn.init.zeros_(self.reduce.bias)
        nn.init.zeros_(self.decide.weight)
        with torch.no_grad():
            self.decide.bias.copy_(torch.tensor([0.1, 2.0]).repeat(units))
        self._folded = Remembered()

    def scores(self, x: Tensor) -> Tensor:
        """`x` (N, C, H, W), or another shape -> (N, units, 2).

        Another shape has one dimension of C channels besides `positions`.
        """
        total, share = self._total(x)
        hidden = F.relu(self.norm(self.reduce(total * share)))
        pair: Tensor = self.decide(hidden)
        return pair.reshape(-1, self.units, 2)

    def drop_inputs(self, kept: Tensor, gone: Tensor, constants: Tensor) -> None:
        drop_inputs(self.reduce, kept, gone, constants)

    def keep(self, units: Sequence[int]) -> None:
        super().keep(units)
        pairs = torch.tensor(units)[:, None] * 2 + torch.tensor([0, 1])
        keep_entries(self.decide, ("weight", "bias"), pairs.flatten())
        self.decide.out_features = 2 * len(units)

    def log_odds(self, x: Tensor) -> Tensor:
        """The same with the BatchNorm folded into the first layer and one difference of logits.

        (N, units).

        Each operation counts here: between convolutions of a single image it costs what it takes to
        start it, not to run it.
        """
        reduce, norm, decide = self.reduce, self.norm, self.decide
        assert norm.running_mean is not None and norm.running_var is not None
        weights = (
            reduce.weight,
            reduce.bias,
            norm.weight,
            norm.bias,
            norm.running_mean,
            norm.running_var,
            decide.weight,
            decide.bias,
        )
        weight, bias, difference, offset = self._folded(self._fold, *weights)
        total, share = self._total(x)  # the division by the count is left to the product
        return F.linear(
            torch.addmm(bias, total, weight.t(), alpha=share).relu_(), difference, offset
        )

    def _total(self, x: Tensor) -> tuple[Tensor, float]:
        """`x` summed over `positions`, (N, C), and what makes the sum the mean.

        `mean` would divide a whole gradient of x's size.
        """
        total = x.sum(self.positions) if self.positions else x
        return total, 1 / math.prod([x.shape[place] for place in self.positions])

    def _fold(self) -> tuple[Tensor, ...]:
        norm, decide = self.norm, self.decide
        assert norm.running_var is not None and norm.running_mean is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        bias = (self.reduce.bias - norm.running_mean) * scale + norm.bias
        difference = decide.weight[1::2] - decide.weight[::2]
        return (
            self.reduce.weight * scale[:, None],
            bias,
            difference,
            decide.bias[1::2] - decide.bias[::2],
        )


class DataIndependentGate(Gate):
    """Two logits for all inputs, starting at [0.1, 4] (P(on) = .98).

    Sampled for each instance in training.
    """

    data_dependent = False

    def __init__(self, site: str, units: int = 1) -> None:
        super().__init__(site, units)
        self.logits = nn.Parameter(torch.tensor([[0.1, 4.0]]).repeat(units, 1))
        self._odds = Remembered()

    def keep(self, units: Sequence[int]) -> None:
        super().keep(units)
        keep_entries(self, ("logits",), torch.tensor(units))

    def scores(self, x: Tensor) -> Tensor:
        """`x` (N, ...) -> (N, units, 2)."""
        return self.logits.expand(x.shape[0], self.units, 2)

    def log_odds(self, x: Tensor) -> Tensor:
        odds: Tensor = self._odds(lambda: self.logits[:, 1] - self.logits[:, 0], self.logits)
        return odds.expand(x.shape[0], self.units)


class LayerGates(Method):
    """Gates on residual branches.

    `dependent` says which of the two gates, `loss_of` which loss holds their rates.
    """

    needs: ClassVar[str] = (
        "residual blocks (an addition of a shortcut and a branch) or layers of dense blocks"
    )
    paper: ClassVar[str] = "Herrmann, Bowen, Zabih: Deep networks with probabilistic gates, 2018"
    default_kinds: ClassVar[tuple[str, ...]] = ("block", "layer")

    def __init__(
        self, name: str, summary: str, dependent: bool, loss_of: Callable[..., Tensor]
    ) -> None:
        super().__init__(name, summary, AigSettings if dependent else LayerGateSettings)
        self.dependent, self.loss_of = dependent, loss_of
        self.requires = frozenset({MASK, VALUE} if dependent else {MASK})  # type: ignore[misc]

    def prepare(self, sites: list[str], settings: Any) -> tuple[list[str], Any]:
        if settings.targets is None:
            return sites, settings
        own = resolve(settings.targets, sites)
        gated = [site for site in sites if own.get(site) != 1]
        if not gated:
            raise SettingError(
                "expected setting `targets` to leave something to gate, but every target is 1"
            )
        return gated, replace(
            settings, targets=written({site: rate for site, rate in own.items() if rate != 1})
        )

    def gate(self, site: Site, settings: Any) -> Gate:
        units = settings.granularity if registry.of(site).splits else site.units
        if not self.dependent:
            return DataIndependentGate(site.name, units)
        return DataDependentGate(site.name, site.channels, site.positions, settings.hidden, units)

    def targets(self, settings: Any, sites: Iterable[str], epoch: int) -> dict[str, float]:
        own = read(settings.targets) if settings.targets else {}
        return {
            site: annealed_target(
                own.get(site, settings.target_rate),
                epoch,
                settings.anneal_start,
                settings.anneal_step,
                settings.anneal_every,
            )
            for site in sites
        }

    def follow(
        self, settings: Any, targets: Mapping[str, float], rates: Mapping[str, float], count: int
    ) -> dict[str, float]:
        if settings.variable == "none":
            return dict(targets)
        return follow(settings.variable, settings.variable_momentum, targets, rates, count)

    def loss(
        self, decisions: Mapping[str, Tensor], settings: Any, targets: Mapping[str, float]
    ) -> Tensor:
        weight: float = settings.loss_weight
        return weight * self.loss_of(decisions, targets, settings.loss_form)


AIG, IND = (
    "a small gate looks at each branch's input",
    "two learned logits a branch, the same for all images; what collapses to 0 can be pruned",
)
register(LayerGates("aig-pergate", f"{AIG}; the loss holds each gate's own rate", True, per_gate))
register(
    LayerGates("aig-perbatch", f"{AIG}; the loss holds the mean rate of the batch", True, per_batch)
)
register(LayerGates("ind-pergate", f"{IND}; the loss holds each gate's own rate", False, per_gate))
register(
    LayerGates(
        "ind-perbatch", f"{IND}; the loss holds the mean rate of the batch", False, per_batch
    )
)
