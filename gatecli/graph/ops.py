"""The operations that gatecli puts into a graph, and questions about operations.

The questions are those that rewriting asks about the operations it finds there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gatecli.graph.runs import Runs, sources_of

__all__ = [
    "FRESH_LAYERS",
    "add_at",
    "decided_by",
    "describe",
    "is_add",
    "is_cat",
    "is_decision",
    "is_linear",
    "is_mask",
    "is_pick",
    "is_relu",
    "is_shake",
    "mask",
    "module_of",
    "never_negative",
    "pick",
    "relu_after",
    "shake",
    "spread",
    "sum_branches",
    "summands",
    "take_channels",
    "widen",
    "with_part",
]


def describe(
    function: Callable[..., Any],
    *,
    fresh: bool = False,
    makes_streams: bool = False,
    costs: Callable[[fx.Node], bool] | None = None,
) -> None:
    """Say of a function that gatecli puts into graphs what others must know of it.

    No decorator: a function's source is copied into files that are exported.

    Args:
        function: The function.
        fresh: Its result has storage of its own.
        makes_streams: Its result holds several streams of maps, side by side.
        costs: Whether torch's counter shall count a node of it; none: it multiplies nothing.
    """
    traits: Any = function
    traits.fresh, traits.makes_streams, traits.costs = fresh, makes_streams, costs


def mask(value: Tensor, z: Tensor, axis: int = 1) -> Tensor:
    """Multiply each unit's share of `value` by its decision.

    Args: z (N, 1) with value (N, ...): the whole sample is one unit; z (N, n) with value (N, C,
    ...): each n-th part of the channels is one; axis -1: value (N, ..., C).
    Returns the shape of `value`.
    """
    z = z.to(value.dtype)
    if z.shape[1] > 1:
        z = z.repeat_interleave(value.shape[axis] // z.shape[1], 1)
    ones = [1] * (value.ndim - 2)
    return value * (z.reshape(*z.shape, *ones) if axis == 1 else z.reshape(len(z), *ones, -1))


def spread(z: Tensor, places: Sequence[int], width: int) -> Tensor:
    """Decisions z (N, k) of the channels `places` among `width` ones: (N, width).

    Each is of one k-th part of `places`; the others always run.
    """
    whole = z.new_ones(z.shape[0], width)
    z = z.repeat_interleave(len(places) // z.shape[1], 1)
    return whole.index_copy(1, torch.tensor(places, device=z.device), z)


def widen(value: Tensor, runs: Runs, width: int, axis: int = 1) -> Tensor:
    """`value` (N, k, ...) with its channels at `runs` of `width` ones: (N, width, ...).

    Elsewhere there are zeros. Axis -1: (N, ..., k) -> (N, ..., width).
    """
    if len(runs) == 1:
        ((first, end),) = runs
        return F.pad(value, _at(value, axis, first, width - end))
    if axis != 1:
        return widen(value.movedim(axis, 1), runs, width).movedim(1, axis)
    return take_channels(F.pad(value, _at(value, 1, 0, 1)), sources_of(runs, width))


describe(widen, fresh=True)


def _at(value: Tensor, axis: int, before: int, behind: int) -> list[int]:
    """What F.pad, which counts dimensions from the last, is told to pad one of them."""
    return [0, 0] * (-1 - axis if axis < 0 else value.ndim - 1 - axis) + [before, behind]


def add_at(x: Tensor, value: Tensor, runs: Runs, *, in_place: bool = False) -> Tensor:
    """`x` (N, width, ...) with `value` (N, k, ...) added to its channels `runs`."""
    result, done = x if in_place else x.clone(), 0
    for first, end in runs:
        result[:, first:end] += value[:, done : done + end - first]
        done += end - first
    return result


def take_channels(x: Tensor, channels: tuple[int, ...]) -> Tensor:
    """The channels (k,) of x (N, C, H, W), in x's memory format.

    A view where they follow one another.
    """
    first, end = channels[0], channels[-1] + 1
    if channels == tuple(range(first, end)):
        return x if end - first == x.shape[1] else x[:, first:end]
    index = torch.tensor(channels, device=x.device)
    if (
        x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    ):  # index_select alone would turn it into NCHW
        return x.permute(0, 2, 3, 1).index_select(3, index).permute(0, 3, 1, 2)
    return x.index_select(1, index)


def with_part(x: Tensor, index: Any, value: Any) -> Tensor:
    """`x` with its part at `index` set to `value`, as `x[index] = value` leaves it."""
    result = x.clone()
    result[index] = value
    return result


def pick(logits: Tensor, *exits: tuple[Tensor, Tensor]) -> Tensor:
    """What a network with exits returns.

    For each sample the logits of the first exit that it takes, else `logits`.

    Args: logits (N, K); exits, in order, as pairs of logits (N, K) and decisions z (N, 1), 1 =
    leave. Where z has a gradient, so has the choice.
    """
    for early, z in reversed(exits):
        early = early.to(logits.dtype)
        logits = (
            z * early + (1 - z) * logits if z.requires_grad else torch.where(z > 0, early, logits)
        )
    return logits


def sum_branches(x: Tensor, count: int) -> Tensor:
    """(N, count * C, H, W) -> (N, C, H, W)."""
    return x.reshape(x.shape[0], count, x.shape[1] // count, *x.shape[2:]).sum(1)


def shake(a: Tensor, b: Tensor, *, training: bool) -> Tensor:
    """The mean of two ways (N, C, H, W).

    In training a mean weighted at random for each image, and for the gradients with other random
    weights.

    Gastaldi, "Shake-Shake regularization" (2017): alpha forward and beta backward, both uniform,
    drawn by torch's generator.
    """
    if not training:
        return (a + b) / 2
    alpha, beta = (torch.rand(len(a), 1, 1, 1, device=a.device, dtype=a.dtype) for _ in range(2))
    return beta * a + (1 - beta) * b + ((alpha - beta) * (a - b)).detach()


# Their results have storage of their own.
FRESH_LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.MaxPool2d, nn.AvgPool2d)
ADDS = {operator.add, operator.iadd, torch.add}
RELUS = {F.relu, torch.relu, F.relu_, torch.relu_}
NEVER_NEGATIVE = {*RELUS, F.relu6, torch.sigmoid, F.sigmoid, F.softplus}
NEVER_NEGATIVE_MODULES = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Softplus)
LINEAR_MODULES = (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.Identity, nn.Dropout)
KEEP_SIGN_MODULES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout, nn.Identity)


def module_of(root: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, or None if it calls none."""
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_add(node: fx.Node) -> bool:
    """Whether the node adds two values of the graph (not a constant)."""
    named = (node.op == "call_function" and node.target in ADDS) or (
        node.op == "call_method" and node.target in ("add", "add_")
    )
    return (
        named
        and len(node.args) == 2
        and not node.kwargs
        and all(isinstance(arg, fx.Node) for arg in node.args)
    )


