"""Refuse ONNX files whose weights lie in other files, which such a file names itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gatecli.errors import ExportError, first_line
from gatecli.exporting.onnx.packages import onnx_package

__all__ = ["refuse_other_files"]


def refuse_other_files(path: Path) -> None:
    """Refuse an ONNX file with weights in other files; export writes all into one.

    Raises:
        ExportError: it has such weights, or cannot be read.
    """
    onnx = onnx_package()
    if not path.is_file():
        what = "it is no regular file" if path.exists() else "there is no such file"
        raise ExportError(f"expected {path} to be an ONNX file, but {what}")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors, and the system's
        raise ExportError(f"onnx cannot read {path}: {first_line(error)}") from error
    if _names_a_file(model):
        raise ExportError(
            f"expected {path} to hold its weights itself, as gatecli export writes them, but it"
            " refers to other files: convert it with onnx.save"
        )


def _names_a_file(message: Any) -> bool:
    """Whether a tensor anywhere in a message lies in another file.

    Among the weights, in an attribute, in a branch or a function.
    """
    if message.DESCRIPTOR.name == "TensorProto":
        return bool(message.external_data) or message.data_location == message.EXTERNAL
    return any(map(_names_a_file, _messages(message)))


def _messages(message: Any) -> list[Any]:
    """The messages in a message, without the numbers, which may be many."""
    found: list[Any] = []
    for described, value in message.ListFields():
        if described.message_type is None:
            continue
        if hasattr(value, "DESCRIPTOR"):
            found.append(value)
        else:
            found.extend(value)
    return found
