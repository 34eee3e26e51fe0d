"""Stages of a network as ONNX files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gatecli.exporting.onnx.file import Names, converted, valid_bytes
from gatecli.exporting.onnx.int8 import quantise
from gatecli.exporting.onnx.packages import onnx_package
from gatecli.exporting.registry import Piece

__all__ = ["open_piece", "piece_bytes", "quantise_piece", "write_piece"]


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


def quantise_piece(source: Path, out: Path, batches: Iterable[Sequence[Any]]) -> None:
    """Write an eight-bit copy of one stage.

    Args:
        source: the stage.
        out: the copy.
        batches: values of its inputs, in their order, on which ranges are measured.

    Raises:
        ExportError: it cannot be quantised.
    """
    inputs = onnx_package().load(source).graph.input
    names = [each.name for each in inputs]
    quantise(source, out, (dict(zip(names, values, strict=True)) for values in batches))
