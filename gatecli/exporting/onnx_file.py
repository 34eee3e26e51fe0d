"""ONNX files: plain for static networks; for dynamic ones with `If`, so that ONNX Runtime computes only what runs."""
from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gatecli.errors import ExportError
from gatecli.exporting.conditions import Surgeon
from gatecli.exporting.opened import Leave, Opened

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

LOWEST, HIGHEST = 18, 25  # opsets that torch's exporter writes
MISSING = "writing ONNX needs onnx, onnxscript and onnxruntime: pip install 'gatecli[onnx]'"


def write_onnx(parts: Opened, image: Tensor, path: Path, opset: int, facts: dict[str, str], decisions: bool) -> Callable[[Tensor], Tensor]:
    """Write `parts` to `path`; returns a function that runs the file with ONNX Runtime, images (N, C, H, W) -> logits.

    Args: decisions: the exit taken and each gate's decision as further outputs.
    Raises: ExportError where a package is missing, the opset is out of range, or an operation cannot be converted.
    """
    onnx = _package()
    model = _converted(parts, image, opset)
    if parts.dynamic:
        _branching(model, parts, decisions)
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=value)
    try:
        onnx.checker.check_model(model, full_check=False)
        path.write_bytes(model.SerializeToString())
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ExportError(f"the ONNX file that came out is not valid: {_first_line(error)}") from error
    return runner(path)


def runner(path: Path) -> Callable[[Tensor], Tensor]:
    """The file's logits of images, by ONNX Runtime on the CPU."""
    _package()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _package() -> Any:
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise ExportError(MISSING) from error
    return onnx


def _converted(parts: Opened, image: Tensor, opset: int) -> ModelProto:
    if not LOWEST <= opset <= HIGHEST:
        raise ExportError(f"expected --opset to be between {LOWEST} and {HIGHEST}, but got {opset}")
    batch = None if parts.dynamic else ({0: torch.export.Dim("batch", min=1)},)
    example = image if parts.dynamic else torch.cat([image, image])  # torch takes a size of 1 for a constant
    try:
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            program = torch.onnx.export(
                parts.module, (example,), dynamo=True, input_names=["images"], output_names=parts.names, dynamic_shapes=batch, opset_version=opset, verbose=False
            )
    except Exception as error:  # the exporter raises whatever it comes to
        raise ExportError(f"torch cannot convert the network to ONNX: {_cause(error)}") from error
    assert program is not None
    return program.model_proto


def _cause(error: BaseException) -> str:
    """The innermost reason: which operation would not convert."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _branching(model: ModelProto, parts: Opened, decisions: bool) -> None:
    """Put the marks to use: an `If` around each branch, then one at each exit, the last first, as they lie within each other."""
    from onnx import helper

    surgeon = Surgeon(model.graph)
    wanted = ["logits"]
    if decisions:
        wanted += _decisions(surgeon, parts)
    surgeon.outputs = set(wanted)
    for branch in parts.branches:
        if branch.shortcut is None:
            skip = _zeros(surgeon, branch.result)
        else:
            skip = helper.make_node("Relu" if branch.rectify else "Identity", [branch.shortcut], [f"{branch.result}/skip"])
        keep = [] if branch.shortcut is None else [branch.shortcut]
        surgeon.compute_only_if(branch.decision, [branch.result], [skip], keep)
    for number, leave in reversed(list(enumerate(parts.leaves))):
        behind = surgeon.behind([name for name in wanted if name not in ("logits", "exit")], "logits", [leave.decision, leave.logits]) + (["exit"] if decisions else [])
        surgeon.compute_only_if(leave.decision, ["logits", *behind], _leaving(surgeon, number, leave, behind), [leave.logits], negate=True)
    surgeon.done(wanted)


def _zeros(surgeon: Surgeon, result: str) -> NodeProto:
    from onnx import helper, numpy_helper

    shape = [dimension.dim_value for dimension in surgeon.types[result].type.tensor_type.shape.dim]
    value = numpy_helper.from_array(torch.zeros(1).numpy())
    surgeon.add_constant(f"{result}/shape", torch.tensor(shape))
    return helper.make_node("ConstantOfShape", [f"{result}/shape"], [f"{result}/skip"], value=value)


def _decisions(surgeon: Surgeon, parts: Opened) -> list[str]:
    """Outputs for the exit taken, its number from 0 on, the number of exits for none, and for each gate, 1 where its branch ran."""
    names = []
    for branch in parts.branches:
        name = f"gate.{branch.site}"
        surgeon.alias(branch.decision, name)
        names.append(name)
    if parts.leaves:
        surgeon.add_output("exit", torch.tensor([len(parts.leaves)]))
        names.append("exit")  # last: nothing is computed for it
    return names


def _leaving(surgeon: Surgeon, number: int, leave: Leave, behind: Sequence[str]) -> list[NodeProto]:
    """What stands for the results of a sample that leaves here: this exit's logits, its number, and gates that did not run."""
    from onnx import helper, numpy_helper

    nodes = [helper.make_node("Identity", [leave.logits], [f"logits/leave{number}"])]
    for name in behind:
        value = torch.tensor([number]) if name == "exit" else torch.zeros(1, 1)
        nodes.append(helper.make_node("Constant", [], [f"{name}/leave{number}"], value=numpy_helper.from_array(value.numpy())))
    return nodes


def facts_of(network: Any) -> dict[str, str]:
    """What a file says of itself, for whoever runs it: the architecture, how images are read, what came of calibrating."""
    source, spec = network.recipe.source, network.input
    return {
        "gatecli": json.dumps({
            "arch": source.arch, "num_classes": source.num_classes, "input_size": list(spec.size), "channels": spec.channels,
            "mean": spec.mean, "std": spec.std, "classes": (network.recipe.data or {}).get("classes"), "exits": list(network.site_exits),
        }),
    }  # fmt: skip
