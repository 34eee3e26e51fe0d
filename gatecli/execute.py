"""Run a gated network so that what is skipped is not computed.

The network's graph says what a gated network *means*: every branch computed, then multiplied by its gate's decision. That is what
training runs. For evaluation the graph is lowered: each masked branch, with the addition and the ReLU that follow, becomes one
executor (see gatecli.executors) that computes the branch only for the samples whose gate is open.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

from gatecli.executors import SkipBlock, SkipChannels, SkipGroups, SkipInputs, SkipLayer, Staged
from gatecli.gates import Gate
from gatecli.graph.channels import base_path, choose, keep_inputs, merge
from gatecli.graph.convs import base_of
from gatecli.graph.macs import NodeCost
from gatecli.graph.ops import FRESH_LAYERS, add_at, connect, is_add, is_cat, is_mask, is_pick, is_relu, module_of, never_negative, widen
from gatecli.graph.slices import tail_of
from gatecli.graph.trace import compile_graph, remove_dead

FRESH_MODULES = (*FRESH_LAYERS, Gate, SkipLayer, SkipChannels, SkipInputs)
FRESH_FUNCTIONS = (widen, add_at, connect, base_path, choose, keep_inputs, merge)
LOWERED = "_lowered"  # the module that holds the executors; they have no tensors, so no file ever sees them


def economical(root: nn.Module, graph: fx.Graph) -> fx.Graph:
    """A copy of `graph` that computes the same, with the ReLUs in place that may be; training runs it."""
    result = fx.Graph()
    outputs: Any = result.graph_copy(graph, {})
    result.output(outputs)
    for node in result.nodes:
        if is_relu(root, node):
            _rectify_in_place(root, node)
    return result


def lower(root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost]) -> fx.Graph:
    """A copy of `graph` that skips; masks that no executor fits stay, and save nothing. The executors become children of `root`.

    costs: the nodes' shapes, by name.
    """
    lowered = economical(root, graph)
    holder = nn.ModuleDict()
    root.add_module(LOWERED, holder)
    for node in list(lowered.nodes):
        if is_mask(node):
            if all(is_cat(user) for user in node.users):
                _lower_layer(root, lowered, node, holder, costs)
            else:
                _lower_block(root, lowered, node, holder)
        elif node.target is choose:
            _lower_outputs(root, lowered, node, holder)
        elif node.target is keep_inputs:
            _lower_inputs(root, lowered, node, holder)
        elif is_add(node):
            _add_at_places(lowered, node)
    _let_write(root, lowered)
    if not len(holder):
        del root._modules[LOWERED]
    return lowered


def staged(graph: fx.Graph) -> Staged | None:
    """A lowered graph cut into stages at its exits; None where it has none."""
    picked = next((node for node in graph.nodes if is_pick(node)), None)
    if picked is None:
        return None
    final, *pairs = [node for node in picked.args if isinstance(node, fx.Node)]
    entry, stages = next(node for node in graph.nodes if node.op == "placeholder"), []
    for pair in pairs:
        (value,) = pair.all_input_nodes
        stages.append(_stage(entry, value))
        entry = value
    return Staged(stages, [str(pair.target) for pair in pairs], _stage(entry, final))


def _stage(entry: fx.Node, value: fx.Node) -> Callable[..., Tensor]:
    """What lies between two values, all ways to the second going through the first, as a function (root, first)."""
    region, todo = set[fx.Node](), [value]
    while todo:
        node = todo.pop()
        if node is not entry and node not in region and node.op != "get_attr":
            region.add(node)
            todo.extend(node.all_input_nodes)
    return _branch(region, entry, value) if region else lambda root, x: x


def _rectify_in_place(root: nn.Module, relu: fx.Node) -> None:
    """Let a ReLU write into its input where that is new and nothing else reads it; the trace has taken such writes out."""
    (source,) = relu.all_input_nodes
    if len(source.users) == 1 and not _shared(root, source) and source.op not in ("placeholder", "get_attr"):
        relu.op, relu.target, relu.args, relu.kwargs = "call_function", F.relu, (source,), {"inplace": True}


def _lower_block(root: nn.Module, graph: fx.Graph, masked: fx.Node, holder: nn.ModuleDict) -> None:
    found, add = _skippable(masked), next(iter(masked.users))
    if found is None or len(masked.users) != 1 or not is_add(add):
        return
    value, decision, entry, region = found
    shortcut = next(arg for arg in add.args if arg is not masked)
    assert isinstance(shortcut, fx.Node)
    relu = next(iter(add.users)) if len(add.users) == 1 and is_relu(root, next(iter(add.users))) else None
    branch, state = _branch(region, entry, value), (relu is not None, never_negative(root, shortcut))
    gate = module_of(root, decision)
    tail = tail_of(root, value) if isinstance(gate, Gate) and gate.units > 1 else []
    block = SkipGroups(root, branch, _trunk(region, entry, tail), _tail(root, tail), *state) if tail else SkipBlock(root, branch, *state)
    _replace(graph, relu or add, block, (entry, shortcut, decision), holder)


def _lower_layer(root: nn.Module, graph: fx.Graph, masked: fx.Node, holder: nn.ModuleDict, costs: Mapping[str, NodeCost]) -> None:
    found = _skippable(masked)
    if found is not None:
        value, decision, entry, region = found
        shape = costs[value.name].shape
        assert shape is not None
        _replace(graph, masked, SkipLayer(root, _branch(region, entry, value), shape[1]), (entry, decision), holder)


def _lower_outputs(root: nn.Module, graph: fx.Graph, chosen: fx.Node, holder: nn.ModuleDict) -> None:
    """A convolution whose output channels are gated; decisions for single activations save nothing that is dense, so these stay as they are."""
    norm, _, decision = chosen.all_input_nodes
    (conv,) = norm.all_input_nodes
    gate: Any = module_of(root, decision)
    if not gate.theoretical:
        base, gate_ = base_of(conv), str(decision.target)
        rows: Any = chosen.args[3]
        executor = SkipChannels(root, str(conv.target), str(norm.target), gate_, base.args[2], base.args[3], rows, gate.reads_input)
        _replace(graph, chosen, executor, (conv.all_input_nodes[0],), holder)


def _lower_inputs(root: nn.Module, graph: fx.Graph, kept: fx.Node, holder: nn.ModuleDict) -> None:
    """A convolution whose input channels are gated."""
    x, decision = kept.all_input_nodes
    (conv,), order = kept.users, kept.args[2]
    _replace(graph, conv, SkipInputs(root, str(conv.target), order), (x, decision), holder)  # type: ignore[arg-type]


def _replace(graph: fx.Graph, last: fx.Node, executor: nn.Module, inputs: tuple[fx.Node, ...], holder: nn.ModuleDict) -> None:
    """Let an executor give what `last` gave."""
    holder[str(len(holder))] = executor
    with graph.inserting_before(last):
        node = graph.call_module(f"{LOWERED}.{len(holder) - 1}", inputs)
    last.replace_all_uses_with(node)
    remove_dead(graph)


def _skippable(masked: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node, set[fx.Node]] | None:
    """The masked value, its decision, the one value that the branch starts from, and the branch's nodes."""
    value, decision = masked.args
    assert isinstance(value, fx.Node) and isinstance(decision, fx.Node)
    region = _region(value, masked)
    entries = {source for node in region for source in node.all_input_nodes if source.op != "get_attr"} - region
    return (value, decision, entries.pop(), region) if len(entries) == 1 else None


