"""The tensors of a resumable state: the network's, and what the optimizer keeps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from gatecli.errors import CheckpointError
from gatecli.network import Network
from gatecli.training.optimizers import kept_by

__all__ = ["is_finite", "load_state", "state_tensors"]

MODEL = "model."


def state_tensors(network: Network, optimizer: Optimizer) -> dict[str, Tensor]:
    """All that a training of `network` needs to go on, by name."""
    tensors = {MODEL + name: tensor for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        kept = optimizer.state.get(parameter, {})
        for prefix, own in kept_by(optimizer).items():
            if kept.get(own) is not None:
                tensors[prefix + name] = kept[own]
    return tensors


def load_state(network: Network, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put what `state_tensors` gave back into the network and the optimizer.

    Raises:
        RuntimeError: The tensors are another network's.
        CheckpointError: They are another optimizer's.
        KeyError: Something of what the optimizer keeps of a parameter is missing.
    """
    _check_optimizer(network, optimizer, tensors)
    network.load_state_dict(_without_prefix(tensors, MODEL))
    prefixes = kept_by(optimizer)
    for name, parameter in network.named_parameters():
        if any(prefix + name in tensors for prefix in prefixes):
            for prefix, own in prefixes.items():
                optimizer.state[parameter][own] = _like(tensors[prefix + name], parameter)


def _like(kept: Tensor, parameter: Tensor) -> Tensor:
    """A tensor that an optimizer keeps of a parameter, where and how it keeps it.

    A number of steps, (), stays where it is; all else lies in memory as the parameter does.
    """
    if kept.ndim == 0 and parameter.ndim != 0:
        return kept
    return torch.empty_like(parameter, dtype=kept.dtype).copy_(kept.view_as(parameter))


def _check_optimizer(network: Network, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Check that all but the network's tensors are what this optimizer keeps of what it trains."""
    trained = {id(each) for group in optimizer.param_groups for each in group["params"]}
    names = [name for name, each in network.named_parameters() if id(each) in trained]
    prefixes = kept_by(optimizer)
    kept = {prefix + name for prefix in prefixes for name in names}
    others = [name for name in tensors if not name.startswith(MODEL) and name not in kept]
    if others:
        words = ", ".join(prefix.strip(".") for prefix in prefixes)
        raise CheckpointError(
            f"expected the state to hold what {type(optimizer).__name__} keeps of what is trained"
            f" ({words}), but got `{others[0]}` of another optimizer or training: start a new run"
            " without --resume"
        )


def is_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether all numbers of a state are finite, but for thresholds: an exit's may be infinite."""
    checked = [tensor for name, tensor in tensors.items() if not name.endswith(".threshold")]
    return all(bool(tensor.isfinite().all()) for tensor in checked)


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    own = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors[name] for name in own}
