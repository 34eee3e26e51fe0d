"""Stages of a network as OpenVINO IR."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatecli.exporting.onnx.pieces import piece_bytes
from gatecli.exporting.openvino.file import save_ir
from gatecli.exporting.openvino.packages import openvino_package
from gatecli.exporting.registry import Piece

__all__ = ["open_piece", "write_piece"]


def write_piece(piece: Piece, opset: int, files: Sequence[Path]) -> None:
    """Write one stage for batches of any size. Raises ExportError where it cannot be converted."""
    openvino_package()
    save_ir(piece_bytes(piece, opset), files, {})


def open_piece(path: str, threads: int) -> Any:
    """One piece in OpenVINO, on so many threads (0: all): arrays in order -> arrays."""
    import openvino

    # in float32, as some processors compute in bfloat16 else; a single image has a plan of its own
    wanted = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    core = openvino.Core()
    model, single = core.read_model(path), core.read_model(path)
    single.reshape({each: [1, *list(each.partial_shape)[1:]] for each in single.inputs})
    networks = [core.compile_model(each, "CPU", wanted) for each in (model, single)]
    return lambda values: list(networks[len(values[0]) == 1](values).to_tuple())
