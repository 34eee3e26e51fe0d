"""The package that OpenVINO files need: an extra of gatecli, so it may be missing."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from gatecli.errors import ExportError

__all__ = ["openvino_package"]


def openvino_package() -> Any:
    """The package openvino. Raises ExportError where it is missing."""
    if not find_spec("openvino"):
        raise ExportError("OpenVINO files need openvino: pip install 'gatecli[openvino]'")
    import openvino

    return openvino
