"""The weights format: a safetensors file, and beside it a short Python module that builds the
network with torch alone.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from gatecli.checkpoint import save_tensors
from gatecli.errors import ExportError
from gatecli.exporting.weights.source import source_of
from gatecli.graph.settle import TRAINING
from gatecli.network import Network

RUN = """
import importlib.util, sys, torch
loader = importlib.machinery.SourceFileLoader("exported", sys.argv[1])
spec = importlib.util.spec_from_file_location("exported", sys.argv[1], loader=loader)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
tensors = module.read_tensors(sys.argv[3])
with torch.no_grad():
    torch.save(module.load(sys.argv[2])(tensors["images"]), sys.argv[4])
"""


def module_path(out: Path) -> Path:
    """Where the Python module of a weights file lies.

    `resnet50.pruned.weights.safetensors` -> `resnet50_pruned.py`.
    """
    stem = out.name.removesuffix(".safetensors").removesuffix(".weights")
    name = re.sub(r"\W", "_", stem, flags=re.ASCII)
    return out.with_name(f"{name if name[:1].isalpha() else f'network_{name}'}.py")


def write_weights(
    network: Network, weights: Path, module: Path, out: Path, facts: Mapping[str, str]
) -> Callable[[Tensor], Tensor]:
    """Write the tensors to `weights` and the source to `module`.

    `out` is what the weights will be called in the end.

    Returns a function that runs the two in another process. Raises ExportError where gates remain,
    or a part cannot be written.
    """
    if network.methods:
        raise ExportError(
            f"the weights format is for static networks, but {len(network.methods)} sites decide at"
            f" run time ({next(iter(network.methods))}, ...): prune first, or export to onnx or pt2"
        )
    known = json.loads(facts["gatecli"])
    constants = {
        "WEIGHTS": out.name,
        "INPUT_SIZE": tuple(known["input_size"]),
        "CHANNELS": known["channels"],
        "MEAN": known["mean"],
        "STD": known["std"],
        "CLASSES": known["classes"],
    }
    title = (
        f"{known['arch'] or 'A network'}, as gatecli left it; needs torch alone. MEAN and STD: of"
        " images with values in [0, 1]."
    )
    module.write_text(source_of(network, network.graph, constants, title), encoding="utf-8")
    save_tensors(_tensors(network), weights, dict(facts))
    return lambda images: _run(module, weights, images)


def _tensors(network: Network) -> dict[str, Tensor]:
    """The state dict, and what the graph reads that is not in it."""
    read = {
        str(node.target): node
        for node in network.graph.nodes
        if node.op == "get_attr" and node.target != TRAINING
    }
    others = {
        path: getattr(network.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2])
        for path in read
    }
    return {**others, **network.state_dict()}


def _run(module: Path, weights: Path, images: Tensor) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "images.safetensors", Path(folder) / "logits.pt"
        save_tensors({"images": images}, given, {})
        done = subprocess.run(
            [sys.executable, "-I", "-c", RUN, module, weights, given, result],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise ExportError(
                "the generated module does not run:"
                f" {(done.stderr.strip().splitlines() or ['no message'])[-1]}: this is a bug in"
                " gatecli; nothing was written"
            )
        logits: Tensor = torch.load(result, weights_only=True)
        return logits
