"""Run OpenVINO IR files on the CPU, in float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatecli.errors import ExportError
from gatecli.exporting.facts import KEY
from gatecli.exporting.openvino.packages import openvino_package
from gatecli.exporting.outputs import facts_in, runner_of
from gatecli.exporting.runner import Runner

__all__ = ["Compiled", "compiled", "open_openvino", "why"]

EXACT = {"INFERENCE_PRECISION_HINT": "f32"}  # else some processors compute in bfloat16


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A file made ready to run.

    Attributes:
        call: arrays in order -> the outputs, by name.
        names: of the outputs.
        facts: the text of the file's facts; None: it has none.
    """

    call: Any
    names: list[str]
    facts: str | None


def open_openvino(path: Path) -> Runner:
    """Make an IR file that export wrote, with its weights beside it, ready to run.

    Raises:
        ExportError: it is no such file, or its weights or the package are missing.
    """
    network = compiled(path, path.with_suffix(".bin"))
    facts = facts_in(network.facts, path)

    def compute(image: Tensor, wanted: list[str]) -> list[Any]:
        try:
            found = network.call([image.numpy()])
            return [found[name] for name in wanted]
        except Exception as error:  # OpenVINO's own, for all that a graph may do
            raise ExportError(f"OpenVINO cannot run {path}: {why(error)}") from error

    return runner_of(path, facts, network.names, compute)


def compiled(path: Path, weights: Path) -> Compiled:
    """Make an IR file ready to run.

    Args:
        path: the graph.
        weights: what it takes its weights from.

    Raises:
        ExportError: a file is missing or cannot be read, or the package is missing.
    """
    core = openvino_package().Core()
    for file, what in ((path, "an OpenVINO file"), (weights, f"the weights of {path}")):
        if not file.is_file():
            raise ExportError(f"expected {file} to be {what}, but there is no such file")
    graph = path.read_bytes()
    if not graph.lstrip().startswith(b"<"):  # OpenVINO would take a graph of any other kind
        raise ExportError(f"expected {path} to be an OpenVINO file, but it is no XML")
    threads = {"INFERENCE_NUM_THREADS": 1} if torch.get_num_threads() == 1 else {}
    try:
        model = core.read_model(graph, weights.read_bytes())
        call = core.compile_model(model, "CPU", {**EXACT, **threads})
        facts = model.get_rt_info([KEY]).value if model.has_rt_info([KEY]) else None
    except Exception as error:  # OpenVINO raises RuntimeError for whatever it comes to
        raise ExportError(f"OpenVINO cannot read {path}: {why(error)}") from error
    names = [next(iter(sorted(output.get_names())), "") for output in model.outputs]
    return Compiled(call=call, names=names, facts=facts)


def why(error: BaseException) -> str:
    """What OpenVINO says was wrong: it names its own source first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
