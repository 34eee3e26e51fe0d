"""A network as Python source that needs torch alone.

Modules from what they print of themselves, `forward` from the graph.
"""

from __future__ import annotations

import ast
import copy
import inspect
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from textwrap import indent
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatecli.errors import ExportError, first_line
from gatecli.graph.names import is_writable
from gatecli.graph.settle import TRAINING
from gatecli.graph.trace import SiteTracer, remove_dead

LOADING = '''
def load(path=None):
    """The network in evaluation mode, with the weights of `path`, or of the file beside this."""
    network = Network()
    network.load_state_dict(read_tensors(path or Path(__file__).with_name(WEIGHTS)))
    return network.eval()


def read_tensors(path):
    """The tensors of a safetensors file by name: a header's length, the header, the bytes."""
    data = bytearray(Path(path).read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, end = (start + place for place in entry["data_offsets"])
            dtype = DTYPES[entry["dtype"]]
            empty = torch.empty(0, dtype=dtype)
            flat = torch.frombuffer(data[first:end], dtype=dtype) if end > first else empty
            tensors[name] = flat.reshape(entry["shape"])
    return tensors


if __name__ == "__main__":
    print(load()(torch.randn(1, CHANNELS, *INPUT_SIZE)))
'''
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def source_of(root: nn.Module, graph: fx.Graph, constants: Mapping[str, Any], title: str) -> str:
    """A module that defines `Network`, with the parts of `root` that `graph` calls, under their
    names; and `load`.

    Args: constants: names and values to put at the top. title: the first line, for people.
    Raises: ExportError, which names a module or an operation that torch alone does not have.
    """
    odd = next(
        (
            str(node.target)
            for node in graph.nodes
            if node.op in ("call_module", "get_attr") and not is_writable(str(node.target))
        ),
        None,
    )
    if odd is not None:
        raise ExportError(
            f"the weights format cannot write a module called `{odd}`: export to pt2 or onnx"
        )
    writer = _Writer()
    writer.network("Network", root, graph)
    dtypes = ", ".join(f'"{name}": torch.{dtype}' for name, dtype in DTYPES.items())
    title = re.sub(r'["\\]', "", title)
    head = (
        f'"""{title}"""\nimport json\nimport struct\nfrom pathlib import Path\n\nimport torch\nfrom'
        " torch import nn\nfrom torch.nn import functional as F\n\n"
    )
    values = (
        "".join(f"{name} = {value!r}\n" for name, value in constants.items())
        + f"DTYPES = {{{dtypes}}}\n"
    )
    return (
        head
        + values
        + "".join(f"\n\n{part}" for part in (*writer.functions.values(), *writer.classes.values()))
        + "\n\n"
        + LOADING
    )


class _Writer:
    """Collects classes and functions, each written once."""

    def __init__(self) -> None:
        self.classes: dict[str, str] = {}
        self.functions: dict[str, str] = {}

    def network(self, name: str, root: nn.Module, graph: fx.Graph) -> None:
        """Write a class with the modules and tensors that a graph reaches, and the graph as its
        forward.
        """
        tree: dict[str, Any] = {}
        tensors = []
        for node in graph.nodes:
            path = str(node.target)
            if node.op == "call_module":
                _put(tree, path.split("."), self.constructor(root.get_submodule(path), path))
            elif node.op == "get_attr" and path != TRAINING:
                tensors.append(_tensor(root, path))
                _put(tree, path.split(".")[:-1], {})
        lines = [
            "super().__init__()",
            *(
                (
                    f"self.{key} = {_spelled(value)}"
                    if key.isidentifier()
                    else f'self.add_module("{key}", {_spelled(value)})'
                )
                for key, value in tree.items()
            ),
        ]
        body = indent("\n".join([*lines, *dict.fromkeys(tensors)]), " " * 8)
        self.classes[name] = (
            f"class {name}(nn.Module):\n    def"
            f" __init__(self):\n{body}\n\n{indent(self.forward(graph), '    ')}"
        )

    def forward(self, graph: fx.Graph) -> str:
        untyped = copy.deepcopy(graph)
        for node in untyped.nodes:
            node.type = None
        code = untyped.python_code("self")
        source = code.src[code.src.index("def forward") :]
        for alias, value in code.globals.items():
            if re.search(rf"\b{alias}\b", source):
                self.needed(alias, value)
        source = re.sub(r";  (\w+ = )+None", "", source).replace("    \n", "").rstrip()
        for _ in range(source.count("getattr(")):
            source = re.sub(
                r'getattr\((self\.[^()]+), ("\w+")\)', r"\1[\2]", source
            )  # groups of modules are ModuleDicts
        return source

    def needed(self, alias: str, value: Any) -> None:
        """Define a name that generated code uses."""
        if value is torch or alias == "torch" or value is getattr:  # torch.fx writes `x.shape`
            return
        if inspect.isfunction(value) and value.__module__.startswith("gatecli.graph."):
            self.function(value)
            if alias != value.__name__:
                self.functions[alias] = f"{alias} = {value.__name__}"
        elif isinstance(value, float):
            self.functions[alias] = f'{alias} = float("{value}")'
        elif value is type(None):
            self.functions[alias] = f"{alias} = type(None)"
        elif getattr(value, "__module__", "").partition(".")[0] in (
            "torch",
            "math",
            "operator",
            "_operator",
        ) and isinstance(getattr(value, "__name__", None), str):
            self.functions[alias] = f"from {value.__module__} import {value.__name__} as {alias}"
        else:
            raise ExportError(
                f"`{getattr(value, '__module__', '?')}.{getattr(value, '__name__', value)}` is no"
                " operation of torch's own, so the weights format cannot write it: export to pt2"
                " or onnx"
            )

    def function(self, function: Any) -> None:
        """Write one of our own operations, and those that it calls, without annotations."""
        for name in function.__code__.co_names:
            used = function.__globals__.get(name)
            if (
                inspect.isfunction(used)
                and used.__module__.startswith("gatecli.graph.")
                and used is not function
            ):
                self.function(used)
        tree: Any = ast.parse(inspect.getsource(function)).body[0]
        tree.returns = None
        for argument in (*tree.args.args, tree.args.vararg, *tree.args.kwonlyargs):
            if argument is not None:
                argument.annotation = None
        self.functions[function.__name__] = ast.unparse(tree)

    def constructor(self, module: nn.Module, path: str) -> str:
        """An expression that makes a module like this one, but for the values of its tensors."""
        if _does_nothing(module):
            return "nn.Identity()"
        with suppress(SyntaxError):  # some layers print no Python
            for spelling in _spellings(module):
                if _makes(spelling, module):
                    return spelling.text
        return f"{self.own_class(module, path)}()"

    def own_class(self, module: nn.Module, path: str) -> str:
        """A class for a module that is not torch's, from a trace of its own."""
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
        alike = next(
            (
                other
                for other, text in self.classes.items()
                if other != name and text.replace(other, name) == self.classes[name]
            ),
            None,
        )
        if alike is not None:
            del self.classes[name]
        return alike or name


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    if path:
        tree.setdefault(path[-1], value)


