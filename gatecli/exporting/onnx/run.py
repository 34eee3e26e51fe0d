"""Run ONNX files with ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from gatecli.errors import ExportError, first_line
from gatecli.exporting.facts import KEY, Facts
from gatecli.exporting.onnx.one_file import refuse_other_files
from gatecli.exporting.onnx.packages import runtime_package
from gatecli.exporting.onnx.processor import refuse_other_processor
from gatecli.exporting.registry import Logits
from gatecli.exporting.runner import Answer, Runner

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
    facts = _facts(session, path)
    names = [output.name for output in session.get_outputs()]
    if "logits" not in names:
        raise ExportError(
            f"expected {path} to be an ONNX file that gatecli export wrote, but it returns"
            f" {', '.join(names)}, and no logits"
        )

    def run(image: Tensor, wanted: list[str]) -> list[Any]:
        try:
            return list(session.run(wanted, {"images": image.numpy()}))
        except Exception as error:  # ONNX Runtime's own, for all that a graph may do
            raise ExportError(f"ONNX Runtime cannot run {path}: {first_line(error)}") from error

    def answer(image: Tensor) -> Answer:
        return _told(facts, dict(zip(names, run(image, names), strict=True)), path)

    return Runner(answer=answer, call=lambda image: run(image, ["logits"]), facts=facts)


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


def _facts(session: Any, path: Path) -> Facts:
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None:
        raise ExportError(
            f"expected {path} to be an ONNX file that gatecli export wrote, but it does not say how"
            " its images are to be prepared"
        )
    return Facts.from_json(text, str(path))


def _told(facts: Facts, found: Mapping[str, Any], path: Path) -> Answer:
    """What a file's outputs say of one image.

    Args:
        facts: what the file says of itself.
        found: the outputs by name.
        path: names the file in errors.

    Raises:
        ExportError: they are not as the facts have them.
    """
    logits = numpy.asarray(found["logits"])
    if logits.dtype != numpy.float32 or logits.shape != (1, facts.num_classes):
        raise ExportError(
            f"expected {path} to return float32 logits (1, {facts.num_classes}), but got"
            f" {logits.dtype} {logits.shape}: export it again"
        )
    skipped = None
    if all(f"gate.{site}" in found for site in facts.gates):
        skipped = [site for site in facts.gates if not numpy.any(found[f"gate.{site}"])]
    return Answer(
        logits=torch.from_numpy(logits[0]), exit=_taken(facts, found, path), skipped=skipped
    )


def _taken(facts: Facts, found: Mapping[str, Any], path: Path) -> int | None:
    """The number of the exit taken; None: the file does not say."""
    if "exit" not in found:
        return None if facts.exits else 0
    taken = numpy.asarray(found["exit"])
    if taken.dtype.kind not in "iu" or taken.size != 1 or not 0 <= taken.item() <= len(facts.exits):
        raise ExportError(
            f"expected {path} to return the number of one of {len(facts.exits)} exits, but got"
            f" {taken.dtype} {taken.shape}: export it again"
        )
    return int(taken.item())
