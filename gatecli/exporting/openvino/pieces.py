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

    wanted = {"INFERENCE_PRECISION_HINT": "f32"}  # else some processors compute in bfloat16
    if threads:
        wanted["INFERENCE_NUM_THREADS"] = str(threads)
    network = openvino.Core().compile_model(path, "CPU", wanted)
    return lambda values: list(network(values).to_tuple())
