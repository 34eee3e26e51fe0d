"""A network with exits as `export --split` writes it, one file a stage, made ready to be timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatecli.network import Network

OPSET = 20
HINTS = {"fp32": "f32", "bf16": "bf16"}
Stage = Callable[[Sequence[Any]], Sequence[Any]]  # arrays -> logits, score, what goes on


class NotThereError(Exception):
    """This gatecli writes no stage files."""


def stage_runs(
    network: Network, runtime: str, precision: str, x: Tensor
) -> list[Callable[[], Any]]:
    """A call for each exit, in order, and one for the end: an image that leaves there.

    Raises:
        NotThereError: Nothing writes stage files, or nothing of that runtime reads them.
        ExportError: A stage cannot be written.
    """
    if runtime not in WAYS:
        raise NotThereError(f"{runtime} reads no stage files")
    try:
        from gatecli.exporting.onnx.pieces import piece_bytes
        from gatecli.exporting.split.cut import pieces
    except ImportError:
        raise NotThereError("this gatecli has no export --split") from None
    with torch.inference_mode(mode=False):
        parts = pieces(network.copy(), x.clone())
        files = [piece_bytes(part, OPSET) for part in parts]
    stages = [WAYS[runtime](data, precision) for data in files]
    return [partial(_through, stages, number, x.numpy()) for number in range(len(stages))]


def _through(stages: Sequence[Stage], number: int, image: Any) -> Any:
    """Run stages as the runner beside the files does; who leaves is given, and still looked at."""
    values = [image]
    for place, stage in enumerate(stages[:-1]):
        said, score, *values = stage(values)
        left = score.reshape(-1) >= np.float32(-np.inf if place == number else np.inf)
        if left.all():
            return said[left]
    return stages[-1](values)[0]


def _in_onnxruntime(data: bytes, precision: str) -> Stage:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda values: session.run(None, dict(zip(names, values, strict=True)))


def _in_openvino(data: bytes, precision: str) -> Stage:
    import openvino

    how = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "INFERENCE_NUM_THREADS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()
    model = core.read_model(data)
    model.reshape({each: [1, *list(each.partial_shape)[1:]] for each in model.inputs})
    request = core.compile_model(model, "CPU", how).create_infer_request()
    count = len(request.output_tensors)

    def run(values: Sequence[Any]) -> list[Any]:
        found = request.infer(list(values), share_inputs=True, share_outputs=True)
        return [found[number] for number in range(count)]

    return run


WAYS: dict[str, Callable[[bytes, str], Stage]] = {
    "onnxruntime": _in_onnxruntime,
    "openvino": _in_openvino,
}
