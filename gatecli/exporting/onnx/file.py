"""ONNX files: plain for static networks.

For dynamic ones with `If`, so that ONNX Runtime computes only what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gatecli.errors import ExportError, first_line
from gatecli.exporting.marks import Leave, Opened
from gatecli.exporting.onnx.if_branches import Otherwise, Surgeon
from gatecli.exporting.onnx.layout import skip_branches
from gatecli.exporting.quiet import quiet, reason

if TYPE_CHECKING:
    from onnx import ModelProto

LOWEST, HIGHEST = 18, 25  # opsets that torch's exporter writes
MISSING = "ONNX files need onnx, onnxscript and onnxruntime: pip install 'gatecli[onnx]'"


def write_onnx(
    parts: Opened, image: Tensor, path: Path, opset: int, facts: dict[str, str], decisions: bool
) -> Callable[[Tensor], Tensor]:
    """Write `parts` to `path`.

    Returns a function that runs the file with ONNX Runtime, images (N, C, H, W) -> logits.

    Args: decisions: the exit taken and each gate's decision as further outputs.
    Raises: ExportError where a package is missing, the opset is out of range, or an operation
    cannot be converted.
    """
    onnx = _package()
    model = _converted(parts, image, opset)
    if parts.dynamic:
        _branching(model, parts, decisions)
    written = next(each.version for each in model.opset_import if each.domain == "")
    if written != opset:
        raise ExportError(
            f"the network needs ONNX opset {written}, but --opset is {opset}: leave it out, or ask"
            f" for {written}"
        )
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=value)
    try:
        onnx.checker.check_model(model, full_check=False)
        path.write_bytes(model.SerializeToString())
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ExportError(
            f"the ONNX file that came out is not valid: {first_line(error)}"
        ) from error
    return runner(path)


def runner(path: Path) -> Callable[[Tensor], Tensor]:
    """The file's logits of images, by ONNX Runtime on the CPU."""
    session = session_of(path)
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def refuse_other_files(path: Path) -> None:
    """Raises ExportError where an ONNX file has weights in other files, which it names itself, or
    is none; export writes all into one.
    """
    onnx = _package()
    if not path.is_file():
        raise ExportError(
            f"expected {path} to be an ONNX file, but"
            f" {'it is no regular file' if path.exists() else 'there is no such file'}"
        )
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
        if described.message_type is not None:
            found += [value] if hasattr(value, "DESCRIPTOR") else value
    return found


def session_of(path: Path) -> Any:
    """ONNX Runtime's session of a file, on the CPU.

    Raises ExportError where the file cannot be read, or the package is missing.
    """
    if not find_spec("onnxruntime"):
        raise ExportError("running ONNX needs onnxruntime: pip install 'gatecli[onnx]'")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    if torch.get_num_threads() == 1:
        options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has exceptions of its own for each kind of damage
        raise ExportError(f"ONNX Runtime cannot read {path}: {first_line(error)}") from error


def _package() -> Any:
    if not all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        raise ExportError(MISSING)
    import onnx

    return onnx


def _converted(parts: Opened, image: Tensor, opset: int) -> ModelProto:
    if not LOWEST <= opset <= HIGHEST:
        raise ExportError(f"expected --opset to be between {LOWEST} and {HIGHEST}, but got {opset}")
    batch = None if parts.dynamic else ({0: torch.export.Dim("batch", min=1)},)
    example = (
        image if parts.dynamic else torch.cat([image, image])
    )  # torch takes a size of 1 for a constant
    try:
        with torch.no_grad(), quiet():
            program = torch.onnx.export(
                parts.module,
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=parts.names,
                dynamic_shapes=batch,
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever it comes to
        raise ExportError(
            f"torch {torch.__version__} cannot convert the network to ONNX: {reason(error)}"
        ) from error
    assert program is not None
    return program.model_proto


def _branching(model: ModelProto, parts: Opened, decisions: bool) -> None:
    """Put the marks to use.

    An `If` around each branch, then one at each exit, the last first, as they lie within each
    other.
    """

    surgeon = Surgeon(model.graph)
    wanted = ["logits"]
    if decisions:
        wanted += _decisions(surgeon, parts)
    surgeon.outputs = set(wanted)
    skip_branches(surgeon, parts.branches)
    for number, leave in reversed(list(enumerate(parts.leaves))):
        behind = surgeon.behind(
            [name for name in wanted if name not in ("logits", "exit")],
            "logits",
            [leave.decision, leave.logits],
        ) + (["exit"] if decisions else [])
        surgeon.compute_only_if(
            leave.decision,
            ["logits", *behind],
            _leaving(surgeon, number, leave, behind),
            [leave.logits],
            negate=True,
        )
    surgeon.done(wanted)


def _decisions(surgeon: Surgeon, parts: Opened) -> list[str]:
    """Outputs for each gate's decisions, 1 where a unit ran, and for the exit taken.

    Its number from 0 on, the number of exits for none.
    """
    names = []
    for site, decision in parts.gates.items():
        surgeon.alias(decision, f"gate.{site}")
        names.append(f"gate.{site}")
    if parts.leaves:
        surgeon.add_output("exit", torch.tensor([len(parts.leaves)]))
        names.append("exit")  # last: nothing is computed for it
    return names


def _leaving(surgeon: Surgeon, number: int, leave: Leave, behind: Sequence[str]) -> Otherwise:
    """What stands for the results of a sample that leaves here.

    This exit's logits, its number, and gates that did not run.
    """
    from onnx import helper, numpy_helper

    nodes = [helper.make_node("Identity", [leave.logits], [f"logits/leave{number}"])]
    for name in behind:
        value = torch.tensor([number]) if name == "exit" else torch.zeros(surgeon.shape_of(name))
        nodes.append(
            helper.make_node(
                "Constant",
                [],
                [f"{name}/leave{number}"],
                value=numpy_helper.from_array(value.numpy()),
            )
        )
    return Otherwise(nodes, [node.output[0] for node in nodes])
