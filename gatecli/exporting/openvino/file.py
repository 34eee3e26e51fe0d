"""OpenVINO IR: a graph and its weights in two files, made of what is written as ONNX."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from gatecli.errors import ExportError
from gatecli.exporting.onnx.file import model_of, valid_bytes
from gatecli.exporting.openvino.packages import openvino_package
from gatecli.exporting.openvino.run import compiled, why
from gatecli.exporting.registry import Logits, Task

__all__ = ["save_ir", "write_openvino"]


def write_openvino(task: Task) -> Logits:
    """Write a network as OpenVINO IR, its weights in float32.

    Returns:
        A function that runs the files with OpenVINO.

    Raises:
        ExportError: a package is missing, or an operation cannot be converted.
    """
    openvino_package()
    save_ir(valid_bytes(model_of(task)), task.files, task.facts)
    network = compiled(*task.files)
    return lambda images: torch.from_numpy(network.call([images.numpy()])["logits"])


def save_ir(model: bytes, files: Sequence[Path], facts: Mapping[str, str]) -> None:
    """Write an ONNX model as OpenVINO IR.

    Args:
        model: the bytes of an ONNX file.
        files: for the graph and the weights.
        facts: the graph's metadata.

    Raises:
        ExportError: OpenVINO cannot take the model.
    """
    openvino = openvino_package()
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder, "model.xml")  # OpenVINO writes under these suffixes alone
        try:
            read = openvino.Core().read_model(model)
            for key, value in facts.items():
                read.set_rt_info(value, [key])
            openvino.save_model(read, str(graph), compress_to_fp16=False)
        except RuntimeError as error:
            raise ExportError(f"OpenVINO cannot take the network: {why(error)}") from error
        for source, file in zip((graph, graph.with_suffix(".bin")), files, strict=True):
            file.write_bytes(source.read_bytes())
