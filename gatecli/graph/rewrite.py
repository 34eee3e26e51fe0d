"""Change a traced network: put a gate before a value, take a branch out, let go of modules that
nothing calls, rename.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

from torch import fx, nn

from gatecli.errors import ArchitectureError
from gatecli.graph.names import is_writable
from gatecli.graph.ops import (
    decided_by,
    is_add,
    is_mask,
    is_pick,
    is_relu,
    is_shake,
    mask,
    never_negative,
    pick,
    runs_of,
    summands,
    widen,
)
from gatecli.graph.settle import TRAINING
from gatecli.graph.sites import Site
from gatecli.graph.slices import keeps_zero
from gatecli.graph.trace import remove_dead


def place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at `path` under `root`, making plain containers for the parts of the path that
    do not exist yet.

    What a container already there holds moves into `module`.
    """
    parent, last = _parent(root, path)
    there = parent._modules.get(last)
    if there is not None and type(there) is nn.Module:
        for name, child in there.named_children():
            module.add_module(name, child)
    parent.add_module(last, module)


def place_tensor(root: nn.Module, path: str, source: nn.Module) -> None:
    """Share the parameter, buffer or constant at `path` of `source` with `root`, at the same path.

    Files hold what they held before.
    """
    parent, last = _parent(root, path)
    owner = source.get_submodule(path.rpartition(".")[0])
    if last in owner._parameters:
        parent.register_parameter(last, owner._parameters[last])
    else:
        parent.register_buffer(
            last,
            getattr(owner, last),
            persistent=last in owner._buffers and last not in owner._non_persistent_buffers_set,
        )


def adopt(root: nn.Module, source: nn.Module, graph: fx.Graph) -> None:
    """Let `root` have what the graph of `source` reaches, under the same path.

    The source's containers stay its own.
    """
    for node in graph.nodes:
        path = str(node.target)
        if node.op == "call_module":
            place(root, path, source.get_submodule(path))
        elif node.op == "get_attr" and path != TRAINING:
            place_tensor(root, path, source)


