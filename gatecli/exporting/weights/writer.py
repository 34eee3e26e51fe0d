"""Modules and graphs as the classes and functions of a Python file."""

from __future__ import annotations

import ast
import copy
import inspect
import re
from textwrap import indent
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatecli.errors import ExportError, first_line
from gatecli.exporting.weights.layers import constructor
from gatecli.graph.normalize import TRAINING
from gatecli.graph.trace import remove_dead
from gatecli.graph.tracer import SiteTracer

__all__ = ["Writer"]

OURS = "gatecli.graph."  # modules with our own operations
TORCHS = ("torch", "math", "operator", "_operator")  # packages whose functions may be imported


class Writer:
    """Collects classes and functions, each written once.

    Attributes:
        classes: source by the class's name.
        functions: source by the name that generated code uses.
    """

    def __init__(self) -> None:
        self.classes: dict[str, str] = {}
        self.functions: dict[str, str] = {}

    def network(self, name: str, root: nn.Module, graph: fx.Graph) -> None:
        """Write a class of that name: the parts of `root` that a graph reaches, and the graph.

        Args:
            name: the class's.
            root: has the modules and tensors that the graph names.
            graph: becomes the class's `forward`.

        Raises:
            ExportError: torch alone does not have a module or an operation.
        """
        tree: dict[str, Any] = {}
        lines = ["super().__init__()"]
        tensors: dict[str, None] = {}
        for node in graph.nodes:
            path = str(node.target)
            if node.op == "call_module":
                _put(tree, path.split("."), self.constructor(root.get_submodule(path), path))
            elif node.op == "get_attr" and path != TRAINING:
                tensors[_tensor(root, path)] = None
                _put(tree, path.split(".")[:-1], {})
        for key, value in tree.items():
            if key.isidentifier():
                lines.append(f"self.{key} = {_spelled(value)}")
            else:
                lines.append(f'self.add_module("{key}", {_spelled(value)})')
        body = indent("\n".join([*lines, *tensors]), " " * 8)
        forward = indent(self.forward(graph), "    ")
        head = f"class {name}(nn.Module):\n    def __init__(self):"
        self.classes[name] = f"{head}\n{body}\n\n{forward}"

    def forward(self, graph: fx.Graph) -> str:
        """A graph as a method, and whatever it uses as functions."""
        untyped = copy.deepcopy(graph)
        for node in untyped.nodes:
            node.type = None
        code = untyped.python_code("self")
        source = code.src[code.src.index("def forward") :]
        for alias, value in code.globals.items():
            if re.search(rf"\b{alias}\b", source):
                self.needed(alias, value)
        source = re.sub(r";  (\w+ = )+None", "", source).replace("    \n", "").rstrip()
        for _ in range(source.count("getattr(")):  # groups of modules are ModuleDicts
            source = re.sub(r'getattr\((self\.[^()]+), ("\w+")\)', r"\1[\2]", source)
        return source

    def needed(self, alias: str, value: Any) -> None:
        """Define a name that generated code uses. Raises ExportError where torch cannot."""
        if value is torch or alias == "torch" or value is getattr:  # torch.fx writes `x.shape`
            return
        if _is_ours(value):
            self.function(value)
            if alias != value.__name__:
                self.functions[alias] = f"{alias} = {value.__name__}"
        elif isinstance(value, float):
            self.functions[alias] = f'{alias} = float("{value}")'
        elif value is type(None):
            self.functions[alias] = f"{alias} = type(None)"
        elif _is_torchs(value):
            self.functions[alias] = f"from {value.__module__} import {value.__name__} as {alias}"
        else:
            home = getattr(value, "__module__", "?")
            raise ExportError(
                f"`{home}.{getattr(value, '__name__', value)}` is no operation of torch's own, so"
                " the weights format cannot write it: export to pt2 or onnx"
            )

    def function(self, function: Any) -> None:
        """Write one of our own operations, and those that it calls, without annotations."""
        for name in function.__code__.co_names:
            used = function.__globals__.get(name)
            if _is_ours(used) and used is not function:
                self.function(used)
        tree: Any = ast.parse(inspect.getsource(function)).body[0]
        tree.returns = None
        for argument in (*tree.args.args, tree.args.vararg, *tree.args.kwonlyargs):
            if argument is not None:
                argument.annotation = None
        self.functions[function.__name__] = ast.unparse(tree)

    def constructor(self, module: nn.Module, path: str) -> str:
        """An expression that makes a module like this one, but for the values of its tensors.

        Raises:
            ExportError: the module, which lies at `path`, is not torch's and cannot be traced.
        """
        return constructor(module) or f"{self.own_class(module, path)}()"

    def own_class(self, module: nn.Module, path: str) -> str:
        """The name of a class for a module that is not torch's, from a trace of its own."""
        try:
            graph = SiteTracer().trace(copy.deepcopy(module).eval())
            remove_dead(graph)
        except Exception as error:  # whatever tracing comes to
            reason = first_line(error)
            raise ExportError(
                f"the weights format cannot write `{path}`, a {type(module).__name__}: it is not"
                f" torch's own and cannot be traced ({reason}): export to pt2 or onnx"
            ) from error
        name = re.sub(r"[^0-9a-zA-Z_]", "_", f"{type(module).__name__}At_{path}")
        self.network(name, module, graph)
        for other, text in self.classes.items():
            if other != name and text.replace(other, name) == self.classes[name]:
                del self.classes[name]
                return other
        return name


def _is_ours(value: Any) -> bool:
    return inspect.isfunction(value) and value.__module__.startswith(OURS)


def _is_torchs(value: Any) -> bool:
    """Whether it can be imported from torch, or from Python itself."""
    package = getattr(value, "__module__", "").partition(".")[0]
    return package in TORCHS and isinstance(getattr(value, "__name__", None), str)


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    """Put a value into a tree of dictionaries, unless there is one at its path."""
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    if path:
        tree.setdefault(path[-1], value)


def _spelled(tree: Any, depth: int = 0) -> str:
    """A tree of constructors as an expression of ModuleDicts."""
    if isinstance(tree, str):
        return tree
    pad = " " * 4 * (depth + 1)
    parts = [f'{pad}"{name}": {_spelled(part, depth + 1)},\n' for name, part in tree.items()]
    return "nn.ModuleDict({\n" + "".join(parts) + " " * 4 * depth + "})"


def _tensor(root: nn.Module, path: str) -> str:
    """A statement that registers a tensor of the shape of the one at that path."""
    owner, _, name = path.rpartition(".")
    holder = f'self.get_submodule("{owner}")' if owner else "self"
    value: Tensor = getattr(root.get_submodule(owner), name)
    empty = f"torch.empty({tuple(value.shape)}, dtype={value.dtype})"
    if isinstance(value, nn.Parameter):
        return f'{holder}.register_parameter("{name}", nn.Parameter({empty}))'
    return f'{holder}.register_buffer("{name}", {empty})'
