"""Give a traced network's modules the names that its source uses.

`names` says what a part of a path, as `downsample`, is called there: `shortcut`. The other may have
a dot, as `norm.1` for `norm1`: then the module moves into a container of its own. What begins with
a dot is no part but a path from the root, and so is its other name: `.fc` is `head.fc`, say, and
`.` alone, the root itself, `backbone`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from gatecli.errors import ArchitectureError
from gatecli.graph.edit import place, place_tensor
from gatecli.graph.names import is_identifier
from gatecli.graph.normalize import TRAINING

__all__ = ["rename", "renamed"]

ROOT = "."


def renamed(path: str, names: Mapping[str, str]) -> str:
    """A path with each of its parts spelled as `names` says."""
    parts = path.split(".")
    for count in range(len(parts), -1, -1):
        start = ROOT + ".".join(parts[:count])
        if start in names:
            return ".".join([names[start], *_spelled(parts[count:], names)])
    return ".".join(_spelled(parts, names))


def _spelled(parts: list[str], names: Mapping[str, str]) -> list[str]:
    return [names.get(part, part) for part in parts]


def rename(root: nn.Module, graph: fx.Graph, names: Mapping[str, str]) -> None:
    """Give modules the names that the source uses.

    Raises:
        ArchitectureError: names come from files, and end up in the graphs' generated source, so
            nothing but names is taken, each once.
    """
    for part, name in names.items():
        if not is_identifier(name):
            raise ArchitectureError(
                f"expected another name for `{part}`, of letters, digits, underscores and dots, and"
                f" no keyword of Python, but got {name!r}"
            )
    if any(part.startswith(ROOT) for part in names):
        _move(root, graph, names)
        return
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


def _move(root: nn.Module, graph: fx.Graph, names: Mapping[str, str]) -> None:
    """Put what the graph reaches where its other name says, in place."""
    nodes = list(filter(_reaches, graph.nodes))
    modules = {str(node.target) for node in nodes if node.op == "call_module"}
    new = {str(node.target): renamed(str(node.target), names) for node in nodes}
    taken = {new[path] for path in modules}
    for path in sorted(modules):
        if _is_within(new[path], taken):
            new[path] = _out_of_the_way(root, path, new)
    fresh = nn.Module()
    for path in sorted(new, key=lambda path: path not in modules):  # modules before tensors
        if path in modules:
            place(fresh, new[path], root.get_submodule(path))
        else:
            place_tensor(fresh, new[path], root, path)
    for node in nodes:
        node.target = new[str(node.target)]
    for held in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
        root.__dict__[held] = fresh.__dict__[held]


def _reaches(node: fx.Node) -> bool:
    return node.op in ("call_module", "get_attr") and node.target != TRAINING


def _is_within(path: str, modules: set[str]) -> bool:
    """Whether a path leads into one of the modules."""
    parts = path.split(".")
    return any(".".join(parts[:count]) in modules for count in range(1, len(parts)))


def _out_of_the_way(root: nn.Module, path: str, new: Mapping[str, str]) -> str:
    """Another name for what would lie within a module: a Dropout before a head that is renamed."""
    name = new[path].replace(".", "_")
    if root.get_submodule(path).state_dict() or name in new.values():
        raise ArchitectureError(f"expected another name for `{path}`: `{new[path]}` is taken")
    return name
