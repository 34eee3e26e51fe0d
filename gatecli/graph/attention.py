"""See into attention that tracing keeps whole, so that its heads can be told apart.

torch's nn.MultiheadAttention, where it looks at one value alone, becomes its projection, the
product of each head, and its output projection. A library's own attention module is traced by
itself once the size of what it is given is known: most are kept whole only because they read
`training`, or a size. It looks at one value, and may be told what does not depend on what images
show, as the mask of shifted windows. Either becomes nodes of the flat graph; tensors keep their
names.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from gatecli.graph import edit
from gatecli.graph.alone import Alone, dropped_in_training, holds_all, traced_alone
from gatecli.graph.flow import data_nodes
from gatecli.graph.normalize import TRAINING, dropout_follows_mode, without_writes
from gatecli.graph.ops import module_of
from gatecli.graph.patterns import calls
from gatecli.graph.shapes import Values, evaluate
from gatecli.graph.trace import remove_dead
from gatecli.traced.traced import Shape

__all__ = ["is_product", "may_attend", "unfold_attention"]

TOKENS = 3  # dimensions of (N, L, C)
PRODUCTS = {torch.matmul, operator.matmul, torch.bmm, F.scaled_dot_product_attention}


def is_product(node: fx.Node) -> bool:
    """Whether a node multiplies values with values, as attention does."""
    if node.op == "call_method":
        return node.target in ("matmul", "bmm")
    return node.op == "call_function" and node.target in PRODUCTS


def unfold_attention(root: nn.Module, graph: fx.Graph, image: Shape) -> None:
    """Let nodes take the place of modules that are attention, where that can be done.

    Args:
        root: The module in which the graph's targets are found.
        graph: A trace, whose layers are torch's.
        image: (channels, height, width).
    """
    whole = []
    for node in graph.nodes:
        if may_attend(module_of(root, node)) and calls(graph, node) == 1:
            whole.append(node)
    if not whole:
        return
    values = evaluate(root, graph, image)
    of_images = data_nodes(graph)
    for node in whole:
        if isinstance(module_of(root, node), nn.MultiheadAttention):
            _unfold_torchs(root, node, values)
        elif of_images.isdisjoint(node.all_input_nodes[1:]):
            _unfold_traced(root, node, values)
    remove_dead(graph)


def may_attend(module: nn.Module | None) -> bool:
    """Whether a module is torch's attention, or another one, kept whole, with linear layers."""
    if module is None or type(module) is nn.MultiheadAttention:
        return module is not None
    if type(module).__module__.startswith("torch."):
        return False
    return any(isinstance(part, nn.Linear) for part in module.children())


def _shape(values: Values, node: fx.Node) -> Shape | None:
    tensors = values.tensor(node)
    return None if tensors is None else tuple(tensors[0].shape)


# --- torch's own ---


def _unfold_torchs(root: nn.Module, node: fx.Node, values: Values) -> None:
    """Unfold nn.MultiheadAttention (N, L, C) -> ((N, L, C), None) of one value."""
    attention: Any = module_of(root, node)
    if not _looks_at_one(node, attention, values):
        return
    path, heads = str(node.target), attention.num_heads
    x: Any = node.args[0]
    graph = node.graph
    with graph.inserting_before(node):
        given = [x, graph.get_attr(f"{path}.in_proj_weight")]
        if attention.in_proj_bias is not None:
            given.append(graph.get_attr(f"{path}.in_proj_bias"))
        parts = (3, heads, attention.head_dim)
        qkv = graph.call_function(F.linear, tuple(given))
        qkv = graph.call_method("unflatten", (qkv, -1, parts))
        qkv = graph.call_method("permute", (qkv, 2, 0, 3, 1, 4))
        q, k, v = (graph.call_function(operator.getitem, (qkv, part)) for part in range(3))
        drops = dropped_in_training(graph, attention.dropout)
        value = graph.call_function(F.scaled_dot_product_attention, (q, k, v), drops)
        value = graph.call_method("flatten", (graph.call_method("transpose", (value, 1, 2)), 2))
        result = graph.call_module(f"{path}.out_proj", (value,))
    for user in list(node.users):
        user.replace_all_uses_with(result)
    shell = nn.Module()
    for held in given[1:]:
        name = str(held.target).removeprefix(f"{path}.")
        edit.place_tensor(shell, name, attention)
    shell.add_module("out_proj", attention.out_proj)
    _put(root, path, shell)


