"""The comparison behind every `max_logit_change`: the same random images through two networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gatecli.errors import CheckpointError
from gatecli.network.network import Network

__all__ = ["in_whole_float32", "logits", "random_images", "relative_change", "require_finite"]


def random_images(network: Network, count: int = 2) -> Tensor:
    """The same standard-normal images every time: (count, C, H, W) on the network's device."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, network.input.channels, *network.input.size, generator=generator).to(
        network.device
    )


def logits(network: nn.Module, images: Tensor) -> Tensor:
    """What `network` computes without autograd, on a GPU too in float32 throughout.

    The same draws every time, for a network that draws even in evaluation.

    Raises: CheckpointError where that is not finite.
    """
    with torch.no_grad(), torch.random.fork_rng(), in_whole_float32():
        torch.manual_seed(0)
        result: Tensor = network(images)
        require_finite(result)
        return result


@contextmanager
def in_whole_float32() -> Iterator[None]:
    """Let a GPU's convolutions keep all bits of a float32 inside the block.

    cuDNN keeps 10 of the 23 unless told otherwise, and not the same ones for a convolution of
    another size: what is the same network would look like another one.
    """
    cudnn: Any = torch.backends.cudnn
    parts = (cudnn.conv, cudnn.rnn)  # of one opinion, or torch refuses to say what holds for both
    before = [part.fp32_precision for part in parts]
    allowed = _allowed_tf32()
    try:
        cudnn.allow_tf32 = False
        for part in parts:
            part.fp32_precision = "ieee"
        yield
    finally:
        if allowed is not None:
            cudnn.allow_tf32 = allowed
        for part, own in zip(parts, before, strict=True):
            part.fp32_precision = own


def _allowed_tf32() -> bool | None:
    """What torch's older switch says; None where the newer ones contradict it."""
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return None


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
