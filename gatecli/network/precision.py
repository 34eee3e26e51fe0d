"""Run a network in half precision: half the memory, and half the time where the CPU can."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from gatecli.errors import SettingError
from gatecli.gates.observe import gates_of

__all__ = ["in_precision", "is_half"]

M = TypeVar("M", bound=nn.Module)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def in_precision(network: M, precision: str) -> M:
    """Let a network's weights be of a precision, in place.

    It still takes float32 images and returns float32 logits. Thresholds stay float32: what a gate
    is compared with is as it was calibrated.

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
    thresholds = {site: gate.threshold for site, gate in gates_of(network).items()}
    network.to(DTYPES[precision])
    for site, gate in gates_of(network).items():
        gate.threshold = thresholds[site]
    network.register_forward_pre_hook(_halved)
    network.register_forward_hook(_whole)
    return network


def is_half(network: nn.Module) -> bool:
    """Whether a network's weights are in half precision."""
    return any(parameter.dtype == torch.bfloat16 for parameter in network.parameters())


def _halved(network: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return (given[0].bfloat16(), *given[1:])


def _whole(network: nn.Module, given: tuple[Any, ...], found: Any) -> Any:
    """Logits as float32, with what is returned beside them."""
    if isinstance(found, tuple):
        return (found[0].float(), *found[1:])
    return found.float()
