"""Run a network in half precision: half the memory, and half the time where the CPU can."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gatecli.errors import SettingError
from gatecli.gates.decider import Decider
from gatecli.gates.observe import gates_of

__all__ = ["in_precision", "is_half"]

M = TypeVar("M", bound=nn.Module)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def in_precision(network: M, precision: str) -> M:
    """Let a network's weights be of a precision, in place.

    It still takes float32 images and returns float32 logits. Thresholds stay float32: what a gate
    is compared with is as it was calibrated. So do gates that compute `in_float32`.

    Args:
        network: A Network, or a plain classifier, in evaluation mode.
        precision: fp32 or bf16.

    Raises:
        SettingError: It is neither.
    """
    if precision not in DTYPES:
        raise SettingError(
            f"expected the precision to be one of {', '.join(DTYPES)}, but got `{precision}`"
        )
    if precision == "fp32":
        return network
    exact = [each for gate in gates_of(network).values() for each in _exact(gate)]
    network.to(DTYPES[precision])
    for module, name, tensor in exact:
        if isinstance(held := getattr(module, name), nn.Parameter):
            held.data = tensor
        else:
            setattr(module, name, tensor)
    network.register_forward_pre_hook(_halved)
    network.register_forward_hook(_whole)
    return network


def is_half(network: nn.Module) -> bool:
    """Whether a network's weights are in half precision."""
    return any(parameter.dtype == torch.bfloat16 for parameter in network.parameters())


def _exact(gate: Decider) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """The tensors of a gate that stay float32, each with the module that holds it."""
    if not gate.in_float32:
        yield gate, "threshold", gate.threshold
        return
    for _, module in gate.own_modules():
        held = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        for name, tensor in held:
            yield module, name, tensor.detach()


def _halved(network: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return (given[0].bfloat16(), *given[1:])


def _whole(network: nn.Module, given: tuple[Any, ...], found: Any) -> Any:
    """Logits as float32, with what is returned beside them."""
    if isinstance(found, tuple):
        return (found[0].float(), *found[1:])
    return found.float()
