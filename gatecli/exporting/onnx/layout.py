"""What an `If` around a gated branch computes, and what stands for it, so that ONNX Runtime loses
little at the border between graphs.

Values cross it in plain layout (NCHW), while ONNX Runtime's convolutions, and what it can fuse with
them, work in a blocked one. So that a branch is blocked from its entry to its end:
- the shortcut passes a 1x1 max-pooling, which changes nothing, but has a blocked result: then the
addition and the ReLU behind it are fused with the last convolution;
- a projection on the shortcut is computed in both branches, its weights in both;
- where the next gate, or the classifier, takes means over positions, the branch gives them as a
further result, and what stands for it hands on those that were known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gatecli.exporting.marks import Branch
from gatecli.exporting.onnx.if_branches import Otherwise, Surgeon, copied

if TYPE_CHECKING:
    from onnx import NodeProto

BLOCK = 16  # channels in a block of ONNX Runtime's layout, at most
MEANS = {"ReduceMean": False, "ReduceSum": True}  # operation -> whether it is a sum


def skip_branches(surgeon: Surgeon, branches: list[Branch]) -> None:
    """An `If` around each branch, in the order of execution."""
    means: dict[tuple[str, str], str] = {}  # value, signature of the operation -> what it gives
    for branch in branches:
        _skip(surgeon, branch, means)


def _skip(surgeon: Surgeon, branch: Branch, means: dict[tuple[str, str], str]) -> None:
    result, shortcut = branch.result, branch.shortcut
    if shortcut is None:
        surgeon.compute_only_if(branch.decision, [result], _zeros(surgeon, result))
        return
    projection = _projection(surgeon, branch, shortcut)
    if projection is None:
        _hold_layout(surgeon, branch, shortcut)
    nodes, end = _instead(branch, shortcut, projection)
    known = means if projection is None and not branch.rectify else {}
    results, outputs = [result], [end]
    for signature, node in _means_of(surgeon, result).items():
        name = node.output[0]
        nodes.append(_same_mean(node, f"{name}/skip", end, known.get((shortcut, signature))))
        _blocked_mean(surgeon, node, result)
        means[result, signature] = name
        results.append(name)
        outputs.append(f"{name}/skip")
    kept = shortcut if projection is None else projection.input[0]
    surgeon.compute_only_if(branch.decision, results, Otherwise(nodes, outputs), [kept])


def _zeros(surgeon: Surgeon, result: str) -> Otherwise:
    from onnx import helper, numpy_helper

    value = numpy_helper.from_array(torch.zeros(1).numpy())
    surgeon.add_constant(f"{result}/shape", torch.tensor(surgeon.shape_of(result)))
    return Otherwise(
        [helper.make_node("ConstantOfShape", [f"{result}/shape"], [f"{result}/skip"], value=value)],
        [f"{result}/skip"],
    )


def _projection(surgeon: Surgeon, branch: Branch, shortcut: str) -> NodeProto | None:
    """The convolution that gives the shortcut, where nothing else needs it."""
    maker = surgeon.maker(shortcut)
    if maker is None or maker.op_type != "Conv":
        return None
    return (
        maker
        if id(maker) in surgeon.needed_only_by([branch.result], {branch.decision, maker.input[0]})
        else None
    )


def _instead(
    branch: Branch, shortcut: str, projection: NodeProto | None
) -> tuple[list[NodeProto], str]:
    """The nodes that give what stands for a branch's result, and its name."""
    from onnx import helper

    end, source = f"{branch.result}/skip", shortcut
    nodes: list[NodeProto] = []
    if projection is not None:
        again = copied(projection)
        source = again.output[0] = f"{shortcut}/skip"
        nodes.append(again)
    return [
        *nodes,
        helper.make_node("Relu" if branch.rectify else "Identity", [source], [end]),
    ], end


def _hold_layout(surgeon: Surgeon, branch: Branch, shortcut: str) -> None:
    """Let the branch read the shortcut through a 1x1 max-pooling, where it adds it to a
    convolution's result that is blocked.
    """
    from onnx import helper

    region = surgeon.needed_only_by([branch.result], {branch.decision, shortcut})
    readers = [node for node in surgeon.nodes if id(node) in region and shortcut in node.input]
    kinds, shape = {node.op_type for node in readers}, surgeon.shape_of(shortcut)
    if not {"Add", "Conv"} <= kinds or len(shape) != 4 or shape[1] % BLOCK:
        return
    same = f"{shortcut}/same{surgeon.count}"
    for node in readers:
        for place, name in enumerate(node.input):
            node.input[place] = same if name == shortcut else name
    surgeon.insert_before(
        readers[0], helper.make_node("MaxPool", [shortcut], [same], kernel_shape=[1, 1])
    )


def _means_of(surgeon: Surgeon, value: str) -> dict[str, NodeProto]:
    """The nodes that take means or sums of a value over height and width.

    The first of each kind, by its signature.
    """
    found: dict[str, NodeProto] = {}
    for node in surgeon.nodes:
        if (
            node.op_type in MEANS
            and node.input[0] == value
            and len(node.input) == 2
            and surgeon.integers(node.input[1]) in ([2, 3], [-2, -1], [3, 2], [-1, -2])
        ):
            found.setdefault(f"{node.op_type}{_keeps_dimensions(node)}", node)
    return found


def _keeps_dimensions(node: NodeProto) -> bool:
    return bool(next((each.i for each in node.attribute if each.name == "keepdims"), 1))


def _same_mean(node: NodeProto, name: str, value: str, known: str | None) -> NodeProto:
    """The mean of what stands for the branch's result: that of the shortcut, where it is known."""
    from onnx import helper

    if known is not None:
        return helper.make_node("Identity", [known], [name])
    again = copied(node)
    again.input[0], again.output[0] = value, name
    return again


def _blocked_mean(surgeon: Surgeon, node: NodeProto, value: str) -> None:
    """Put a pooling, which ONNX Runtime can do in its own layout, in the place of a reduction."""
    from onnx import helper

    name, (height, width) = node.output[0], surgeon.shape_of(value)[2:]
    steps = [helper.make_node("GlobalAveragePool", [value], [f"{name}/mean"])]
    if MEANS[node.op_type]:
        surgeon.add_constant(f"{name}/count", torch.tensor(float(height * width)))
        steps.append(
            helper.make_node("Mul", [steps[-1].output[0], f"{name}/count"], [f"{name}/sum"])
        )
    last = "Identity" if _keeps_dimensions(node) else "Flatten"
    steps.append(helper.make_node(last, [steps[-1].output[0]], [name]))
    surgeon.move_behind(value, node, steps)
