"""Run a gated network so that what is skipped is not computed.

The network's graph says what a gated network *means*: every branch computed, then multiplied by its
gate's decision. That is what training runs. For evaluation the graph is lowered: each masked
branch, with the addition and the ReLU that follow, becomes one executor (see gatecli.executors)
that computes the branch only for the samples whose gate is open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

from gatecli.executors import (
    AddAt,
    FilterBlock,
    FilterLayer,
    GatedOutputs,
    SkipBlock,
    SkipChannels,
    SkipGroups,
    SkipInputs,
    SkipLayer,
    Staged,
)
from gatecli.executors.branches import StreamConv, StreamMean, Streams
from gatecli.executors.lower_branches import lower_branches
from gatecli.executors.rows import take
from gatecli.gates import Gate
from gatecli.graph.channels import base_path, choose, keep_inputs, merge
from gatecli.graph.convs import base_of
from gatecli.graph.macs import NodeCost
from gatecli.graph.ops import (
    FRESH_LAYERS,
    connect,
    decided_by,
    is_add,
    is_cat,
    is_decision,
    is_mask,
    is_pick,
    is_relu,
    module_of,
    never_negative,
    relu_after,
    widen,
)
from gatecli.graph.slices import tail_of
from gatecli.graph.trace import compile_graph, copied, remove_dead

FRESH_MODULES = (
    *FRESH_LAYERS,
    Gate,
    SkipLayer,
    FilterLayer,
    SkipChannels,
    SkipInputs,
    Streams,
    StreamConv,
    StreamMean,
)
FRESH_FUNCTIONS = (widen, connect, base_path, choose, keep_inputs, merge)
LOWERED = (  # the module that holds the executors; they have no tensors, so no file ever sees them
    "_lowered"
)


def economical(root: nn.Module, graph: fx.Graph) -> fx.Graph:
    """A copy of `graph` that computes the same, with the ReLUs in place that may be.

    Training runs it.
    """
    result = copied(graph)
    for node in result.nodes:
        if is_relu(root, node):
            _rectify_in_place(root, node)
    return result


def lower(root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost]) -> fx.Graph:
    """A copy of `graph` that skips; masks that no executor fits stay, and save nothing.

    The executors become children of `root`.

    costs: the nodes' shapes, by name.
    """
    lowered, holder = economical(root, graph), _holder(root)
    lower_branches(
        root,
        lowered,
        lambda last, executor, inputs: _replace(lowered, last, executor, inputs, holder),
    )
    for node in list(lowered.nodes):
        if is_mask(node) and _of_filters(root, node):
            _lower_filters(root, lowered, node, holder)
    for node in list(lowered.nodes):
        if is_mask(node) and not _of_filters(root, node):
            _lower_mask(root, lowered, node, holder, costs)
        elif node.target is choose:
            _lower_outputs(root, lowered, node, holder)
        elif node.target is keep_inputs:
            _lower_inputs(root, lowered, node, holder)
        elif is_add(node):
            _lower_addition(root, lowered, node, holder)
    _let_write(root, lowered)
    if not len(holder):
        del root._modules[LOWERED]
    return lowered


def lower_whole(root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost]) -> fx.Graph:
    """The same, but only what has a single gate is skipped, by a SkipBlock or SkipLayer."""
    lowered, holder = economical(root, graph), _holder(root)
    for node in list(lowered.nodes):
        if is_mask(node) and getattr(module_of(root, decided_by(node)), "units", 0) == 1:
            _lower_mask(root, lowered, node, holder, costs)
    return lowered


def _holder(root: nn.Module) -> nn.ModuleDict:
    holder = nn.ModuleDict()
    root.add_module(LOWERED, holder)
    return holder


def staged(graph: fx.Graph) -> Staged | None:
    """A lowered graph cut into stages at its exits; None where it has none."""
    picked = next((node for node in graph.nodes if is_pick(node)), None)
    if picked is None:
        return None
    final, *pairs = [node for node in picked.args if isinstance(node, fx.Node)]
    ends = [*(pair.all_input_nodes[0] for pair in pairs), final]
    entry, stage_of = (
        next(node for node in graph.nodes if node.op == "placeholder"),
        dict[fx.Node, int](),
    )
    stage_of[entry] = 0
    for number, end in enumerate(ends):
        for node in _needed(end):
            stage_of.setdefault(node, number)
    inputs, stages = [entry], []
    for number, end in enumerate(ends):
        live = [
            node
            for node in graph.nodes
            if stage_of.get(node, number + 1) <= number
            and node is not end
            and any(stage_of.get(user, 0) > number for user in node.users)
        ]
        outputs = [end] if number == len(pairs) else [end, *live]
        stages.append(
            _piece({node for node, stage in stage_of.items() if stage == number}, inputs, outputs)
        )
        inputs = outputs
    return Staged(stages[:-1], [str(pair.target) for pair in pairs], stages[-1])


def _needed(value: fx.Node) -> set[fx.Node]:
    """A value and all that it is computed from, constants left out."""
    found, todo = set[fx.Node](), [value]
    while todo:
        node = todo.pop()
        if node not in found and node.op != "get_attr":
            found.add(node)
            todo.extend(node.all_input_nodes)
    return found


def _piece(
    nodes: set[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> Callable[..., tuple[Tensor, ...]]:
    """The part `nodes` of a graph, but for its inputs, as a function (root, the inputs' values) ->
    the outputs' values.
    """
    graph, copies = _part(nodes, inputs)
    graph.output(tuple(copies[node] for node in outputs))
    remove_dead(graph)
    return compile_graph(graph)


def _part(
    nodes: set[fx.Node], inputs: Sequence[fx.Node]
) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A new graph of the part `nodes` of one, and constants, its inputs being placeholders.

    And which node is whose copy.
    """
    graph = fx.Graph()
    copies = {node: graph.placeholder(f"x{index}") for index, node in enumerate(inputs)}
    for node in inputs[0].graph.nodes:
        if node not in copies and (node in nodes or node.op == "get_attr"):
            copies[node] = graph.node_copy(node, lambda source: copies[source])
    return graph, copies


def _of_filters(root: nn.Module, masked: fx.Node) -> bool:
    gate = module_of(root, decided_by(masked))
    return isinstance(gate, Gate) and gate.filters


def _lower_filters(
    root: nn.Module, graph: fx.Graph, masked: fx.Node, holder: nn.ModuleDict
) -> None:
    """The open filters alone, added to the shortcut where the mask goes into an addition, else
    among zeros.
    """
    value, decision = masked.args
    assert isinstance(value, fx.Node) and isinstance(decision, fx.Node)
    tail = tail_of(root, value)
    if not tail:
        return
    (x,) = tail[0].all_input_nodes
    last, places = masked, None
    if len(masked.users) == 1 and (user := next(iter(masked.users))).target is widen:
        runs: Any = user.args[1]
        last, places = user, [channel for first, end in runs for channel in range(first, end)]
    add = next(iter(last.users))
    if len(last.users) > 1 or not is_add(add):
        _replace(graph, masked, FilterLayer(root, _tail(root, tail)), (x, decision), holder)
        return
    shortcut = next(arg for arg in add.args if arg is not last)
    assert isinstance(shortcut, fx.Node)
    relu = relu_after(root, add)
    _replace(
        graph,
        relu or add,
        FilterBlock(
            root, _tail(root, tail), places, relu is not None, never_negative(root, shortcut)
        ),
        (x, shortcut, decision),
        holder,
    )


def _rectify_in_place(root: nn.Module, relu: fx.Node) -> None:
    """Let a ReLU write into its input where that is new and nothing else reads it.

    The trace has taken such writes out.
    """
    (source,) = relu.all_input_nodes
    if (
        len(source.users) == 1
        and not _shared(root, source)
        and source.op not in ("placeholder", "get_attr")
    ):
        relu.op, relu.target, relu.args, relu.kwargs = (
            "call_function",
            F.relu,
            (source,),
            {"inplace": True},
        )


def _lower_mask(
    root: nn.Module,
    graph: fx.Graph,
    masked: fx.Node,
    holder: nn.ModuleDict,
    costs: Mapping[str, NodeCost],
) -> None:
    if all(is_cat(user) for user in masked.users):
        _lower_layer(root, graph, masked, holder, costs)
    else:
        _lower_block(root, graph, masked, holder)


def _lower_block(root: nn.Module, graph: fx.Graph, masked: fx.Node, holder: nn.ModuleDict) -> None:
    found, add = _skippable(root, masked), next(iter(masked.users))
    if found is None or len(masked.users) != 1 or not is_add(add):
        return
    value, decision, entry, region, others = found
    shortcut = next(arg for arg in add.args if arg is not masked)
    assert isinstance(shortcut, fx.Node)
    relu = relu_after(root, add)
    branch, state = (
        _branch(region, entry, value, others),
        (
            relu is not None,
            never_negative(root, shortcut),
        ),
    )
    gate = module_of(root, decision)
    tail = tail_of(root, value) if isinstance(gate, Gate) and gate.units > 1 else []
    if others and isinstance(gate, Gate) and gate.units > 1:
        return
    block = (
        SkipGroups(root, branch, _trunk(region, entry, tail), _tail(root, tail), *state)
        if tail
        else SkipBlock(root, branch, *state)
    )
    _replace(graph, relu or add, block, (entry, shortcut, decision, *others), holder)


def _lower_layer(
    root: nn.Module,
    graph: fx.Graph,
    masked: fx.Node,
    holder: nn.ModuleDict,
    costs: Mapping[str, NodeCost],
) -> None:
    found = _skippable(root, masked)
    if found is not None:
        value, decision, entry, region, others = found
        shape = costs[value.name].shape
        assert shape is not None
        _replace(
            graph,
            masked,
            SkipLayer(root, _branch(region, entry, value, others), shape[1]),
            (entry, decision, *others),
            holder,
        )


def _lower_outputs(
    root: nn.Module, graph: fx.Graph, chosen: fx.Node, holder: nn.ModuleDict
) -> None:
    """A convolution whose output channels are gated.

    Decisions for single activations save nothing that is dense, so these stay as they are.
    """
    norm, _, decision = chosen.all_input_nodes
    (conv,) = norm.all_input_nodes
    gate: Any = module_of(root, decision)
    if gate.theoretical:
        return
    base = base_of(conv)
    parts: Any = base.args[2]
    shared: Any = base.args[3]
    rows: Any = chosen.args[3]
    gated = GatedOutputs(
        conv=str(conv.target),
        norm=str(norm.target),
        gate=str(decision.target),
        parts=parts,
        shared=shared,
        rows=rows,
        reads_input=gate.reads_input,
    )
    _replace(graph, chosen, SkipChannels(root, gated), (conv.all_input_nodes[0],), holder)


def _lower_inputs(root: nn.Module, graph: fx.Graph, kept: fx.Node, holder: nn.ModuleDict) -> None:
    """A convolution whose input channels are gated."""
    x, decision = kept.all_input_nodes
    (conv,), order = kept.users, kept.args[2]
    executor = SkipInputs(root, str(conv.target), order)  # type: ignore[arg-type]
    _replace(graph, conv, executor, (x, decision), holder)


def _replace(
    graph: fx.Graph,
    last: fx.Node,
    executor: nn.Module,
    inputs: tuple[fx.Node, ...],
    holder: nn.ModuleDict,
) -> fx.Node:
    """Let an executor give what `last` gave; returns its node."""
    holder[str(len(holder))] = executor
    with graph.inserting_before(last):
        node = graph.call_module(f"{LOWERED}.{len(holder) - 1}", inputs)
    last.replace_all_uses_with(node)
    remove_dead(graph)
    return node


def _skippable(
    root: nn.Module, masked: fx.Node
) -> tuple[fx.Node, fx.Node, fx.Node, set[fx.Node], list[fx.Node]] | None:
    """The masked value, its decision, the one value that the branch starts from, the branch's
    nodes, and other gates' decisions that they read.
    """
    value, decision = masked.args
    assert isinstance(value, fx.Node) and isinstance(decision, fx.Node)
    region = {node for node in _region(value, masked) if not is_decision(root, node)}
    sources = dict.fromkeys(
        source
        for node in masked.graph.nodes
        if node in region
        for source in node.all_input_nodes
        if source.op != "get_attr" and source not in region
    )
    others = [source for source in sources if is_decision(root, source)]
    entries = [source for source in sources if source not in others]
    return (value, decision, entries[0], region, others) if len(entries) == 1 else None


def _lower_addition(root: nn.Module, graph: fx.Graph, add: fx.Node, holder: nn.ModuleDict) -> None:
    """Where a branch has lost channels, add it to those that it still has, rather than widen it
    with zeros first.
    """
    relu = relu_after(root, add)
    for wide, other in (add.args, add.args[::-1]):
        if (
            isinstance(wide, fx.Node)
            and wide.target is widen
            and len(wide.users) == 1
            and isinstance(other, fx.Node)
        ):
            lost: Any = wide.args
            value, runs, _ = lost
            _replace(
                graph,
                relu or add,
                AddAt(root, runs, relu is not None, never_negative(root, other)),
                (value, other),
                holder,
            )
            return


def _region(value: fx.Node, masked: fx.Node) -> set[fx.Node]:
    """What only the masked value needs: the nodes whose every reader is itself such a node."""
    region = {value}
    for node in reversed(list(masked.graph.nodes)):
        if (
            node.op not in ("placeholder", "output")
            and node.users
            and all(user in region for user in node.users)
        ):
            region.add(node)
    return region


def _branch(
    region: set[fx.Node], entry: fx.Node, value: fx.Node, others: Sequence[fx.Node] = ()
) -> Callable[..., Tensor]:
    """The nodes of `region`, from `entry` to `value`, as a function (root, entry's value, the
    values of `others`).
    """
    graph, copies = _part(region, [entry, *others])
    result = copies[value]
    if value.op == "call_method" and str(value.target).startswith("expand"):
        result = graph.call_method(
            "contiguous", (result,)
        )  # what is added to it in place needs memory of its own
    graph.output(result)
    remove_dead(graph)
    return compile_graph(graph)


def _trunk(region: set[fx.Node], entry: fx.Node, tail: Sequence[fx.Node]) -> Callable[..., Tensor]:
    """What comes before the tail."""
    (last,) = tail[0].all_input_nodes
    return (lambda root, x: x) if last is entry else _branch(region - set(tail), entry, last)


def _tail(root: nn.Module, tail: Sequence[fx.Node]) -> Callable[..., Tensor]:
    """The tail's nodes as a function (root, the trunk's value, channels) that gives these channels
    alone; all, for None.
    """
    sliced = (nn.Conv2d, nn.BatchNorm2d)
    steps = [
        (
            str(node.target)
            if isinstance(module_of(root, node), sliced)
            else _branch({node}, node.all_input_nodes[0], node)
        )
        for node in tail
    ]

    def run(root: nn.Module, x: Tensor, part: slice | Tensor | None) -> Tensor:
        for step in steps:
            if not isinstance(step, str):
                x = step(root, x)
            else:
                module = root.get_submodule(step)
                x = module(x) if part is None else _channels(module, x, part)
        return x

    return run


def _channels(module: Any, x: Tensor, part: slice | Tensor) -> Tensor:
    """Some output channels of a convolution, or of a BatchNorm in evaluation whose input has only
    these.
    """

    def some(tensor: Tensor | None) -> Any:
        return (
            None
            if tensor is None
            else tensor[part]
            if isinstance(part, slice)
            else take(tensor, part)
        )

    if isinstance(module, nn.Conv2d):
        result: Tensor = module._conv_forward(x, some(module.weight), some(module.bias))
        return result
    return F.batch_norm(
        x,
        some(module.running_mean),
        some(module.running_var),
        some(module.weight),
        some(module.bias),
        False,
        0.0,
        module.eps,
    )


def _let_write(root: nn.Module, graph: fx.Graph) -> None:
    """Let executors write into their shortcut's storage where nobody can notice.

    Decided once all are in, as each may return its shortcut.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        block = module_of(root, node)
        if isinstance(block, SkipBlock):
            block.write = _writable(root, node, order)


def _writable(root: nn.Module, writer: fx.Node, order: Mapping[fx.Node, int]) -> bool:
    """Whether all other readers of what may be the storage of the writer's shortcut have run before
    it.
    """
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
    fresh = (
        is_add(node)
        or is_mask(node)
        or is_cat(node)
        or node.target in FRESH_FUNCTIONS
        or isinstance(module, FRESH_MODULES)
    )
    return [] if fresh else node.all_input_nodes


def _shortcut(block: fx.Node) -> fx.Node:
    shortcut = block.args[1]
    assert isinstance(shortcut, fx.Node)
    return shortcut
