"""The settings of channel gating."""

from __future__ import annotations

from dataclasses import dataclass

from gatecli.methods.settings import Settings, setting

__all__ = ["CGNetSettings"]

COARSE, FINE, FC, L1 = "coarse", "fine", "fc", "l1"
GATES = (COARSE, FINE, FC, L1)


@dataclass(frozen=True)
class CGNetSettings(Settings):
    """Settings of channel gating; the paper's are named where ours differ."""

    gate: str = setting(
        COARSE,
        "gate function: coarse, fc and l1 save time, fine (the paper's own) on paper only",
        choices=GATES,
        structural=True,
    )
    eta: float = setting(
        0.25,
        "share of the input channels in the base path, where there is one (1/8 in the paper, 1/4 in"
        " its code)",
        low=0.001,
        high=0.999,
        structural=True,
    )
    target: float = setting(
        1.0,
        "threshold that Delta is drawn to, T in the paper (0, 1, 2 there): the higher, the less is"
        " computed",
        low=-100,
        high=100,
    )
    loss_weight: float = setting(
        1e-4,
        "weight of the sum of (T - Delta)^2 beside the cross-entropy, lambda in the paper",
        low=0,
        high=1e30,
    )
    eps: float = setting(
        2.0,
        "steepness of the smoothed gate that gives the gradient (2, 3, 4 in the paper)",
        low=0.001,
        high=1000,
        structural=True,
    )
    start: float = setting(
        0.0,
        "what Delta starts from at the first training step",
        low=-100,
        high=100,
        structural=True,
    )
    grouping: bool = setting(
        default=False,
        help="yes: each group of output channels has its own group of input channels for its base"
        " path (not with gate=l1)",
        structural=True,
    )
    shuffle: bool = setting(
        default=False,
        help="yes: the base path takes every (1/eta)-th input channel, rather than neighbours",
        structural=True,
    )

    base_path: bool = setting(
        default=False,
        help="yes: gate=fc and gate=l1 have a base path too, as in no paper: a closed channel of fc"
        " is the base path's sums, not zero, and l1 always reads the base path's channels and"
        " compares each other one with what is usual for it, not with all",
        structural=True,
        before=lambda stored: stored.get("gate") in (FC, L1),
    )
    sparse_bp: bool = setting(
        default=False,
        help="yes: no gradient through the decisions of what is closed (an option of the paper's"
        " code)",
        structural=True,
    )

    @property
    def based(self) -> bool:
        """Whether there is a base path: some input channels that are always looked at."""
        return self.base_path or self.gate in (COARSE, FINE)

    @property
    def masks(self) -> bool:
        """Whether a closed output channel is zero, rather than what a base path says."""
        return self.gate == FC and not self.base_path

    @property
    def grouped(self) -> bool:
        """Whether each group of output channels has a base path of its own."""
        return self.grouping and self.based and self.gate != L1
