"""OpenVINO, on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from gatecli.errors import ExportError
from gatecli.runtimes.base import PRECISIONS, Order, Prepared, Runtime
from gatecli.runtimes.files import onnx_file

if TYPE_CHECKING:
    from pathlib import Path


__all__ = ["OPENVINO", "OpenVino", "compiled"]

HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVino(Runtime):
    """The exported file in OpenVINO."""

    name: ClassVar[str] = "openvino"
    about: ClassVar[str] = "the exported ONNX file in OpenVINO"
    extra: ClassVar[str] = "openvino"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime", "openvino")
    precisions: ClassVar[tuple[str, ...]] = PRECISIONS

    def prepare(self, order: Order) -> Prepared:
        import torch

        with onnx_file(order) as written:
            model = compiled(written.out, order)
        request = model.create_infer_request()

        def call(feed: Any) -> Any:
            return request.infer(feed, share_inputs=True, share_outputs=True)

        return Prepared(
            feed=lambda images: [images.cpu().contiguous().numpy()],
            call=call,
            logits=lambda found: torch.from_numpy(found["logits"].copy()),
            masked=written.masks,
        )


def compiled(path: Path, order: Order) -> Any:
    """An ONNX file as OpenVINO runs it, with as many threads as torch uses.

    Raises:
        ExportError: OpenVINO cannot read it.
    """
    import torch

    from gatecli.exporting.openvino.packages import openvino_package
    from gatecli.exporting.openvino.run import why

    how = {
        "INFERENCE_PRECISION_HINT": HINTS[order.precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino_package().Core()
    try:
        model = core.read_model(str(path))
        spec = order.recipe.input
        model.reshape([order.batch, spec.channels, *spec.size])
        return core.compile_model(model, "CPU", how)
    except RuntimeError as error:  # what OpenVINO raises for all that it cannot do
        raise ExportError(f"OpenVINO cannot read {path}: {why(error)}") from error


OPENVINO = OpenVino()
