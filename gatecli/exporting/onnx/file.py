"""ONNX files: plain for static networks, with `If` for dynamic ones.

ONNX Runtime computes only the branch of an `If` that is taken.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gatecli.errors import ExportError, first_line
from gatecli.exporting.marks import Opened, masked
from gatecli.exporting.onnx.exits import leave_early
from gatecli.exporting.onnx.if_branches import Surgeon
from gatecli.exporting.onnx.layout import skip_branches
from gatecli.exporting.onnx.packages import onnx_package
from gatecli.exporting.onnx.run import logits_of
from gatecli.exporting.quiet import quiet, reason
from gatecli.exporting.registry import Logits, Task

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["Names", "converted", "model_of", "valid_bytes", "write_onnx"]

LOWEST = 18  # opsets that torch's exporter writes
HIGHEST = 25


def write_onnx(task: Task) -> Logits:
    """Write a network as ONNX.

    Returns:
        A function that runs the file with ONNX Runtime.

    Raises:
        ExportError: a package is missing, the opset is out of range, or an operation cannot be
            converted.
    """
    model = model_of(task)
    for key, value in task.facts.items():
        model.metadata_props.add(key=key, value=value)
    path = task.files[0]
    path.write_bytes(valid_bytes(model))
    return logits_of(path)


def model_of(task: Task) -> ModelProto:
    """The network of a task as an ONNX model, without the facts.

    Raises:
        ExportError: as of `write_onnx`.
    """
    onnx_package()
    parts = task.parts if task.dynamic else masked(task.network, decisions=task.decisions)
    example = task.image if parts.dynamic else torch.cat([task.image, task.image])
    names = Names(takes=["images"], gives=parts.names)
    model = converted(parts.module, [example], names, task.opset, batches=not parts.dynamic)
    if parts.dynamic:
        _branching(model, parts, decisions=task.decisions)
    return model


@dataclass(frozen=True, kw_only=True)
class Names:
    """What a model calls its inputs and outputs, in order."""

    takes: list[str]
    gives: list[str]


def converted(
    module: nn.Module, examples: Sequence[Tensor], names: Names, opset: int, *, batches: bool
) -> ModelProto:
    """A module as torch's exporter makes it, every branch computed.

    Args:
        module: takes as many tensors as there are examples.
        examples: for batches of two samples, as torch takes a size of 1 for a constant.
        names: of its inputs and outputs.
        opset: version of ONNX's operations.
        batches: the model takes batches of any size, not only the examples' own.

    Raises:
        ExportError: the opset is out of range, or an operation cannot be converted.
    """
    if not LOWEST <= opset <= HIGHEST:
        raise ExportError(f"expected --opset to be between {LOWEST} and {HIGHEST}, but got {opset}")
    free = {0: torch.export.Dim("batch", min=1)}
    try:
        with torch.no_grad(), quiet():
            program = torch.onnx.export(
                module,
                tuple(examples),
                dynamo=True,
                input_names=names.takes,
                output_names=names.gives,
                dynamic_shapes=_shapes(module, [free] * len(examples)) if batches else None,
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever it comes to
        raise ExportError(
            f"torch {torch.__version__} cannot convert the network to ONNX: {reason(error)}"
        ) from error
    assert program is not None
    _check_opset(program.model_proto, opset)
    return program.model_proto


def _shapes(module: nn.Module, shapes: list[Any]) -> tuple[Any, ...]:
    """Shapes of a module's inputs as torch.export wants them: those of `*values` are one."""
    kinds = [each.kind for each in inspect.signature(module.forward).parameters.values()]
    return (tuple(shapes),) if inspect.Parameter.VAR_POSITIONAL in kinds else tuple(shapes)


def valid_bytes(model: ModelProto) -> bytes:
    """A model as the bytes of a file.

    Raises:
        ExportError: it is not valid, or too large for one file.
    """
    onnx = onnx_package()
    try:
        onnx.checker.check_model(model, full_check=False)
        written: bytes = model.SerializeToString()
        return written
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ExportError(
            f"the ONNX file that came out is not valid: {first_line(error)}"
        ) from error


def _branching(model: ModelProto, parts: Opened, *, decisions: bool) -> None:
    """Put the marks to use: an `If` around each branch, then one at each exit."""
    surgeon = Surgeon(model.graph)
    outputs = ["logits"]
    if decisions:
        outputs += _add_decisions(surgeon, parts)
    surgeon.outputs = set(outputs)
    skip_branches(surgeon, parts.branches)
    leave_early(surgeon, parts.leaves, outputs)
    surgeon.done(outputs)


def _add_decisions(surgeon: Surgeon, parts: Opened) -> list[str]:
    """Add outputs for each gate's decisions, 1 where a unit ran, and for the exit taken.

    An exit is told by its number from 0 on, none by the number of exits.
    """
    names = []
    for site, decision in parts.gates.items():
        surgeon.alias(decision, f"gate.{site}")
        names.append(f"gate.{site}")
    if parts.leaves:
        surgeon.add_output("exit", torch.tensor([len(parts.leaves)]))
        names.append("exit")  # last: nothing is computed for it
    return names


def _check_opset(model: ModelProto, opset: int) -> None:
    written = next(each.version for each in model.opset_import if each.domain == "")
    if written != opset:
        raise ExportError(
            f"the network needs ONNX opset {written}, but --opset is {opset}: leave it out, or ask"
            f" for {written}"
        )