def _put(root: nn.Module, path: str, shell: nn.Module) -> None:
    """Let a plain module hold what an unfolded one held; the source's own stays as it is."""
    holder, _, name = path.rpartition(".")
    root.get_submodule(holder)._modules[name] = shell


def _looks_at_one(node: fx.Node, attention: Any, values: Values) -> bool:
    """Whether attention looks at one value (N, L, C), unmasked, and only its result is read."""
    x = node.args[0] if node.args else None
    if list(node.args) != [x, x, x] or not isinstance(x, fx.Node) or not _is_usual(attention):
        return False
    shape = _shape(values, x)
    told = {name for name, value in node.kwargs.items() if value is not None}
    first = all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)
    return first and shape is not None and len(shape) == TOKENS and told <= {"need_weights"}


def _is_usual(attention: Any) -> bool:
    """Whether one tensor projects queries, keys and values, and nothing is added to these."""
    adds = attention.bias_k is not None or attention.add_zero_attn
    return bool(attention.in_proj_weight is not None and attention.batch_first and not adds)


# --- a library's own ---


def _unfold_traced(root: nn.Module, node: fx.Node, values: Values) -> None:
    """Trace a module by itself, and let its nodes take its place where they are attention."""
    size = _size_of_input(node, values)
    if size is None:
        return
    alone = Alone(module_of(root, node), node, values)
    inner = traced_alone(alone, size)
    if inner is None or not any(map(is_product, inner.nodes)) or not holds_all(inner):
        return
    returned: Any = next(each for each in inner.nodes if each.op == "output").args[0]
    if not isinstance(returned, fx.Node) and not _reads_by_number(node, returned):
        return
    without_writes(alone, inner)
    dropout_follows_mode(inner)
    copies = _copied_before(node, inner, alone)
    shell = nn.Module()
    edit.adopt(shell, alone, inner)
    _put(root, str(node.target), shell.get_submodule("module"))
    if isinstance(returned, fx.Node):
        node.replace_all_uses_with(copies[returned])
        return
    for user in list(node.users):
        user.replace_all_uses_with(copies[returned[user.args[1]]])


def _size_of_input(node: fx.Node, values: Values) -> Shape | None:
    """The size of the first value that a module is given, for one image.

    None where others are no tensors of one size, or where the value has parts of images in its
    batch in numbers that vary.
    """
    first = node.args[0] if node.args else None
    told = [*node.args[1:], *node.kwargs.values()]
    if not isinstance(first, fx.Node) or first in told:
        return None
    if not all(_is_told(each, values) for each in told if each):
        return None
    one, other = values.tensor(first) or (None, None)
    if one is None or other is None or one.ndim < TOKENS or one.shape[1:] != other.shape[1:]:
        return None
    return tuple(one.shape[1:])


def _is_told(given: Any, values: Values) -> bool:
    """Whether what a module is given is a tensor of one size, however many images there are."""
    tensors = values.tensor(given) if isinstance(given, fx.Node) else None
    return tensors is not None and tensors[0].shape == tensors[1].shape


def _reads_by_number(node: fx.Node, returned: Any) -> bool:
    """Whether all that reads a module that returns several values takes one that is computed."""
    if not isinstance(returned, (tuple, list)):
        return False
    for user in node.users:
        if user.target is not operator.getitem or not isinstance(user.args[1], int):
            return False
        if not isinstance(returned[user.args[1]], fx.Node):
            return False
    return True


def _copied_before(node: fx.Node, inner: fx.Graph, alone: Alone) -> dict[fx.Node, fx.Node]:
    """Copy a module's graph in front of the node that calls it; which is whose copy."""
    first: Any = node.args[0]
    copies: dict[fx.Node, fx.Node] = {}
    with node.graph.inserting_before(node):
        for each in inner.nodes:
            if each.op == "placeholder":
                copies[each] = first
            elif each.op == "get_attr" and each.target in alone.told:
                copies[each] = alone.told[str(each.target)]
            elif each.op != "output":
                copy = node.graph.node_copy(each, lambda source: copies[source])
                if each.op in ("call_module", "get_attr") and each.target != TRAINING:
                    copy.target = f"{node.target}.{str(each.target).removeprefix('module.')}"
                copies[each] = copy
    return copies