def is_relu(root: nn.Module, node: fx.Node) -> bool:
    """Whether the node is a ReLU: a function, a tensor's method or a layer."""
    if node.op == "call_function":
        return node.target in RELUS
    return (node.op == "call_method" and node.target in ("relu", "relu_")) or isinstance(
        module_of(root, node), nn.ReLU
    )


def relu_after(root: nn.Module, node: fx.Node) -> fx.Node | None:
    """The ReLU that alone reads a node's value; None where there is none."""
    reader = next(iter(node.users), None)
    return reader if reader is not None and len(node.users) == 1 and is_relu(root, reader) else None


def is_cat(node: fx.Node) -> bool:
    """Whether the node concatenates values of the graph along the channels."""
    if (
        node.op != "call_function"
        or node.target not in (torch.cat, torch.concat)
        or not node.args
        or not isinstance(node.args[0], (list, tuple))
    ):
        return False
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    return bool(dim == 1) and all(isinstance(part, fx.Node) for part in node.args[0])


def is_linear(root: nn.Module, node: fx.Node) -> bool:
    """Whether the node is an addition or a layer that is linear in evaluation, up to a constant.

    A BatchNorm of another class than torch's may hold an activation.
    """
    module = module_of(root, node)
    if module is None:
        return node.op == "call_function" and node.target in ADDS
    if type(module) in LINEAR_MODULES:
        return True
    return all(isinstance(part, LINEAR_MODULES) for part in module.modules())


def is_shake(node: fx.Node) -> bool:
    """Whether the node takes the mean of two ways with `shake`."""
    return node.op == "call_function" and node.target is shake


def summands(node: fx.Node) -> list[fx.Node]:
    """The values that an addition of two, or `shake`, sums up."""
    if is_shake(node):
        return [source for source in node.all_input_nodes if source.op != "get_attr"]
    return [arg for arg in node.args if isinstance(arg, fx.Node)]


def is_pick(node: fx.Node) -> bool:
    """Whether the node picks among exits' logits with `pick`."""
    return node.op == "call_function" and node.target is pick


def is_mask(node: fx.Node) -> bool:
    """Whether the node multiplies a value by decisions with `mask`."""
    return node.op == "call_function" and node.target is mask


def is_decision(root: nn.Module, node: fx.Node) -> bool:
    """Whether the node's value is what a gate has decided: (N, units)."""
    return node.target is spread or (
        node.op == "call_module" and str(node.target).startswith("gates.")
    )


def decided_by(mask_: fx.Node) -> fx.Node:
    """The gate that a mask obeys."""
    decision: Any = mask_.args[1]
    while decision.op == "call_function":  # what lays decisions out anew, as `spread`
        decision = decision.all_input_nodes[0]
    return decision  # type: ignore[no-any-return]


def never_negative(root: nn.Module, node: fx.Node) -> bool:
    """Whether the node's values are known to be >= 0, so that a ReLU after it changes nothing."""
    module = module_of(root, node)
    if isinstance(module, KEEP_SIGN_MODULES):
        return never_negative(root, node.all_input_nodes[0])
    if isinstance(module, NEVER_NEGATIVE_MODULES) or getattr(module, "never_negative", False):
        return True
    is_known = node.op == "call_function" and node.target in NEVER_NEGATIVE
    return is_known or is_relu(root, node)