def insert_reader(root: nn.Module, graph: fx.Graph, path: str, module: nn.Module) -> fx.Node:
    """Let `module`, which becomes `path`, see the images; returns the node of what it says."""
    place(root, path, module)
    images = next(node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(images):
        return graph.call_module(path, (images,))


def _parent(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    *parents, last = path.split(".")
    for part in parents:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    return root, last


def node_named(graph: fx.Graph, name: str) -> fx.Node:
    found: fx.Node = next(node for node in graph.nodes if node.name == name)
    return found


def insert_mask(
    root: nn.Module, graph: fx.Graph, site: Site, gate: nn.Module, sees: str = ""
) -> None:
    """Let `gate` see the site's entry, or the node `sees`, and multiply the branch's value by what
    it decides; the gate becomes `gates.SITE`.

    Filters' masks come before those of the branch that they are in.
    """
    path = f"gates.{site.name}"
    place(root, path, gate)
    entry, value = node_named(graph, sees or site.entry), node_named(graph, site.value)
    with graph.inserting_after(value if sees else entry):
        decision = graph.call_module(path, (entry,))
    while (
        site.kind != "filter" and len(value.users) == 1 and is_mask(user := next(iter(value.users)))
    ):
        value = user
    with graph.inserting_after(decision if sees else value):
        masked = graph.call_function(mask, (value, decision))
    value.replace_all_uses_with(masked, delete_user_cb=lambda user: user is not masked)


def mask_of(graph: fx.Graph, site: str) -> fx.Node | None:
    """The mask that the site's gate decides; None where it has none."""
    return next(
        (
            node
            for node in graph.nodes
            if is_mask(node) and decided_by(node).target == f"gates.{site}"
        ),
        None,
    )


def insert_exit(root: nn.Module, graph: fx.Graph, site: Site, exit_: nn.Module) -> None:
    """Let `exit_` see the site's value, and the network return what the first exit taken says.

    The exit becomes `exits.SITE`.
    """
    path = f"exits.{site.name}"
    place(root, path, exit_)
    entry = node_named(graph, site.entry)
    with graph.inserting_after(entry):
        pair = graph.call_module(path, (entry,))
    output = next(node for node in graph.nodes if node.op == "output")
    (last,) = output.all_input_nodes
    order = {node: index for index, node in enumerate(graph.nodes)}
    final, others = (last.args[0], last.args[1:]) if is_pick(last) else (last, ())
    with graph.inserting_before(output):
        picked = graph.call_function(
            pick, (final, *sorted([*others, pair], key=lambda node: order[node]))
        )
    output.args = (picked,)
    remove_dead(graph)


def remove_exit(graph: fx.Graph, site: Site) -> None:
    """Take the site's exit out: nobody leaves there."""
    picked, pairs = _exits(graph)
    kept = [pair for pair in pairs if pair.target != f"exits.{site.name}"]
    if kept:
        picked.args = (picked.args[0], *kept)
    else:
        picked.replace_all_uses_with(picked.args[0])  # type: ignore[arg-type]
    remove_dead(graph)


def end_at_exit(root: nn.Module, graph: fx.Graph, site: Site, head: nn.Module) -> None:
    """Let everybody who comes to the site's exit leave there.

    `head`, its classifier, takes its place, and what lies behind goes.
    """
    picked, pairs = _exits(graph)
    path = f"exits.{site.name}"
    index = [pair.target for pair in pairs].index(path)
    place(root, path, head)
    if index:
        picked.args = (pairs[index], *pairs[:index])
    else:
        picked.replace_all_uses_with(pairs[index])
    remove_dead(graph)


def _exits(graph: fx.Graph) -> tuple[fx.Node, list[fx.Node]]:
    picked = next(node for node in graph.nodes if is_pick(node))
    return picked, [pair for pair in picked.args[1:] if isinstance(pair, fx.Node)]


def remove_mask(graph: fx.Graph, site: Site) -> None:
    """Take the site's gate out and let its branch always run."""
    masked = mask_of(graph, site.name)
    if masked is not None:
        masked.replace_all_uses_with(masked.args[0])  # type: ignore[arg-type]
    remove_dead(graph)


def additions_of_zero(
    root: nn.Module, value: fx.Node, replaced: Mapping[fx.Node, fx.Node] | None = None
) -> dict[fx.Node, fx.Node] | None:
    """If `value` were zero for good.

    The additions that would add zeros, each with what it adds them to; None where something else
    reads the value.

    replaced: additions taken to be gone already, each with the operand that is left.
    """
    found, todo = dict[fx.Node, fx.Node](), [value]
    while todo:
        node = todo.pop()
        for user in node.users:
            if replaced and replaced.get(user) is node:
                todo.append(user)
            elif is_add(user) or is_shake(user):
                found[user] = next(arg for arg in summands(user) if arg is not node)
            elif keeps_zero(root, user, node):
                todo.append(user)
            else:
                return None
    return found


def remove_zero(root: nn.Module, graph: fx.Graph, value: fx.Node) -> dict[str, str]:
    """Take `value`, which is zero for good, out of all additions, see `additions_of_zero`.

    Returns what remove_branch does.
    """
    renamed_: dict[str, str] = {}
    for add, other in (additions_of_zero(root, value) or {}).items():
        renamed_ |= _replace_addition(root, add, other)
    remove_dead(graph)
    return renamed_


def _replace_addition(root: nn.Module, add: fx.Node, other: fx.Node) -> dict[str, str]:
    """Let what `add` added to, half of it where it took the mean, take its place, and that of a
    ReLU behind it that no longer does anything.
    """
    gone = [add]
    if is_shake(add):
        with add.graph.inserting_before(add):
            other = add.graph.call_function(operator.truediv, (other, 2))
    elif never_negative(root, other):
        gone += [user for user in add.users if is_relu(root, user)]
    for node in gone:
        node.replace_all_uses_with(other)
    return {node.name: other.name for node in gone}


def remove_branch(root: nn.Module, graph: fx.Graph, site: Site) -> dict[str, str]:
    """Take the site's branch out, with its gate.

    What remains is the shortcut, and a ReLU after it only where it still does something.

    Returns which nodes are gone whose values other sites may have named: name -> the name of what
    has taken their place.
    """
    value = next((node for node in graph.nodes if node.name == site.value), None)
    if site.kind == "filter" and value is not None and additions_of_zero(root, value) is not None:
        return remove_zero(root, graph, value)
    if site.kind != "block":  # nothing reads it any more, see gatecli.graph.slices.fold
        remove_dead(graph)
        return {}
    renamed_ = _replace_addition(
        root, node_named(graph, site.add), node_named(graph, site.shortcut)
    )
    remove_dead(graph)
    return renamed_


def insert_widen(graph: fx.Graph, value: fx.Node, places: Sequence[int], width: int) -> fx.Node:
    """Let a value that has lost channels take its old width again, its channels at `places`, for
    those who read it; returns the wide one.
    """
    with graph.inserting_after(value):
        wide = graph.call_function(widen, (value, tuple(runs_of(places)), width))
    value.replace_all_uses_with(wide, delete_user_cb=lambda user: user is not wide)
    return wide


def drop_unused(root: nn.Module, graph: fx.Graph) -> None:
    """Let go of every module and tensor that the graph no longer reaches."""
    used = {str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")}
    _drop(root, "", used)


def _drop(module: nn.Module, path: str, used: set[str]) -> None:
    for kind in (module._parameters, module._buffers):
        for name in [name for name in kind if f"{path}{name}" not in used]:
            del kind[name]
    for name, child in list(module._modules.items()):
        if f"{path}{name}" in used:
            continue
        if child is not None:
            _drop(child, f"{path}{name}.", used)
        if child is None or (
            not any(True for _ in child.children()) and not child._parameters and not child._buffers
        ):
            del module._modules[name]


def renamed(path: str, names: Mapping[str, str]) -> str:
    """A module's path with each of its parts spelled as `names` says."""
    return ".".join(names.get(part, part) for part in path.split("."))


def rename(root: nn.Module, graph: fx.Graph, names: Mapping[str, str]) -> None:
    """Give modules the names that the source uses.

    `names` maps one part of a path, as `downsample`, to another, as `shortcut`.

    The other may have a dot, as `norm.1` for `norm1`: then the module moves into a container of its
    own. Names come from files, and end up in the graphs'
    generated source, so nothing but names is taken: ArchitectureError.
    """
    for part, name in names.items():
        if not is_writable(name):
            raise ArchitectureError(
                f"expected another name for `{part}`, of letters, digits, underscores and dots, and"
                f" no keyword of Python, but got {name!r}"
            )
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = renamed(str(node.target), names)
    for parent in list(root.modules()):
        children, parent._modules = parent._modules, {}
        for name, child in children.items():
            if child is None:
                parent._modules[name] = None
            else:
                place(parent, names.get(name, name), child)
