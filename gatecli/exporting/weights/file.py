"""The weights format: a safetensors file, and a short Python module beside it.

The module builds the network with torch alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from gatecli.checkpoint import save_tensors
from gatecli.errors import ExportError
from gatecli.exporting.facts import KEY
from gatecli.exporting.registry import Logits, Task
from gatecli.exporting.weights.source import source_of
from gatecli.graph.normalize import TRAINING
from gatecli.network import Network

__all__ = ["write_weights"]

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


def write_weights(task: Task) -> Logits:
    """Write a network's tensors to the first file, and its source to the second.

    Returns:
        A function that runs the two in another process.

    Raises:
        ExportError: gates remain, or a part cannot be written.
    """
    network = task.network
    weights, module = task.files
    if network.gated_by:
        raise ExportError(
            f"the weights format is for static networks, but {len(network.gated_by)} sites decide"
            f" at run time ({next(iter(network.gated_by))}, ...): prune first, or export to onnx"
            " or pt2"
        )
    known = json.loads(task.facts[KEY])
    constants = {
        "WEIGHTS": task.out.name,
        "INPUT_SIZE": tuple(known["input_size"]),
        "CHANNELS": known["channels"],
        "MEAN": known["mean"],
        "STD": known["std"],
        "RESIZE": known["resize"],
        "CROP_MODE": known["crop_mode"],
        "INTERPOLATION": known["interpolation"],
        "CLASSES": known["classes"],
    }
    title = (
        f"{known['arch'] or 'A network'}, as gatecli left it; needs torch alone. MEAN and STD: of"
        " images with values in [0, 1]. RESIZE: what pictures are scaled to before the middle is"
        " cut out (one number: the shorter side; None: INPUT_SIZE / 0.875)."
    )
    module.write_text(source_of(network, network.graph, constants, title), encoding="utf-8")
    save_tensors(_tensors(network), weights, dict(task.facts))
    return lambda images: _run(module, weights, images)


def _tensors(network: Network) -> dict[str, Tensor]:
    """The state dict, and what the graph reads that is not in it."""
    tensors: dict[str, Tensor] = {}
    for node in network.graph.nodes:
        if node.op == "get_attr" and node.target != TRAINING:
            owner, _, name = str(node.target).rpartition(".")
            tensors[str(node.target)] = getattr(network.get_submodule(owner), name)
    return {**tensors, **network.state_dict()}


def _run(module: Path, weights: Path, images: Tensor) -> Tensor:
    """The logits of images, by the generated module in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "images.safetensors"
        result = Path(folder) / "logits.pt"
        save_tensors({"images": images}, given, {})
        done = subprocess.run(
            [sys.executable, "-I", "-c", RUN, module, weights, given, result],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["no message"]
            raise ExportError(
                f"the generated module does not run: {said[-1]}: this is a bug in gatecli; nothing"
                " was written"
            )
        logits: Tensor = torch.load(result, weights_only=True)
        return logits
