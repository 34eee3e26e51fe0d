"""The optimizers, and what a resumable state keeps of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from gatecli.errors import SettingError

if TYPE_CHECKING:
    from gatecli.training.options import TrainOptions

__all__ = ["ADAMW", "OPTIMIZERS", "SGD", "kept_by", "make_optimizer"]

SGD, ADAMW = "sgd", "adamw"
OPTIMIZERS = (SGD, ADAMW)
SQUARES = 0.999  # AdamW's beta2, torch's and the paper's
# What an optimizer keeps of each parameter: what a state file calls it, and the optimizer itself.
KEPT: Mapping[type[Optimizer], Mapping[str, str]] = {
    torch.optim.SGD: {"momentum.": "momentum_buffer"},
    torch.optim.AdamW: {"exp_avg.": "exp_avg", "exp_avg_sq.": "exp_avg_sq", "step.": "step"},
}


def make_optimizer(groups: Iterable[Mapping[str, Any]], options: TrainOptions) -> Optimizer:
    """The optimizer that the options name.

    Args:
        groups: Its groups of parameters, each with its `base_lr`. `momentum`, of a group or of the
            options, is SGD's, or AdamW's beta1: the share that the mean of gradients keeps in a
            step.
        options: How to train.

    Raises:
        SettingError: AdamW cannot take a momentum.

    Reference: Loshchilov and Hutter 2019, "Decoupled weight decay regularization", for AdamW.
    """
    if options.optimizer == ADAMW:
        return torch.optim.AdamW(
            [_with_betas(group, options.momentum) for group in groups],
            lr=options.lr,
            weight_decay=options.weight_decay,
        )
    return torch.optim.SGD(
        [dict(group) for group in groups],
        lr=options.lr,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
    )


def _with_betas(group: Mapping[str, Any], momentum: float) -> dict[str, Any]:
    """A group with AdamW's word for its momentum."""
    own = dict(group)
    beta = own.pop("momentum", momentum)
    if beta >= 1:
        raise SettingError(
            "expected --momentum, and gate_momentum, to be below 1 with --optimizer adamw, of which"
            f" it is beta1, but got {beta:g}"
        )
    return {**own, "betas": (beta, SQUARES)}


def kept_by(optimizer: Optimizer) -> Mapping[str, str]:
    """What a state file and the optimizer call what it keeps of each parameter."""
    return KEPT[type(optimizer)]