def _add_at_places(graph: fx.Graph, add: fx.Node) -> None:
    """Where a branch has lost channels, add it to those that it still has, rather than widen it with zeros first."""
    for wide, other in (add.args, add.args[::-1]):
        if isinstance(wide, fx.Node) and wide.target is widen and len(wide.users) == 1 and isinstance(other, fx.Node):
            value, runs, _ = wide.args
            add.target, add.args = add_at, (other, value, runs)
            graph.erase_node(wide)
            return


def _region(value: fx.Node, masked: fx.Node) -> set[fx.Node]:
    """What only the masked value needs: the nodes whose every reader is itself such a node."""
    region = {value}
    for node in reversed(list(masked.graph.nodes)):
        if node.op not in ("placeholder", "output") and node.users and all(user in region for user in node.users):
            region.add(node)
    return region


def _branch(region: set[fx.Node], entry: fx.Node, value: fx.Node) -> Callable[..., Tensor]:
    """The nodes of `region`, from `entry` to `value`, as a function (root, entry's value)."""
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


def _trunk(region: set[fx.Node], entry: fx.Node, tail: Sequence[fx.Node]) -> Callable[..., Tensor]:
    """What comes before the tail."""
    (last,) = tail[0].all_input_nodes
    return (lambda root, x: x) if last is entry else _branch(region - set(tail), entry, last)


def _tail(root: nn.Module, tail: Sequence[fx.Node]) -> Callable[..., Tensor]:
    """The tail's nodes as a function (root, the trunk's value, first, end) that gives the channels [first, end) alone."""
    sliced = (nn.Conv2d, nn.BatchNorm2d)
    steps = [str(node.target) if isinstance(module_of(root, node), sliced) else _branch({node}, node.all_input_nodes[0], node) for node in tail]

    def run(root: nn.Module, x: Tensor, first: int, end: int) -> Tensor:
        for step in steps:
            x = _channels(root.get_submodule(step), x, slice(first, end)) if isinstance(step, str) else step(root, x)
        return x

    return run


def _channels(module: Any, x: Tensor, part: slice) -> Tensor:
    """Some output channels of a convolution, or of a BatchNorm in evaluation whose input has only these."""
    weight, bias = (None if tensor is None else tensor[part] for tensor in (module.weight, module.bias))
    if isinstance(module, nn.Conv2d):
        result: Tensor = module._conv_forward(x, weight, bias)  # type: ignore[arg-type]
        return result
    return F.batch_norm(x, module.running_mean[part], module.running_var[part], weight, bias, False, 0.0, module.eps)


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
    fresh = is_add(node) or is_mask(node) or is_cat(node) or node.target in FRESH_FUNCTIONS or isinstance(module, FRESH_MODULES)
    return [] if fresh else node.all_input_nodes


def _shortcut(block: fx.Node) -> fx.Node:
    shortcut = block.args[1]
    assert isinstance(shortcut, fx.Node)
    return shortcut
