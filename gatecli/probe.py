"""The comparison behind every `max_logit_change`: the same random images through two networks."""
from __future__ import annotations

import torch
from torch import Tensor

from gatecli.network import Network


def random_images(network: Network, count: int = 2) -> Tensor:
    """The same standard-normal images every time: (count, C, H, W) on the network's device."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, network.input.channels, *network.input.size, generator=generator).to(network.device)


def relative_change(before: Tensor, after: Tensor) -> float:
    """Largest difference of two logit tensors, relative to the largest logit of `before`."""
    scale = before.abs().max().clamp(min=torch.finfo(before.dtype).tiny)
    return ((before - after).abs().max() / scale).item()
