"""The tensors of a resumable state: the network's, and the optimizer's momentum."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.optim import Optimizer

from gatecli.errors import CheckpointError
from gatecli.network import Network

__all__ = ["is_finite", "load_state", "state_tensors"]

MODEL = "model."
MOMENTUM = "momentum."


def state_tensors(network: Network, optimizer: Optimizer) -> dict[str, Tensor]:
    """All that a training of `network` needs to go on, by name."""
    tensors = {MODEL + name: tensor for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[MOMENTUM + name] = momentum
    return tensors


def load_state(network: Network, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put what `state_tensors` gave back into the network and the optimizer.

    Raises:
        RuntimeError: The tensors are another network's.
        CheckpointError: They are another optimizer's.
    """
    _check_optimizer(network, optimizer, tensors)
    network.load_state_dict(_without_prefix(tensors, MODEL))
    momenta = _without_prefix(tensors, MOMENTUM)
    for name, parameter in network.named_parameters():
        if name in momenta:
            momentum = momenta[name].view_as(parameter).to(parameter.device)
            optimizer.state[parameter]["momentum_buffer"] = momentum


def _check_optimizer(network: Network, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Check that all but the network's tensors are what this optimizer keeps of what it trains."""
    trained = {id(each) for group in optimizer.param_groups for each in group["params"]}
    kept = {MOMENTUM + name for name, each in network.named_parameters() if id(each) in trained}
    others = [name for name in tensors if not name.startswith(MODEL) and name not in kept]
    if others:
        raise CheckpointError(
            f"expected the state to hold {type(optimizer).__name__}'s momentum of what is trained,"
            f" but got `{others[0]}` of another optimizer or training: start a new run without"
            " --resume"
        )


def is_finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether all numbers of a state are finite, but for thresholds: an exit's may be infinite."""
    checked = [tensor for name, tensor in tensors.items() if not name.endswith(".threshold")]
    return all(bool(tensor.isfinite().all()) for tensor in checked)


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    own = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors[name] for name in own}
