"""The gate of channel gating, with the BatchNorm of the base path."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatecli.gates.cache import Remembered
from gatecli.gates.gate import Gate
from gatecli.graph.prune_channels import cut_norm, keep_entries, on_one_device
from gatecli.graph.runs import others
from gatecli.methods.cgnet.settings import FC, FINE, L1, CGNetSettings

__all__ = ["ChannelGate", "smoothed"]

OPEN = 1e30  # what a neutral gate's margin is: finite, and above whatever an image can bring about


class ChannelGate(Gate):
    """Decides for a convolution's channels.

    It does from the base path's sums (fine, coarse) or from the convolution's input (l1, fc).

    Args: conv, norm: the convolution gated and the BatchNorm behind it; order, groups: its base
    path, see gatecli.kinds.conv.ops.
    Attributes: of_inputs: units are input channels. always: the share of the convolution that runs
    whatever is decided, with every channel gated. `base` is BN1, where closed channels have one.
    pooled: what is compared is normalised by the mean and the deviation of all channels together,
    so that the largest of them open; else each channel by its own.
    """

    undecayed = ("delta",)
    draws = False  # the decision is hard in training too
    neutral: Tensor

    def __init__(
        self,
        site: str,
        conv: nn.Conv2d,
        norm: nn.BatchNorm2d,
        order: tuple[int, ...],
        groups: int,
        settings: CGNetSettings,
    ) -> None:
        self.of_inputs = settings.gate == L1
        self.pooled = self.of_inputs and not settings.based
        rest = others(conv.in_channels, order[: len(order) // groups])
        super().__init__(site, len(rest) if self.of_inputs else conv.out_channels)
        self.function, self.slope, self.sparse = settings.gate, settings.eps, settings.sparse_bp
        self.order, self.groups = order, groups
        self.per_activation = settings.gate == FINE
        self.reads_input = settings.gate in (L1, FC)
        self.always = 1 - len(rest) / conv.in_channels
        norm_of = nn.BatchNorm2d if self.per_activation else nn.BatchNorm1d
        self.norm = norm_of(1 if self.pooled else self.units, affine=False)
        self.delta = nn.Parameter(torch.full((self.units,), settings.start))
        self.register_buffer("neutral", torch.ones((), dtype=torch.bool))
        if settings.gate == FC:
            self.weight = nn.Parameter(conv.weight.detach().abs().mean((2, 3)))
        self.base = None
        if settings.based and not self.of_inputs:
            self.base = _like(norm, self.always)
        self._folded, self._flag, self._reached = Remembered(), Remembered(), Remembered()

    def keep(self, units: Sequence[int]) -> None:
        """Decide for these units alone."""
        index = torch.tensor(units)
        weight = ("weight",) if self.function == FC else ()
        keep_entries(self, ("delta", "threshold", *weight), index)
        self.units = len(units)
        if not self.pooled:
            keep_entries(self.norm, ("running_mean", "running_var"), index)
            self.norm.num_features = len(units)
        if self.base is not None:
            self.base = cut_norm(self.base, units)

    def drop_inputs(self, kept: Tensor, gone: Tensor, constants: Tensor) -> None:
        """See Decider.drop_inputs; what channels that are gone have said goes into BN_na's mean."""
        if self.function != FC:
            return
        mean = self.norm.running_mean
        assert mean is not None
        lost = self.weight.detach().index_select(1, gone.to(self.weight.device))
        lost, constants, mean = on_one_device([lost, constants.to(lost.dtype), mean])
        self.norm.running_mean = mean - lost @ constants.abs()
        keep_entries(self, ("weight",), kept, dim=1)

    @property
    def settled(self) -> bool:
        """Whether evaluation decides without looking at anything."""
        return self.forced is not None or self.strategy == "always-on" or self._is_open()

    @property
    def unasked(self) -> bool:
        """Whether all units run, and nobody wants to be told."""
        if self.training or self.observer is not None or self.forced is not None:
            return False
        return self.strategy == "always-on" or (
            self._is_open()
            and bool(self._reached(lambda: bool((self.threshold < 1).all()), self.threshold))
        )

    def _is_open(self) -> bool:
        return not self.neutral.is_meta and bool(
            self._flag(lambda: bool(self.neutral), self.neutral)
        )

    def saliency(self, x: Tensor) -> Tensor:
        """What is compared with Delta once it is normalised.

        The base path's sums or x, (N, C, H, W) -> (N, units), for `fine` (N, units, H, W).
        """
        if self.function == FINE:
            return x
        if self.function == "coarse":
            return x.mean((2, 3))
        size = x.abs().mean((2, 3))
        if self.function == FC:
            return F.linear(size, self.weight)
        return size.index_select(1, torch.tensor(others(x.shape[1], self.order), device=x.device))

    def log_odds(self, x: Tensor) -> Tensor:
        """`eps (BN_na(s) - Delta)`: (N, units), for `fine` (N, units, H, W).

        Above 0 where d = 1.
        """
        if self.training:
            odds: Tensor = self.slope * (self._normed(self.saliency(x)) - self._wide(self.delta))
            return odds
        exported = (
            torch.compiler.is_compiling()
        )  # there, nothing may depend on a tensor's value but by an operation
        if not exported and self._is_open():
            return self._wide(torch.full((x.shape[0], self.units), OPEN, device=x.device))
        mean, var = self.norm.running_mean, self.norm.running_var
        assert mean is not None and var is not None
        scale, shift = self._folded(lambda: self._fold(mean, var), self.delta, mean, var)
        odds = torch.addcmul(shift, self.saliency(x), scale)
        return torch.where(self.neutral, torch.full_like(odds, OPEN), odds) if exported else odds

    def _normed(self, saliency: Tensor) -> Tensor:
        """`BN_na(s)`; pooled: (N, units) with one mean and one deviation for all entries."""
        result: Tensor = self.norm(saliency[:, None])[:, 0] if self.pooled else self.norm(saliency)
        return result

    def _fold(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        scale = torch.rsqrt(var + self.norm.eps)
        return self._wide(self.slope * scale), self._wide(-self.slope * (mean * scale + self.delta))

    def _wide(self, each: Tensor) -> Tensor:
        """(..., units) as (..., units, 1, 1) where decisions are made for each activation."""
        return each[..., None, None] if self.function == FINE else each

    def _compared(self) -> Tensor:
        return self._wide(self.limit())

    def _decide(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.training or self.forced is not None:
            return super()._decide(x)
        self.neutral.zero_()  # the first training step
        odds = self.log_odds(x)
        return smoothed(odds, sparse=self.sparse), odds

    def forward(self, x: Tensor) -> Tensor:
        """What the gate reads -> decisions z (N, units), for `fine` (N, units, H, W).

        Of the latter, observers are told the means over positions.
        """
        z, odds = self._decide(x)
        self.report(_per_channel(z), None if odds is None else _per_channel(odds))
        return z


def smoothed(odds: Tensor, *, sparse: bool = False) -> Tensor:
    """1 where odds > 0, else 0, with the gradient of sigmoid(odds).

    sparse: without a gradient where odds <= 0.
    """
    hard, soft = (odds > 0).to(odds.dtype), torch.sigmoid(odds)
    through = soft - soft.detach()
    return hard + (through * hard if sparse else through)


def _per_channel(value: Tensor) -> Tensor:
    return value.mean((2, 3)) if value.ndim == 4 else value


def _like(norm: nn.BatchNorm2d, share: float) -> nn.BatchNorm2d:
    """BN1, as like BN2 as can be said without data.

    Its affine part, and the statistics of a `share` of the terms of its sums.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    base = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine)
    with torch.no_grad():
        for name, tensor in norm.named_parameters(recurse=False):
            getattr(base, name).copy_(tensor)
        base.running_mean.copy_(share * norm.running_mean)  # type: ignore[union-attr]
        base.running_var.copy_(share * norm.running_var)  # type: ignore[union-attr]
    return base
