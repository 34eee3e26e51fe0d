"""Run ONNX files with ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatecli.errors import ExportError, first_line
from gatecli.exporting.facts import KEY
from gatecli.exporting.onnx.one_file import refuse_other_files
from gatecli.exporting.onnx.packages import runtime_package
from gatecli.exporting.onnx.processor import refuse_other_processor
from gatecli.exporting.outputs import facts_in, runner_of
from gatecli.exporting.registry import Logits
from gatecli.exporting.runner import Runner

__all__ = ["logits_of", "open_onnx", "session_of"]


def open_onnx(path: Path) -> Runner:
    """Make an ONNX file that export wrote ready to run.

    Raises:
        ExportError: it is no such file, was laid out for another processor, or a package is
            missing.
    """
    refuse_other_files(path)
    refuse_other_processor(path)
    session = session_of(path)
    facts = facts_in(session.get_modelmeta().custom_metadata_map.get(KEY), path)
    names = [output.name for output in session.get_outputs()]

    def compute(image: Tensor, wanted: list[str]) -> list[Any]:
        try:
            return list(session.run(wanted, {"images": image.numpy()}))
        except Exception as error:  # ONNX Runtime's own, for all that a graph may do
            raise ExportError(f"ONNX Runtime cannot run {path}: {first_line(error)}") from error

    return runner_of(path, facts, names, compute)


def session_of(path: Path) -> Any:
    """ONNX Runtime's session of a file.

    Raises:
        ExportError: the file cannot be read, or the package is missing.
    """
    onnxruntime = runtime_package()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    if torch.get_num_threads() == 1:
        options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has exceptions of its own for each kind of damage
        raise ExportError(f"ONNX Runtime cannot read {path}: {first_line(error)}") from error


def logits_of(path: Path) -> Logits:
    """A function that gives a file's logits. Raises ExportError as `session_of`."""
    session = session_of(path)
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
