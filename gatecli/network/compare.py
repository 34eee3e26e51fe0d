"""The comparison behind every `max_logit_change`: the same random images through two networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gatecli.errors import CheckpointError
from gatecli.network.network import Network

__all__ = ["logits", "random_images", "relative_change", "require_finite"]


def random_images(network: Network, count: int = 2) -> Tensor:
    """The same standard-normal images every time: (count, C, H, W) on the network's device."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, network.input.channels, *network.input.size, generator=generator).to(
        network.device
    )


def logits(network: nn.Module, images: Tensor) -> Tensor:
    """What `network` computes without autograd.

    The same draws every time, for a network that draws even in evaluation.

    Raises: CheckpointError where that is not finite.
    """
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        result: Tensor = network(images)
        require_finite(result)
        return result


def require_finite(logits: Tensor) -> None:
    """Raises CheckpointError where images (N, ...) get logits (N, K) that are not numbers.

    A comparison, or an accuracy, would mean nothing.
    """
    odd = int((~logits.isfinite()).flatten(1).any(1).sum())
    if odd:
        raise CheckpointError(
            f"the logits of {odd} of {len(logits)} images are not finite, though all weights are: "
            "these are too large to be of use (a training that diverged?)"
        )


def relative_change(before: Tensor, after: Tensor) -> float:
    """Largest difference of two logit tensors, relative to the largest logit of `before`."""
    scale = before.abs().max().clamp(min=torch.finfo(before.dtype).tiny)
    return ((before - after).abs().max() / scale).item()
