"""Run a gated network so that what is skipped is not computed.

The network's graph says what a gated network *means*: every branch computed, then multiplied by its gate's decision. That is what
training runs. For evaluation the graph is lowered: each masked branch, with the addition and the ReLU that follow, becomes one
`SkipBlock` that computes the branch only for the samples whose gate is open.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gatecli.gates import Gate
from gatecli.graph.ops import FRESH_LAYERS, is_add, is_mask, is_relu, module_of, never_negative
from gatecli.graph.trace import compile_graph, remove_dead

FRESH_MODULES = (*FRESH_LAYERS, Gate)
LOWERED = "_lowered"  # the module that holds the executors; they have no tensors, so no file ever sees them


class SkipBlock(nn.Module):
    """`relu(shortcut + z * branch(x))`, the branch computed where z = 1 only.

    `write`: the shortcut's storage may be overwritten, as nothing else reads it. `rectify`: a ReLU follows the addition;
    `rectified`: the shortcut is never negative, so a closed gate need not touch it.
    """

    def __init__(self, root: nn.Module, branch: Callable[..., Tensor], rectify: bool, rectified: bool) -> None:
        super().__init__()
        self.__dict__["root"] = root  # not a child: the branch's modules belong to the network itself
        self.branch, self.rectify, self.rectified, self.write = branch, rectify, rectified, False
        self.never_negative = rectify

    def forward(self, x: Tensor, shortcut: Tensor, z: Tensor) -> Tensor:
        """x (N, ...), shortcut (N, ...), z (N, 1) -> the shape of the shortcut."""
        if x.shape[0] == 1:
            return self._full(x, shortcut) if z.item() else self._closed(shortcut)
        open_ = z.reshape(-1).nonzero().reshape(-1)
        if open_.numel() == x.shape[0]:
            return self._full(x, shortcut)
        if open_.numel() == 0:
            return self._closed(shortcut)
        return self._some(x, shortcut, open_)

    def _full(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return self._finish(_add(self.branch(self.root, x), shortcut))

    def _closed(self, shortcut: Tensor) -> Tensor:
        if self.rectified or not self.rectify:
            return shortcut
        return torch.relu_(shortcut) if self._may_write() else torch.relu(shortcut)

    def _some(self, x: Tensor, shortcut: Tensor, open_: Tensor) -> Tensor:
        value = self.branch(self.root, take(x, open_)).to(shortcut.dtype)
        return self._finish(add_rows(shortcut, open_, value, in_place=self._may_write()))

    def _finish(self, value: Tensor) -> Tensor:
        if not self.rectify:
            return value
        return torch.relu(value) if torch.is_grad_enabled() else torch.relu_(value)

    def _may_write(self) -> bool:
        return self.write and not torch.is_grad_enabled()


def _add(value: Tensor, shortcut: Tensor) -> Tensor:
    """Add into `value`, which nobody else holds, where autograd and the dtypes allow it."""
    return value + shortcut if torch.is_grad_enabled() or value.dtype != shortcut.dtype else value.add_(shortcut)


def _rows_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Samples `rows` (k,) of x (N, ...), in x's memory format: index_select alone would turn channels_last into NCHW."""
    if _rows_last(x):
        return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return x.index_select(0, rows)


def add_rows(x: Tensor, rows: Tensor, values: Tensor, in_place: bool) -> Tensor:
    """x (N, ...) with `values` (k, ...) added to its samples `rows` (k,): one pass, where adding and then copying back takes two."""
    if _rows_last(x):
        return add_rows(x.permute(0, 2, 3, 1), rows, values.permute(0, 2, 3, 1), in_place).permute(0, 3, 1, 2)
    return x.index_add_(0, rows, values) if in_place else x.index_add(0, rows, values)


def economical(root: nn.Module, graph: fx.Graph) -> fx.Graph:
    """A copy of `graph` that computes the same, with the ReLUs in place that may be; training runs it."""
    result = fx.Graph()
    outputs: Any = result.graph_copy(graph, {})
    result.output(outputs)
    for node in result.nodes:
        if is_relu(root, node):
            _rectify_in_place(root, node)
    return result


