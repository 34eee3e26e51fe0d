"""What the named outputs of an exported file say of single images, whatever runtime gave them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from gatecli.errors import ExportError
from gatecli.exporting.facts import Facts
from gatecli.exporting.runner import Answer, Runner

__all__ = ["facts_in", "runner_of"]

Compute = Callable[[Tensor, list[str]], list[Any]]  # an image, names of outputs -> their values


def runner_of(path: Path, facts: Facts, names: list[str], compute: Compute) -> Runner:
    """What answers for a file.

    Args:
        path: names the file in errors.
        facts: what it says of itself.
        names: of its outputs.
        compute: runs it.

    Raises:
        ExportError: it returns no logits.
    """
    if "logits" not in names:
        raise ExportError(
            f"expected {path} to be a file that gatecli export wrote, but it returns"
            f" {', '.join(names)}, and no logits"
        )

    def answer(image: Tensor) -> Answer:
        return _told(facts, dict(zip(names, compute(image, names), strict=True)), path)

    return Runner(answer=answer, call=lambda image: compute(image, ["logits"]), facts=facts)


def facts_in(text: str | None, path: Path) -> Facts:
    """The facts in a file's metadata.

    Raises:
        ExportError: there are none, or they cannot be read.
    """
    if text is None:
        raise ExportError(
            f"expected {path} to be a file that gatecli export wrote, but it does not say how"
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
    logits = _logits(found["logits"], facts, path)
    skipped = None
    if all(f"gate.{site}" in found for site in facts.gates):
        skipped = [site for site in facts.gates if not numpy.any(found[f"gate.{site}"])]
    return Answer(
        logits=torch.from_numpy(logits[0]), exit=_taken(facts, found, path), skipped=skipped
    )


def _logits(value: Any, facts: Facts, path: Path) -> Any:
    """A file's logits of one image as an array (1, K).

    Raises:
        ExportError: they are not as the facts have them.
    """
    logits = numpy.asarray(value)
    if logits.dtype != numpy.float32 or logits.shape != (1, facts.num_classes):
        raise ExportError(
            f"expected {path} to return float32 logits (1, {facts.num_classes}), but got"
            f" {logits.dtype} {logits.shape}: export it again"
        )
    return logits


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
