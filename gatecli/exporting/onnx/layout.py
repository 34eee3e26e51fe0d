"""What an `If` around a gated branch computes, and what stands for it.

Values pass the border between graphs in plain layout (NCHW), while ONNX Runtime's convolutions, and
what it can fuse with them, work in a blocked one. So that little is lost there, a branch is blocked
from its entry to its end:

- the shortcut passes a 1x1 max-pooling, which changes nothing, but has a blocked result: then the
  addition and the ReLU behind it are fused with the last convolution;
- a projection on the shortcut is computed in both branches, its weights in both;
- where the next gate, or the classifier, takes means over positions, the branch gives them as a
  further result, and what stands for it hands on those that were known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from gatecli.exporting.marks import Branch
from gatecli.exporting.onnx.if_branches import Otherwise, Surgeon
from gatecli.exporting.onnx.nodes import copied

if TYPE_CHECKING:
    from onnx import NodeProto

__all__ = ["skip_branches"]

BLOCK = 16  # channels in a block of ONNX Runtime's layout, at most
MEANS = {"ReduceMean": False, "ReduceSum": True}  # operation -> whether it is a sum
HEIGHT_AND_WIDTH = ([2, 3], [3, 2], [-2, -1], [-1, -2])  # as dimensions to take means over

Means = dict[tuple[str, str], str]  # value, signature of the operation -> what it gives


def skip_branches(surgeon: Surgeon, branches: Sequence[Branch]) -> None:
    """Put an `If` around each branch, in the order of execution."""
    means: Means = {}
    for branch in branches:
        if branch.shortcut is None:
            _skip_to_zeros(surgeon, branch)
        else:
            _skip_to_shortcut(surgeon, branch, branch.shortcut, means)


def _skip_to_zeros(surgeon: Surgeon, branch: Branch) -> None:
    from onnx import helper, numpy_helper

    shape = f"{branch.result}/shape"
    end = f"{branch.result}/skip"
    surgeon.add_constant(shape, torch.tensor(surgeon.shape_of(branch.result)))
    value = numpy_helper.from_array(torch.zeros(1).numpy())
    zeros = helper.make_node("ConstantOfShape", [shape], [end], value=value)
    otherwise = Otherwise(nodes=[zeros], outputs=[end])
    surgeon.compute_only_if(branch.decision, [branch.result], otherwise)


def _skip_to_shortcut(surgeon: Surgeon, branch: Branch, shortcut: str, means: Means) -> None:
    """Skip a branch and the addition behind it; `means`: those known so far, which grow."""
    result = branch.result
    projection = _projection(surgeon, branch, shortcut)
    if projection is None:
        _hold_layout(surgeon, branch, shortcut)
    nodes = _instead(branch, shortcut, projection)
    end = nodes[-1].output[0]
    known = means if projection is None and not branch.rectify else {}
    results = [result]
    outputs = [end]
    for signature, node in _means_of(surgeon, result).items():
        name = node.output[0]
        nodes.append(_same_mean(node, f"{name}/skip", end, known.get((shortcut, signature))))
        _blocked_mean(surgeon, node, result)
        means[result, signature] = name
        results.append(name)
        outputs.append(f"{name}/skip")
    kept = shortcut if projection is None else projection.input[0]
    otherwise = Otherwise(nodes=nodes, outputs=outputs)
    surgeon.compute_only_if(branch.decision, results, otherwise, keep=[kept])


def _projection(surgeon: Surgeon, branch: Branch, shortcut: str) -> NodeProto | None:
    """The convolution that gives the shortcut, where nothing else needs it."""
    maker = surgeon.maker(shortcut)
    if maker is None or maker.op_type != "Conv":
        return None
    region = surgeon.needed_only_by([branch.result], {branch.decision, maker.input[0]})
    return maker if id(maker) in region else None


def _instead(branch: Branch, shortcut: str, projection: NodeProto | None) -> list[NodeProto]:
    """The nodes that give what stands for a branch's result, the last of them that itself."""
    from onnx import helper

    nodes: list[NodeProto] = []
    source = shortcut
    if projection is not None:
        source = f"{shortcut}/skip"
        again = copied(projection)
        again.output[0] = source
        nodes.append(again)
    last = "Relu" if branch.rectify else "Identity"
    nodes.append(helper.make_node(last, [source], [f"{branch.result}/skip"]))
    return nodes


def _hold_layout(surgeon: Surgeon, branch: Branch, shortcut: str) -> None:
    """Let the branch read the shortcut through a 1x1 max-pooling.

    That is of use where the branch adds it to a convolution's result, in whole blocks of channels.
    """
    from onnx import helper

    region = surgeon.needed_only_by([branch.result], {branch.decision, shortcut})
    readers = [node for node in surgeon.nodes if id(node) in region and shortcut in node.input]
    kinds = {node.op_type for node in readers}
    shape = surgeon.shape_of(shortcut)
    if not {"Add", "Conv"} <= kinds or len(shape) != 4 or shape[1] % BLOCK:
        return
    same = f"{shortcut}/same{surgeon.count}"
    for node in readers:
        for place, name in enumerate(node.input):
            node.input[place] = same if name == shortcut else name
    pooling = helper.make_node("MaxPool", [shortcut], [same], kernel_shape=[1, 1])
    surgeon.insert_before(readers[0], pooling)


def _means_of(surgeon: Surgeon, value: str) -> dict[str, NodeProto]:
    """The nodes that take means or sums of a value over height and width.

    The first of each kind, by its signature.
    """
    found: dict[str, NodeProto] = {}
    for node in surgeon.nodes:
        if node.op_type not in MEANS or node.input[0] != value or len(node.input) != 2:
            continue
        if surgeon.integers(node.input[1]) in HEIGHT_AND_WIDTH:
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
    again.input[0] = value
    again.output[0] = name
    return again


def _blocked_mean(surgeon: Surgeon, node: NodeProto, value: str) -> None:
    """Put a pooling, which ONNX Runtime can do in its own layout, in the place of a reduction."""
    from onnx import helper

    name = node.output[0]
    height, width = surgeon.shape_of(value)[2:]
    found = f"{name}/mean"
    steps = [helper.make_node("GlobalAveragePool", [value], [found])]
    if MEANS[node.op_type]:
        count = f"{name}/count"
        surgeon.add_constant(count, torch.tensor(float(height * width)))
        steps.append(helper.make_node("Mul", [found, count], [f"{name}/sum"]))
        found = f"{name}/sum"
    last = "Identity" if _keeps_dimensions(node) else "Flatten"
    steps.append(helper.make_node(last, [found], [name]))
    surgeon.move_behind(value, node, steps)
