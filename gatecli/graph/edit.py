"""Change a traced network.

Put a gate before a value, take it out, let go of modules that nothing calls, rename.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from gatecli.graph.normalize import TRAINING
from gatecli.graph.ops import decided_by, is_mask, mask, widen
from gatecli.graph.runs import runs_of
from gatecli.graph.trace import remove_dead
from gatecli.traced.site import Site
from gatecli.traced.traced import Traced

__all__ = [
    "adopt",
    "drop_unused",
    "insert_mask",
    "insert_reader",
    "insert_widen",
    "mask_of",
    "masks_of",
    "place",
    "place_tensor",
    "remove_mask",
]


def place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at `path` under `root`.

    Parts of the path that do not exist yet become plain containers. What a container already there
    holds moves into `module`.
    """
    parent, last = _parent(root, path)
    there = parent._modules.get(last)
    if there is not None and type(there) is nn.Module:
        for name, child in there.named_children():
            module.add_module(name, child)
    parent.add_module(last, module)


def place_tensor(root: nn.Module, path: str, source: nn.Module, there: str | None = None) -> None:
    """Share the parameter, buffer or constant of `source` at `there` with `root`, at `path`.

    Files hold what they held before. The two paths are one where only one is given.
    """
    parent, last = _parent(root, path)
    before, _, name = (there or path).rpartition(".")
    owner = source.get_submodule(before)
    if name in owner._parameters:
        parent.register_parameter(last, owner._parameters[name])
    else:
        parent.register_buffer(
            last,
            getattr(owner, name),
            persistent=name in owner._buffers and name not in owner._non_persistent_buffers_set,
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


def insert_mask(
    net: Traced, site: Site, gate: nn.Module, *, sees: str = "", outside: bool = True, axis: int = 1
) -> None:
    """Multiply a site's value by what `gate`, which becomes `gates.SITE`, decides.

    Args:
        net: The network.
        site: The site.
        gate: It sees the site's entry.
        sees: The node that it sees instead.
        outside: The mask comes after those that are there already.
        axis: The dimension of the value that its channels are.
    """
    graph, path = net.graph, f"gates.{site.name}"
    place(net.root, path, gate)
    # what is masked is read as it is masked, or all of it would have to be computed for the gate
    entry, value = _last_mask(net.node(sees or site.entry)), net.node(site.value)
    with graph.inserting_after(value if sees else entry):
        decision = graph.call_module(path, (entry,))
    if outside:
        value = _last_mask(value)
    with graph.inserting_after(decision if sees or entry is value else value):
        masked = graph.call_function(mask, (value, decision), _along(axis))
    own = (masked, decision)
    value.replace_all_uses_with(masked, delete_user_cb=lambda user: user not in own)


def _along(axis: int) -> dict[str, Any]:
    """The argument that says so, where the channels are not the second dimension."""
    return {} if axis == 1 else {"axis": axis}


def _last_mask(value: fx.Node) -> fx.Node:
    """The last of the masks that alone read a value one after the other, or the value."""
    while len(value.users) == 1:
        (user,) = value.users
        if not is_mask(user):
            break
        value = user
    return value


def mask_of(graph: fx.Graph, site: str) -> fx.Node | None:
    """The mask that the site's gate decides; None where it has none."""
    return next(iter(masks_of(graph, site)), None)


def masks_of(graph: fx.Graph, site: str) -> list[fx.Node]:
    """All masks that the site's gate decides, in order."""
    masks = [node for node in graph.nodes if is_mask(node)]
    return [node for node in masks if decided_by(node).target == f"gates.{site}"]


def remove_mask(graph: fx.Graph, site: str) -> None:
    """Take the site's gate out, with all of its masks, and let its branch always run."""
    for masked in masks_of(graph, site):
        masked.replace_all_uses_with(masked.args[0])  # type: ignore[arg-type]
    remove_dead(graph)


def insert_widen(
    graph: fx.Graph, value: fx.Node, places: Sequence[int], width: int, axis: int = 1
) -> fx.Node:
    """Let a value that has lost channels take its old width again for those who read it.

    Its channels are at `places`; returns the wide one.
    """
    with graph.inserting_after(value):
        given = (value, tuple(runs_of(places)), width)
        wide = graph.call_function(widen, given, _along(axis))
    value.replace_all_uses_with(wide, delete_user_cb=lambda user: user is not wide)
    return wide


def drop_unused(root: nn.Module, graph: fx.Graph) -> None:
    """Let go of every module and tensor that the graph no longer reaches."""
    used = {str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")}
    _drop(root, "", used)


def _drop(module: nn.Module, path: str, used: set[str]) -> None:
    tensors: list[Any] = [module._parameters, module._buffers]
    for held in tensors:
        for name in [name for name in held if f"{path}{name}" not in used]:
            del held[name]
    for name, child in list(module._modules.items()):
        if f"{path}{name}" in used:
            continue
        if child is not None:
            _drop(child, f"{path}{name}.", used)
        if child is None or _is_empty(child):
            del module._modules[name]
        elif type(child) is not nn.Module:
            module._modules[name] = _container(child)


def _is_empty(module: nn.Module) -> bool:
    has_children = any(True for _ in module.children())
    return not has_children and not module._parameters and not module._buffers


def _container(module: nn.Module) -> nn.Module:
    """What an unused module holds, in a plain one: a gate that has gone decides nothing."""
    plain = nn.Module()
    for name, child in module.named_children():
        plain.add_module(name, child)
    for name, parameter in module._parameters.items():
        plain.register_parameter(name, parameter)
    for name, buffer in module._buffers.items():
        is_saved = name not in module._non_persistent_buffers_set
        plain.register_buffer(name, buffer, persistent=is_saved)
    return plain
