"""ONNX files for one kind of processor, and for no other."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from gatecli.errors import ExportError
from gatecli.exporting.facts import KEY
from gatecli.exporting.onnx.blocked import optimised, pass_blocked
from gatecli.exporting.onnx.metadata import take_facts
from gatecli.exporting.onnx.packages import onnx_package
from gatecli.runtimes import machine

__all__ = ["lay_out", "refuse_other_processor"]


def lay_out(source: Path, out: Path) -> None:
    """Write a copy of an ONNX file with branches, laid out for this machine's processor.

    Raises:
        ExportError: nothing in it can be laid out better than ONNX Runtime does by itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = optimised(source, Path(folder, "optimised.onnx"))
    if not pass_blocked(model):
        raise ExportError(
            "no value that passes the edge of a branch is in blocks on this processor, so"
            " --for-this-processor gains nothing: export without it"
        )
    take_facts(model, onnx_package().load(source), processor=machine.kind())
    out.write_bytes(model.SerializeToString())


def refuse_other_processor(path: Path) -> None:
    """Refuse a file that was laid out for another kind of processor.

    Such a file may be read there and compute nonsense, so this comes before it is opened.

    Raises:
        ExportError: it was.
    """
    model = onnx_package().load(path, load_external_data=False)
    said = next((each.value for each in model.metadata_props if each.key == KEY), "{}")
    try:
        wanted = json.loads(said).get("processor", "")
    except (ValueError, AttributeError, RecursionError):  # who reads all facts says what is wrong
        return
    here = machine.kind()
    if wanted and wanted != here:
        raise ExportError(
            f"expected {path} on a processor that it was laid out for ({wanted}), but this is"
            f" {here}: export it here, or without --for-this-processor"
        )
