"""Stages of a network as ONNX files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatecli.exporting.onnx.file import Names, converted, valid_bytes
from gatecli.exporting.onnx.packages import onnx_package
from gatecli.exporting.registry import Piece

__all__ = ["open_piece", "piece_bytes", "write_piece"]


def write_piece(piece: Piece, opset: int, files: Sequence[Path]) -> None:
    """Write one stage for batches of any size. Raises ExportError where it cannot be converted."""
    files[0].write_bytes(piece_bytes(piece, opset))


def piece_bytes(piece: Piece, opset: int) -> bytes:
    """One stage as the bytes of an ONNX file. Raises ExportError as `write_piece`."""
    onnx_package()
    names = Names(takes=piece.takes, gives=piece.gives)
    return valid_bytes(converted(piece.module, piece.examples, names, opset, batches=True))


def open_piece(path: str, threads: int) -> Any:
    """One piece in ONNX Runtime, on so many threads (0: all): arrays in order -> arrays."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda values: session.run(None, dict(zip(names, values, strict=True)))
