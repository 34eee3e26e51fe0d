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
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gatecli.exporting.marks import Branch
from gatecli.exporting.onnx.if_branches import Otherwise, Surgeon
from gatecli.exporting.onnx.nodes import copied, names_read

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
        mean = _Mean.of(surgeon, node, result)
        same = known.get((shortcut, signature))
        if same is None:
            nodes += mean.steps(end, f"{name}/skip")
        else:
            nodes.append(_identity(same, f"{name}/skip"))
        surgeon.move_behind(result, node, mean.steps(result, name))
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
            is_mean = not MEANS[node.op_type] or bool(_only_products(surgeon, node))
            found.setdefault(f"{node.op_type}{_keeps_dimensions(node)}{is_mean}", node)
    return found


def _keeps_dimensions(node: NodeProto) -> bool:
    return bool(next((each.i for each in node.attribute if each.name == "keepdims"), 1))


def _identity(value: str, name: str) -> NodeProto:
    from onnx import helper

    return helper.make_node("Identity", [value], [name])


@dataclass(frozen=True, kw_only=True)
class _Mean:
    """A mean or sum over positions as a pooling, which ONNX Runtime can do in its own layout.

    Attributes:
        keeps: whether height and width stay, as 1.
        count: the name of what the mean is to be multiplied with; empty: nothing.
    """

    keeps: bool
    count: str

    @classmethod
    def of(cls, surgeon: Surgeon, node: NodeProto, value: str) -> _Mean:
        """In the place of a reduction of that value.

        Who multiplies matrices multiplies with the count on the way.
        """
        keeps, count = _keeps_dimensions(node), ""
        height, width = surgeon.shape_of(value)[2:]
        products = _only_products(surgeon, node)
        for product in products:
            _multiply(product, height * width)
        if MEANS[node.op_type] and not products:
            count = f"{node.output[0]}/count"
            surgeon.add_constant(count, torch.tensor(float(height * width)))
        return cls(keeps=keeps, count=count)

    def steps(self, value: str, name: str) -> list[NodeProto]:
        """The nodes that give it of a value, under this name."""
        from onnx import helper

        found = f"{name}/mean"
        steps = [helper.make_node("GlobalAveragePool", [value], [found])]
        if self.count:
            steps.append(helper.make_node("Mul", [found, self.count], [f"{name}/sum"]))
            found = f"{name}/sum"
        last = "Identity" if self.keeps else "Flatten"
        steps.append(helper.make_node(last, [found], [name]))
        return steps


def _only_products(surgeon: Surgeon, node: NodeProto) -> list[NodeProto]:
    """The products of matrices that a sum goes into, where it goes nowhere else."""
    name = node.output[0]
    if not MEANS[node.op_type] or name in surgeon.outputs:
        return []
    readers = [each for each in surgeon.nodes if name in names_read(each)]
    able = all(each.op_type == "Gemm" and each.input[0] == name for each in readers)
    return readers if able else []


def _multiply(product: NodeProto, factor: int) -> None:
    """Multiply what a `Gemm` gives, but for what it adds."""
    from onnx import helper

    before = next((each for each in product.attribute if each.name == "alpha"), None)
    if before is None:
        product.attribute.append(helper.make_attribute("alpha", float(factor)))
    else:
        before.f *= factor