def lower(root: nn.Module, graph: fx.Graph) -> fx.Graph:
    """A copy of `graph` that skips; masks that no executor fits stay, and save nothing. The executors become children of `root`."""
    lowered = economical(root, graph)
    holder = nn.ModuleDict()
    root.add_module(LOWERED, holder)
    for node in list(lowered.nodes):
        if is_mask(node):
            _lower_block(root, lowered, node, holder)
    _let_write(root, lowered)
    if not len(holder):
        del root._modules[LOWERED]
    return lowered


def _rectify_in_place(root: nn.Module, relu: fx.Node) -> None:
    """Let a ReLU write into its input where that is new and nothing else reads it; the trace has taken such writes out."""
    (source,) = relu.all_input_nodes
    if len(source.users) == 1 and not _shared(root, source) and source.op not in ("placeholder", "get_attr"):
        relu.op, relu.target, relu.args, relu.kwargs = "call_function", F.relu, (source,), {"inplace": True}


def _lower_block(root: nn.Module, graph: fx.Graph, masked: fx.Node, holder: nn.ModuleDict) -> None:
    value, decision = masked.args
    add = next(iter(masked.users))
    if not isinstance(value, fx.Node) or not isinstance(decision, fx.Node) or len(masked.users) != 1 or not is_add(add):
        return
    shortcut = next(arg for arg in add.args if arg is not masked)
    region = _region(value, masked)
    entries = {source for node in region for source in node.all_input_nodes if source.op != "get_attr"} - region
    if len(entries) != 1 or not isinstance(shortcut, fx.Node):
        return
    (entry,) = entries
    relu = next(iter(add.users)) if len(add.users) == 1 and is_relu(root, next(iter(add.users))) else None
    block = SkipBlock(root, _branch(region, entry, value), relu is not None, never_negative(root, shortcut))
    holder[str(len(holder))] = block
    last = relu or add
    with graph.inserting_before(last):
        node = graph.call_module(f"{LOWERED}.{len(holder) - 1}", (entry, shortcut, decision))
    last.replace_all_uses_with(node)
    remove_dead(graph)


def _region(value: fx.Node, masked: fx.Node) -> set[fx.Node]:
    """What only the masked value needs: the nodes whose every reader is itself such a node."""
    region = {value}
    for node in reversed(list(masked.graph.nodes)):
        if node.op not in ("placeholder", "output") and node.users and all(user in region for user in node.users):
            region.add(node)
    return region


def _branch(region: set[fx.Node], entry: fx.Node, value: fx.Node) -> Callable[..., Tensor]:
    graph = fx.Graph()
    copies = {entry: graph.placeholder("x")}
    for node in value.graph.nodes:
        if node in region or node.op == "get_attr":
            copies[node] = graph.node_copy(node, lambda source: copies[source])
    result = copies[value]
    if value.op == "call_method" and str(value.target).startswith("expand"):
        result = graph.call_method("contiguous", (result,))  # what is added to it in place needs memory of its own
    graph.output(result)
    remove_dead(graph)
    return compile_graph(graph)


def _let_write(root: nn.Module, graph: fx.Graph) -> None:
    """Let executors write into their shortcut's storage where nobody can notice: decided once all are in, as each may return its shortcut."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        block = module_of(root, node)
        if isinstance(block, SkipBlock):
            block.write = _writable(root, node, order)


def _writable(root: nn.Module, writer: fx.Node, order: Mapping[fx.Node, int]) -> bool:
    """Whether all other readers of what may be the storage of the writer's shortcut have run before it."""
    owners, todo = set[fx.Node](), [_shortcut(writer)]
    while todo:
        node = todo.pop()
        if node.op in ("placeholder", "get_attr"):
            return False
        if node not in owners:
            owners.add(node)
            todo.extend(_shared(root, node))
    sharing, todo = set(owners), list(owners)
    while todo:
        node = todo.pop()
        for user in node.users.keys() - {writer}:
            if order[user] > order[writer]:
                return False
            if user not in sharing and node in _shared(root, user):
                sharing.add(user)
                todo.append(user)
    return True


def _shared(root: nn.Module, node: fx.Node) -> list[fx.Node]:
    """The inputs in whose storage the node's result may lie."""
    module = module_of(root, node)
    if isinstance(module, SkipBlock):
        return [_shortcut(node)]
    fresh = is_add(node) or is_mask(node) or isinstance(module, FRESH_MODULES)
    return [] if fresh else node.all_input_nodes


def _shortcut(block: fx.Node) -> fx.Node:
    shortcut = block.args[1]
    assert isinstance(shortcut, fx.Node)
    return shortcut
