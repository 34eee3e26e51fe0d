"""Gates: what decides whether a site's units run, and the estimators that train such decisions.

A gate's forward returns decisions z of shape (N, units), 1 = run, 0 = skip, as float tensor. In
training z is sampled and carries a straight-through gradient; in evaluation it is decided by the
gate's `strategy`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from typing_extensions import Self

STRATEGIES = ("threshold", "stochastic", "always-on")
LOG_ODDS, PROBABILITY = "log-odds", "probability"  # what an exit's score may be
Observer = Callable[["Gate", Tensor, "Tensor | None"], None]


def gumbel_decision(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Sample 0/1 decisions with the straight-through Gumbel-softmax.

    Args: logits (..., 2) for [off, on]. Returns (...): hard 0/1 forward, the soft sample's gradient
    backward.
    Source: Jang et al. 2017, as used by Herrmann et al. 2018, section 3, and Veit & Belongie 2018.
    """
    return F.gumbel_softmax(logits.float(), tau=temperature, hard=True)[..., 1]


def semantic_hash(scores: Tensor) -> Tensor:
    """Binarise with improved semantic hashing.

    Scores g' (N, c) -> gates g (N, c), noisy, half of the samples real-valued.

    g_eps = g' + N(0, 1);  g_alpha = max(0, min(1, 1.2 sigmoid(g_eps) - .1));  g_beta = [g_eps > 0],
        with g_alpha's gradient. Half of the
    samples, drawn at random, have g_alpha, the others g_beta.
    Source: Kaiser & Bengio 2018, as used by Chen et al. 2019, section 3.2.2.
    """
    noisy = scores.float() + torch.randn(scores.shape, device=scores.device)
    alpha = (1.2 * noisy.sigmoid() - 0.1).clamp(0, 1)
    beta = (noisy > 0).to(alpha.dtype) + (alpha - alpha.detach())  # exactly 0 or 1
    real = torch.randperm(len(scores), device=scores.device) < len(scores) // 2
    return torch.where(real[:, None], alpha, beta)


def log_odds_of_likeliest(logits: Tensor) -> Tensor:
    """The log-odds log P - log(1 - P) of the likeliest class: logits (N, K) -> (N, 1).

    From the logits themselves: a softmax is exactly 1 in float32 where 1 - P is below 6e-8.
    """
    likeliest = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, likeliest, -torch.inf).logsumexp(1, keepdim=True)
    return logits.gather(1, likeliest) - others


class Remembered:
    """What a function of some tensors returned, until one of them is replaced or written to.

    Evaluation folds weights this way.

    Writing through `.data` leaves no trace in a tensor's version, so who remembers is `Forgetful`.
    """

    def __init__(self) -> None:
        self.forget()

    def __deepcopy__(self, memo: dict[int, Any]) -> Remembered:
        return Remembered()  # a copy has tensors of its own

    def forget(self) -> None:
        self.versions: list[int] | None = None
        self.tensors: tuple[Tensor, ...] = ()

    def __call__(self, compute: Callable[[], Any], *tensors: Tensor) -> Any:
        """The result of `compute()`, which must depend on nothing but `tensors`."""
        if (
            torch.compiler.is_compiling()
        ):  # an export: its tensors are stand-ins, and whoever runs it folds constants
            return compute()
        try:
            versions = [t._version for t in tensors]
        except RuntimeError:  # tensors made in inference mode have no versions
            versions = None
        if (
            versions is None
            or versions != self.versions
            or not all(map(operator.is_, tensors, self.tensors))
        ):
            with torch.no_grad():
                self.value = compute()
            self.versions, self.tensors = versions, tensors
        return self.value


class Forgetful(nn.Module):
    """A module that forgets what it has remembered when its mode or device changes."""

    def train(self, mode: bool = True) -> Self:
        self._forget()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._forget()
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def _forget(self) -> None:
        for part in vars(self).values():
            if isinstance(part, Remembered):
                part.forget()