def _spelled(tree: Any, depth: int = 0) -> str:
    if isinstance(tree, str):
        return tree
    pad = " " * 4 * (depth + 1)
    return (
        "nn.ModuleDict({\n"
        + "".join(f'{pad}"{name}": {_spelled(part, depth + 1)},\n' for name, part in tree.items())
        + " " * 4 * depth
        + "})"
    )


def _tensor(root: nn.Module, path: str) -> str:
    owner, _, name = path.rpartition(".")
    holder = f'self.get_submodule("{owner}")' if owner else "self"
    value: Tensor = getattr(root.get_submodule(owner), name)
    empty = f"torch.empty({tuple(value.shape)}, dtype={value.dtype})"
    if isinstance(value, nn.Parameter):
        return f'{holder}.register_parameter("{name}", nn.Parameter({empty}))'
    return f'{holder}.register_buffer("{name}", {empty})'


@dataclass(frozen=True)
class _Spelling:
    """A call that makes one of torch's layers: its text, and the literal values in it."""

    text: str
    args: list[Any]
    kwargs: dict[str, Any]


def _spellings(module: nn.Module) -> list[_Spelling]:
    """Calls that may make a layer like this one, from what it prints of itself.

    The shortest first.
    """
    layer = type(module)
    if getattr(nn, layer.__name__, None) is not layer:
        return []
    if isinstance(module, nn.MultiheadAttention):
        bias = module.in_proj_bias is not None
        text = (
            f"nn.MultiheadAttention({module.embed_dim}, {module.num_heads}, bias={bias},"
            f" batch_first={module.batch_first})"
        )
    else:
        text = f"nn.{layer.__name__}({module.extra_repr()})"
    call = ast.parse(text, mode="eval").body
    if not isinstance(call, ast.Call) or ast.unparse(call.func) != f"nn.{layer.__name__}":
        return []
    defaults = {name: each.default for name, each in inspect.signature(layer).parameters.items()}
    short = ast.Call(
        call.func, call.args, [each for each in call.keywords if not _is_default(each, defaults)]
    )
    try:
        return [_spelling(each) for each in (short, call)]
    except ValueError:  # it prints more than literals
        return []


def _spelling(call: ast.Call) -> _Spelling:
    """Raises ValueError where an argument is no literal."""
    args = [ast.literal_eval(each) for each in call.args]
    kwargs = {
        str(each.arg): ast.literal_eval(each.value)
        for each in call.keywords
        if each.arg is not None
    }
    if len(kwargs) < len(call.keywords):
        raise ValueError("**")
    return _Spelling(text=ast.unparse(call), args=args, kwargs=kwargs)


def _is_default(given: ast.keyword, defaults: Mapping[str, Any]) -> bool:
    return (
        isinstance(given.value, ast.Constant)
        and given.arg is not None
        and given.arg in defaults
        and given.value.value == defaults[given.arg]
    )


def _makes(spelling: _Spelling, module: nn.Module) -> bool:
    """Whether the call makes a module of the same class, with the same settings and the same
    tensors but for their values.
    """
    try:
        with torch.device("meta"):
            made = type(module)(*spelling.args, **spelling.kwargs)
    except Exception:  # not every layer prints what makes it
        return False
    shapes = [
        {name: (tuple(t.shape), t.dtype) for name, t in each.state_dict().items()}
        for each in (made, module)
    ]
    return shapes[0] == shapes[1] and repr(made) == repr(module) and _plain(made) == _plain(module)


def _plain(module: nn.Module) -> dict[str, Any]:
    """Settings that printing may leave out."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name != TRAINING
        and isinstance(value, (bool, int, float, str, tuple, type(None)))
    }


def _does_nothing(module: nn.Module) -> bool:
    """Whether a module without tensors returns what it is given in evaluation.

    Dropout, stochastic depth.
    """
    if any(True for _ in (*module.parameters(), *module.buffers())) or type(module) is nn.Identity:
        return False
    x = torch.linspace(-9, 9, 96, device="cpu").reshape(2, 3, 4, 4)
    try:
        with torch.no_grad():
            return bool(torch.equal(copy.deepcopy(module).cpu().eval()(x.clone()), x))
    except Exception:  # whatever a layer may say of values that it was not made for
        return False
