"""What the tests of reading share: a network, its file, and whether what is read computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gatecli.architectures.build import build
from gatecli.checkpoint import Reading, read
from gatecli.checkpoint.formats import read_file, tensors_in
from gatecli.errors import GatecliError
from gatecli.network import Network

State = dict[str, Tensor]


def read_tensors(path: str | Path, *, trust_pickle: bool = False) -> dict[str, Tensor]:
    """The first state dict in a file."""
    return tensors_in(read_file(Path(path), trust_pickle=trust_pickle), Path(path))


def resnet20(seed: int = 0, **args: Any) -> nn.Module:
    """A small network with BatchNorm statistics that are not those of the beginning."""
    return stirred(build("cifar:resnet20", args), seed)


def stirred(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(noise + 0.5 if "running_var" in name else noise - 0.5)
    return model.eval()


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def opened(path: Path, what: Any, **how: Any) -> tuple[Network, list[str]]:
    """Save an object with torch.save and read it."""
    torch.save(what, path)
    return read(path, Reading(**how))


def error(path: Path, what: Any, **how: Any) -> str:
    """The one line with which the file is refused."""
    torch.save(what, path)
    with pytest.raises(GatecliError) as caught:
        read(path, Reading(**how))
    text = str(caught.value)
    assert "\n" not in text and path.name in text and "recipe" not in text, text
    assert len(text) < 600
    return text


def computes(network: nn.Module, model: nn.Module, side: int = 32, channels: int = 3) -> bool:
    """Whether two networks give the same logits."""
    images = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.eval()(images)
        return torch.allclose(network.eval()(images), expected, rtol=1e-4, atol=1e-5)
