"""A network as Python source that needs torch alone.

Its modules come from what they print of themselves, `forward` from the graph.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from gatecli.errors import ExportError
from gatecli.exporting.weights.writer import Writer
from gatecli.graph.names import is_writable

__all__ = ["source_of"]

HEAD = """
import json
import struct
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

"""
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
    """Write a module that defines `Network`, and `load`.

    Args:
        root: has the modules and tensors that the graph names; they keep their names.
        graph: what `Network` computes.
        constants: names and values to put at the top.
        title: the first line, for people.

    Returns:
        The source.

    Raises:
        ExportError: torch alone does not have a module or an operation, which it names.
    """
    _check_names(graph)
    writer = Writer()
    writer.network("Network", root, graph)
    title = re.sub(r'["\\]', "", title)
    dtypes = ", ".join(f'"{name}": torch.{dtype}' for name, dtype in DTYPES.items())
    values = [f"{name} = {value!r}\n" for name, value in constants.items()]
    values.append(f"DTYPES = {{{dtypes}}}\n")
    parts = [*writer.functions.values(), *writer.classes.values(), LOADING]
    return f'"""{title}"""' + HEAD + "".join(values) + "".join(f"\n\n{part}" for part in parts)


def _check_names(graph: fx.Graph) -> None:
    """Raise ExportError where a module has a name that cannot be written."""
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr") and not is_writable(str(node.target)):
            raise ExportError(
                f"the weights format cannot write a module called `{node.target}`: export to pt2"
                " or onnx"
            )
