"""Normalize a fresh trace: values stay what they were, and dropout follows the network's mode.

Each node's value stays what it was when computed.

A closed gate, or a removed branch, lets a block's output be the very tensor that came in. An
operation that then wrote into it would change what others read. So writing in place is allowed only
into the new result of a layer that nothing else reads.
"""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from gatecli.graph.ops import FRESH_LAYERS, module_of, shake, with_part

__all__ = [
    "ASSIGNING",
    "DROPOUTS",
    "TRAINING",
    "dropout_follows_mode",
    "same_but_for_dropout",
    "without_writes",
    "writes",
]

DROPOUTS = {
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
}
FOLLOWERS: set[Any] = {
    *DROPOUTS,
    shake,
}  # functions whose argument `training` says which mode they are called in
TRAINING = "training"
ASSIGNING = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
}
ELSEWHERE: dict[Any, Any] = {**ASSIGNING, torch.relu_: torch.relu, F.relu_: F.relu}


def without_writes(root: nn.Module, graph: fx.Graph) -> None:
    """Let later readers of what is written in place read the writer's result.

    The writer writes elsewhere unless nobody can notice. Modules of `root` may lose their
    `inplace`.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if not writes(root, node):
            continue
        target = node.all_input_nodes[0]
        _read_instead(target, node, order)
        _write_through(target, node, order)
        if len(target.users) > 1 or not isinstance(module_of(root, target), FRESH_LAYERS):
            _write_elsewhere(root, node)


def _read_instead(value: fx.Node, written: fx.Node, order: dict[fx.Node, int]) -> None:
    """Let who reads a value after it was written into read what was written."""
    for reader in _later(value, written, order):
        reader.replace_input_with(value, written)


def _later(value: fx.Node, written: fx.Node, order: dict[fx.Node, int]) -> list[fx.Node]:
    return [user for user in value.users if order[user] > order[written]]


def _write_through(target: fx.Node, written: fx.Node, order: dict[fx.Node, int]) -> None:
    """Let who reads a whole after a part of it was written into, as `x[:, :3]`, read that too."""
    whole = target.args[0] if _is_part(target) else None
    if not isinstance(whole, fx.Node) or not (_later(whole, written, order) or _is_part(whole)):
        return
    with written.graph.inserting_after(written):
        anew = written.graph.call_function(with_part, (whole, target.args[1], written))
    order[anew] = order[written]
    _read_instead(whole, anew, order)
    _write_through(whole, anew, order)


def _is_part(node: fx.Node) -> bool:
    """Whether a node is a view of a part of a tensor, taken by slices."""
    if node.target is not operator.getitem:
        return False
    index = node.args[1]
    each = index if isinstance(index, tuple) else (index,)
    is_view = all(part is None or isinstance(part, (slice, int)) or part is ... for part in each)
    return is_view and any(isinstance(part, slice) for part in each)


def writes(root: nn.Module, node: fx.Node) -> bool:
    """Whether the node writes into its first input.

    By its name (`+=`, `relu_`, `x.add_()`), its module's `inplace`, or its argument of that name.
    """
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op == "call_module":
        return getattr(module_of(root, node), "inplace", False) is True
    return node.op == "call_function" and (
        node.target in ELSEWHERE or _arguments(node).get("inplace") is True
    )


def _write_elsewhere(root: nn.Module, node: fx.Node) -> None:
    module: Any = module_of(root, node)
    if module is not None:
        module.inplace = False
    elif node.op == "call_method":
        name = str(node.target).removesuffix("_")
        if hasattr(torch.Tensor, name):
            node.target = name
        else:  # as `zero_`: only in place, so into a copy
            with node.graph.inserting_before(node):
                copy = node.graph.call_method("clone", (node.args[0],))
            node.args = (copy, *node.args[1:])
    elif node.target in ELSEWHERE:
        node.target = ELSEWHERE[node.target]
    else:
        _set(node, inplace=False)


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a called function by name; none where it has no signature to look at."""
    function: Any = node.target
    try:
        bound = inspect.signature(function).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return {}
    bound.apply_defaults()
    return bound.arguments


def _set(node: fx.Node, **changed: Any) -> None:
    first, *rest = {**_arguments(node), **changed}.items()
    node.args, node.kwargs = (first[1],), dict(rest)


def dropout_follows_mode(graph: fx.Graph) -> None:
    """Let functional dropout follow the network's mode.

    A trace of evaluation has switched it off; it reads the network's `training` when it is called.
    """
    for node in graph.nodes:
        if _follows_mode(node) and _arguments(node)[TRAINING] is False:
            with graph.inserting_before(node):
                _set(node, training=graph.create_node("get_attr", TRAINING))


def same_but_for_dropout(one: fx.Graph, other: fx.Graph) -> bool:
    """Whether two traces differ in nothing but functional dropout's switch.

    One is of evaluation, the other of training.
    """
    return [_plain(node) for node in one.nodes] == [_plain(node) for node in other.nodes]


def _plain(node: fx.Node) -> tuple[str, ...]:
    given = (
        {name: value for name, value in _arguments(node).items() if name != TRAINING}
        if _follows_mode(node)
        else (node.args, node.kwargs)
    )
    return node.op, str(node.target), str(given)


def _follows_mode(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    function: Any = (
        node.target
    )  # in a trace within a trace a wrapper around what torch.fx.wrap has named
    return inspect.unwrap(function) in FOLLOWERS
