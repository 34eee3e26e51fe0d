"""The learning rates of each step."""

from __future__ import annotations

from torch.optim import Optimizer

from gatecli.methods.schedules import learning_rate, warmed
from gatecli.training.options import TrainOptions
from gatecli.training.trained import Trained

__all__ = ["set_learning_rates"]


def set_learning_rates(
    optimizer: Optimizer, first: Trained, options: TrainOptions, step: int, steps_per_epoch: int
) -> None:
    """Set each group's learning rate for a step.

    Args:
        optimizer: Its groups have a `base_lr` each.
        first: The first method trained, which may have a schedule of its own.
        options: How to train.
        step: From 0.
        steps_per_epoch: Of the training.
    """
    done = step / (options.epochs * steps_per_epoch)
    warmup = options.warmup * steps_per_epoch
    for group in optimizer.param_groups:
        rate = _scheduled(group["base_lr"], done, first, options)
        group["lr"] = warmed(rate, step, warmup)


def _scheduled(base: float, done: float, first: Trained, options: TrainOptions) -> float:
    """The learning rate for its `base`, the share `done` of the training lying behind.

    Milestones that the user tells come before the method's own.
    """
    if options.milestones is not None:
        shares = [epoch / options.epochs for epoch in options.milestones]
        return learning_rate(options.schedule, base, done, shares)
    return first.objective.learning_rate(options.schedule, base, done, first.settings)
