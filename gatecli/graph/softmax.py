"""A network that ends in a softmax: found by what it returns, and given its logits back."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

__all__ = ["are_probabilities", "log_of", "without_softmax"]

FUNCTIONS = (F.softmax, torch.softmax)


def are_probabilities(outputs: Tensor) -> bool:
    """Whether outputs (N, K) are those of a softmax: none below 0, and each row sums to 1."""
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return False
    sums = outputs.sum(1)
    return bool((outputs >= 0).all()) and bool(((sums - 1).abs() < 1e-4).all())


def log_of(value: Tensor) -> Tensor:
    """Logits of probabilities (N, K), of the same shape: their softmax is `value`."""
    return value.clamp(min=1e-30).log()


def without_softmax(root: nn.Module, graph: fx.Graph) -> None:
    """Let a graph that returns a softmax's value return what the softmax reads.

    Where no softmax is seen at the end, as in a module kept whole, it returns the logarithm.

    Args:
        root: where the graph's modules are.
        graph: changed in place.
    """
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    value = output.args[0]
    if not isinstance(value, fx.Node):
        return
    if _is_softmax(root, value):
        read = value.args[0] if value.args else value.kwargs["input"]
    else:
        with graph.inserting_after(value):
            read = graph.call_function(log_of, (value,))
    output.args = (read,)
    if not value.users:
        graph.erase_node(value)


def _is_softmax(root: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(root.get_submodule(str(node.target)), nn.Softmax)
    if node.op == "call_method":
        return node.target == "softmax"
    return node.op == "call_function" and node.target in FUNCTIONS
