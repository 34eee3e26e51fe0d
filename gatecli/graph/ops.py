"""The operations that gatecli puts into a graph, and the questions that rewriting asks about the operations it finds there."""
from __future__ import annotations

import operator

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F


def mask(value: Tensor, z: Tensor) -> Tensor:
    """Multiply each unit's share of `value` by its decision.

    Args: value (N, C, ...) or (N, ..., C) with z (N, 1): the whole sample is one unit. Returns the shape of `value`.
    """
    return value * z.to(value.dtype).reshape(z.shape[0], *[1] * (value.ndim - 1))


FRESH_LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.MaxPool2d, nn.AvgPool2d)  # their results have storage of their own
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
    named = (node.op == "call_function" and node.target in ADDS) or (node.op == "call_method" and node.target in ("add", "add_"))
    return named and len(node.args) == 2 and not node.kwargs and all(isinstance(arg, fx.Node) for arg in node.args)


def is_relu(root: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target in RELUS
    return (node.op == "call_method" and node.target in ("relu", "relu_")) or isinstance(module_of(root, node), nn.ReLU)


def is_linear(root: nn.Module, node: fx.Node) -> bool:
    """Whether the node is an addition or a layer that is linear in evaluation, up to a constant; a BatchNorm may hold an activation."""
    module = module_of(root, node)
    if module is None:
        return node.op == "call_function" and node.target in ADDS
    return all(isinstance(part, LINEAR_MODULES) for part in module.modules())


def is_mask(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is mask


def never_negative(root: nn.Module, node: fx.Node) -> bool:
    """Whether the node's values are known to be >= 0, so that a ReLU after it changes nothing."""
    module = module_of(root, node)
    if isinstance(module, KEEP_SIGN_MODULES):
        return never_negative(root, node.all_input_nodes[0])
    if isinstance(module, NEVER_NEGATIVE_MODULES) or getattr(module, "never_negative", False) or is_relu(root, node):
        return True
    return node.op == "call_function" and node.target in NEVER_NEGATIVE