class Gate(Forgetful):
    """Base of all gates: subclasses give `scores(x)`, its [off, on] logits.

    This class decides, records and obeys `force`.

    Attributes:
        site: the name of the site gated. units: how many units it decides.
        threshold: buffer (units,), a unit runs where P(on) > threshold; .5 until calibrated.
        data_dependent: whether decisions depend on the input.
        strategy: how evaluation decides, one of STRATEGIES.
        observer: called with (gate, decisions, log-odds) at every forward, see gatecli.record.
        forced: decisions (units,) or (N, units) that override the gate's own, see
            gatecli.record.force.
        rows: which samples of the batch are here, where others have left by an exit; None: all.
        fresh_rate: the rate as attached.
        undecayed: names of its parameters that weight decay leaves alone.
        theoretical: whether what it saves is no time, as no dense kernel can leave it out.
        pads: whether it pads its input with zeros, so that a channel that is always the same is not
            so for it.
    """

    threshold: Tensor
    data_dependent = True
    fresh_rate = 1.0
    undecayed: tuple[str, ...] = ()
    theoretical = False
    pads = False

    def __init__(self, site: str, units: int) -> None:
        super().__init__()
        self.site, self.units = site, units
        self.register_buffer("threshold", torch.full((units,), 0.5))
        self.strategy = "threshold"
        self.observer: Observer | None = None
        self.forced: Tensor | None = None
        self.rows: Tensor | None = None
        self._limit = Remembered()

    def scores(self, x: Tensor) -> Tensor:
        """Trainable [off, on] logits: (N, units, 2)."""
        raise NotImplementedError

    def sampled(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What training decides: z (N, units) with a gradient, and the log-odds.

        The log-odds are (N, units) too; None where there are none.
        """
        pair = self.scores(x)
        return gumbel_decision(pair), pair[..., 1] - pair[..., 0]

    def log_odds(self, x: Tensor) -> Tensor:
        """Log-odds of running in evaluation, (N, units).

        Subclasses may compute it in a folded, faster way.
        """
        pair = self.scores(x)
        return pair[..., 1] - pair[..., 0]

    def keep(self, units: Sequence[int]) -> None:
        """Decide for these units alone."""
        self.units = len(units)
        rows = torch.tensor(units, device=self.threshold.device)
        self.threshold = self.threshold.index_select(0, rows)

    def drop_inputs(self, kept: Tensor, gone: Tensor, constants: Tensor) -> None:
        """Read the channels `kept` of the input alone.

        Those `gone` have always had the values `constants`.
        """

    def forward(self, x: Tensor) -> Tensor:
        z, odds = self._decide(x)
        if self.observer is not None:
            self.observer(self, z, odds)
        return z

    def _decide(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.forced is not None:
            return self._obeyed(x), None
        if self.training:
            return self.sampled(x)
        if self.strategy == "always-on":
            return torch.ones(x.shape[0], self.units, device=x.device), None
        if (
            not torch.is_grad_enabled()
        ):  # entering no_grad takes as long as an operation, and gates are made of few of these
            return self._evaluate(x)
        with torch.no_grad():
            return self._evaluate(x)

    def _obeyed(self, x: Tensor) -> Tensor:
        assert self.forced is not None
        forced = (
            self.forced
            if self.rows is None or self.forced.ndim == 1 or len(self.forced) == 1
            else self.forced[self.rows.to(self.forced.device)]
        )
        return forced.to(x.device, torch.float32).expand(x.shape[0], self.units)

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        odds = self.log_odds(x)
        if self.strategy == "stochastic":
            return torch.bernoulli(odds.sigmoid().nan_to_num(1.0)), odds
        closed = odds <= self._limit(self._least_odds, self.threshold)
        return (
            closed.logical_not().float(),
            odds,
        )  # where sums over huge values have overflowed to NaN, run

    def _least_odds(self) -> Tensor:
        """The log-odds above which units run: logit(T) is -inf at T <= 0 and +inf at T >= 1.

        Always, and never.
        """
        return torch.logit(self.threshold.clamp(0, 1))


class Exit(Gate):
    """A classifier in the middle of the network, and whether to leave there.

    Subclasses give `classify(x)` and `score(x, logits)`.

    Its one unit runs where a sample leaves: where its score >= threshold, a score's and not
    P(on)'s; infinite, so that nobody leaves, until trained or calibrated. Called, it returns logits
    (N, K) and decisions (N, 1).

    Attributes: positions: the dimensions of x over which the channels extend. trained: whether it
    has left its neutral start.
    """

    fresh_rate = 0.0
    positions: tuple[int, ...]

    def __init__(self, site: str) -> None:
        super().__init__(site, 1)
        self.threshold.fill_(torch.inf)

    @property
    def trained(self) -> bool:
        raise NotImplementedError

    def classify(self, x: Tensor) -> Tensor:
        """Logits (N, K) of the values x at which the exit stands."""
        raise NotImplementedError

    def head(self) -> nn.Module:
        """The classifier alone, sharing its tensors and their names.

        For a network in which everybody leaves here.
        """
        raise NotImplementedError

    def score(self, x: Tensor, logits: Tensor) -> Tensor:
        """How sure the exit is of values x and the logits (N, K) that it made of them: (N, 1)."""
        raise NotImplementedError

    def finite_score(self, x: Tensor, logits: Tensor) -> Tensor:
        """The score, below infinity: where it overflows, an exit that nobody can take stays so."""
        score = self.score(x, logits)
        return score.clamp(max=torch.finfo(score.dtype).max)

    def sample(self, x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Decisions and scores in training.

        Nobody leaves, unless a method trains with those who do.
        """
        score = self.score(x, logits)
        return torch.zeros_like(score), score

    def draw(self, score: Tensor) -> Tensor:
        """Decisions of the `stochastic` strategy.

        Scores that are no probabilities are decided by the threshold.
        """
        return (score >= self.threshold).to(score.dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = self.classify(x)
        if self.training and self.forced is None:
            z, score = self.sample(x, logits)
        else:
            score = self.finite_score(x, logits)
            z = self._settled(x, score)
        if self.observer is not None:
            self.observer(self, z, score)
        return logits, z

    def _settled(self, x: Tensor, score: Tensor) -> Tensor:
        if self.forced is not None:
            return self._obeyed(x)
        if self.strategy == "always-on":
            return torch.zeros_like(score)
        return (
            self.draw(score)
            if self.strategy == "stochastic"
            else (score >= self.threshold).to(score.dtype)
        )
