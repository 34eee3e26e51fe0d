"""The packages that ONNX files need: an extra of gatecli, so they may be missing."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from gatecli.errors import ExportError

__all__ = ["onnx_package", "runtime_package"]


def onnx_package() -> Any:
    """The package onnx. Raises ExportError where it, or what is used with it, is missing."""
    if not all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        raise ExportError(
            "ONNX files need onnx, onnxscript and onnxruntime: pip install 'gatecli[onnx]'"
        )
    import onnx

    return onnx


def runtime_package() -> Any:
    """The package onnxruntime. Raises ExportError where it is missing."""
    if not find_spec("onnxruntime"):
        raise ExportError("running ONNX needs onnxruntime: pip install 'gatecli[onnx]'")
    import onnxruntime

    return onnxruntime
