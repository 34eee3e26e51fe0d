"""ONNX Runtime, on the CPU."""

from __future__ import annotations

from typing import Any, ClassVar

from gatecli.runtimes.base import Order, Prepared, Runtime
from gatecli.runtimes.files import onnx_file

__all__ = ["ONNXRUNTIME", "OnnxRuntime"]


class OnnxRuntime(Runtime):
    """The exported file in ONNX Runtime."""

    name: ClassVar[str] = "onnxruntime"
    about: ClassVar[str] = "the exported ONNX file in ONNX Runtime"
    extra: ClassVar[str] = "onnx"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")

    def prepare(self, order: Order) -> Prepared:
        import torch

        from gatecli.exporting.onnx.run import session_of

        with onnx_file(order) as written:
            session = session_of(written.out)

        def call(feed: dict[str, Any]) -> Any:
            return session.run(["logits"], feed)

        return Prepared(
            feed=lambda images: {"images": images.cpu().numpy()},
            call=call,
            logits=lambda found: torch.from_numpy(found[0]),
            masked=written.masks,
        )


ONNXRUNTIME = OnnxRuntime()
