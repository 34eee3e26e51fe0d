"""ONNX files that compute with eight-bit integers: ONNX Runtime's static quantisation.

Weights are signed, with a scale for each output channel; values between layers are unsigned, with
ranges measured on images. Measured on processors with VNNI (AMX too), unsigned values beside signed
weights are two to three times faster than float32, and signed ones beside them slower than it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gatecli.errors import ExportError, GatecliError
from gatecli.exporting.onnx.metadata import take_facts
from gatecli.exporting.onnx.packages import onnx_package
from gatecli.exporting.quiet import reason, unlogged

__all__ = ["quantise"]

Feed = Mapping[str, Any]  # an input's name -> an array, images first


class _Reader:
    """What ONNX Runtime draws images from; `get_next` is its name for that."""

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self.feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> Feed | None:
        """The next feed; None: there are no more."""
        return next(self.feeds, None)


def quantise(source: Path, out: Path, feeds: Iterable[Feed]) -> None:
    """Write an eight-bit copy of an ONNX file in which nothing is decided at run time.

    Args:
        source: the file; any inputs and outputs.
        out: the copy, which says in its metadata that it is one.
        feeds: values of its inputs, on which ranges are measured: some hundred images in all.

    Raises:
        ExportError: it has an `If`, or cannot be quantised.
    """
    onnx = onnx_package()
    model = onnx.load(source)
    if any(node.op_type == "If" for node in model.graph.node):
        raise ExportError(
            "expected a file that computes everything to make an eight-bit one of, but it has"
            " branches (`If`), and what an integer rounds may decide otherwise: prune what decides,"
            " or export with --all-computed"
        )
    try:
        with unlogged(), tempfile.TemporaryDirectory() as folder:
            _quantise(source, Path(folder, "folded.onnx"), out, feeds)
    except GatecliError:  # of the feeds
        raise
    except Exception as error:  # onnx's own, and whatever its quantiser comes to
        raise ExportError(f"ONNX Runtime cannot quantise the network: {reason(error)}") from error
    copy = onnx.load(out)
    take_facts(copy, model, precision="int8")
    out.write_bytes(copy.SerializeToString())


def _quantise(source: Path, folded: Path, out: Path, feeds: Iterable[Feed]) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(source), str(folded), skip_symbolic_shape=True)  # folds BatchNorms
    quantize_static(
        str(folded),
        str(out),
        _Reader(feeds),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
