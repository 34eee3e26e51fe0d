"""Knowledge distillation: train a gated network towards what an ungated one says.

    loss + weight * T^2 KL(softmax(t / T) || softmax(s / T))

with t the teacher's logits, s the network's own, and T the temperature. The teacher is another
network, or this one as it was when the training began, all gates open and no exit taken. It is made
anew when a run is resumed, so no state holds it.

Reference: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network" (2015); Hua et al.
2019 train channel gates so.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gatecli.errors import SettingError
from gatecli.network import Network
from gatecli.training.options import TrainOptions

__all__ = ["Teacher", "check_teacher", "distillation"]


def distillation(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T^2 KL(taught || logits) of the softened class probabilities, mean over samples.

    Args:
        logits: The network's, (N, K).
        taught: The teacher's, (N, K).
        temperature: T.

    Returns:
        A scalar.
    """
    softened = (logits.float() / temperature).log_softmax(1)
    target = (taught.float() / temperature).log_softmax(1)
    divergence = F.kl_div(softened, target, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


class Teacher:
    """A network that no longer changes, all its gates open."""

    def __init__(self, network: Network) -> None:
        self.network = network.eval().requires_grad_(requires_grad=False)
        for gate in network.site_gates.values():
            gate.strategy = "always-on"

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W)."""
        with torch.no_grad():
            logits: Tensor = self.network(x)
        return logits


def check_teacher(network: Network, teacher: Network | None, options: TrainOptions) -> None:
    """Check that a teacher, if there is one, teaches this network's images and classes.

    Raises:
        SettingError: It does not.
    """
    if teacher is None:
        return
    if not options.distill:
        raise SettingError("--teacher is for distillation: say how much it weighs, as --distill 1")
    mine = network.input
    its = teacher.input
    if teacher.num_classes != network.num_classes:
        raise SettingError(
            f"expected the teacher to know the network's {network.num_classes} classes, but it"
            f" knows {teacher.num_classes}"
        )
    if (its.channels, its.size) != (mine.channels, mine.size):
        raise SettingError(
            f"expected the teacher to take images of {_shape(mine.channels, mine.size)}, as the"
            f" network does, but it takes {_shape(its.channels, its.size)}"
        )
    if its.mean is not None and (its.mean, its.std) != (mine.mean, mine.std):
        raise SettingError(
            f"expected the teacher to take images normalised as the network's, by mean {mine.mean}"
            f" and std {mine.std}, but it takes {its.mean} and {its.std}"
        )


def _shape(channels: int, size: tuple[int, int]) -> str:
    return f"{channels} x {size[0]} x {size[1]}"
