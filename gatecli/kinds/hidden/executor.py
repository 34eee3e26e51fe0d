"""Open hidden units alone: of the layers between the first and the last what these need.

For one image those that are open, in a batch those that are open for any of its images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gatecli.graph.ops import mask, module_of
from gatecli.lowering.gather import take
from gatecli.lowering.inplace import Executor
from gatecli.lowering.region import Function, convolved, function_of
from gatecli.traced.traced import parts_of

__all__ = ["HiddenLayers", "HiddenValue", "Step", "steps_of"]

ROWS, APART, COLUMNS, PLAIN = "rows", "apart", "columns", "plain"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One node between the first layer and the last.

    Attributes:
        how: Which of a layer's weights belong to a unit: its ROWS, its COLUMNS, or APART what it
            has for each channel; PLAIN: it has none.
        path: The layer's.
        run: The node as a function (root, its inputs), where it is plain.
        inputs: Names of the values that it reads.
        output: The name of its value.
        is_value: Whether that is what is masked.
        parts: In how many equal parts that value is cut, a row of each for a unit.
    """

    how: str
    path: str
    run: Function | None
    inputs: tuple[str, ...]
    output: str
    is_value: bool = False
    parts: int = 1


def steps_of(
    root: nn.Module, nodes: Sequence[fx.Node], hows: Sequence[str | None], value: fx.Node
) -> list[Step]:
    """The nodes as steps, `hows` one each; None: plain."""
    masked = {user: value for user in value.users if user.target is mask}
    steps = []
    for node, known in zip(nodes, hows, strict=True):
        inputs = [masked.get(source, source).name for source in node.all_input_nodes]
        how = known or PLAIN
        run = function_of(node) if how == PLAIN else None
        path = str(node.target) if module_of(root, node) is not None else ""
        step = Step(
            how=how,
            path=path,
            run=run,
            inputs=tuple(inputs),
            output=node.name,
            is_value=node is value,
            parts=parts_of(node)[0] if how == ROWS else 1,
        )
        steps.append(step)
    return steps


class HiddenLayers(Executor):
    """`last(z * hidden(x))`, with squeeze-and-excitation between where there is one.

    Args:
        root: The network's modules.
        steps: From the first layer to the last.
        axis: The dimension that the units are.
    """

    def __init__(self, root: nn.Module, steps: Sequence[Step], axis: int) -> None:
        super().__init__(root)
        self.steps = steps
        self.axis = axis

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """`x` (N, ...), `z` (N, units) -> what the last step gives, (N, ...)."""
        width = self._width()
        z = z if z.shape[1] == width else z.repeat_interleave(width // z.shape[1], 1)
        if len(x) == 0:
            return self._run(x, None, None)
        open_ = (z[0] if len(z) == 1 else z.amax(0)).nonzero().reshape(-1)
        if open_.numel() == 0:
            return self._nothing(x, z)
        is_whole = open_.numel() == width
        part = None if is_whole else open_
        if len(z) == 1 or (is_whole and bool(z.all())):
            return self._run(x, part, None)
        return self._run(x, part, z if is_whole else z.index_select(1, open_))

    def _width(self) -> int:
        """How many channels the value has."""
        first = self.steps[0]
        return len(self._layer(first).weight) // first.parts

    def _layer(self, step: Step) -> Any:
        return self.root.get_submodule(step.path)

    def _run(self, x: Tensor, part: Tensor | None, z: Tensor | None) -> Tensor:
        """All steps for the units `part` alone, (k,); their values times `z` (N, k) if given."""
        values = {self.steps[0].inputs[0]: x}
        result = x
        for step in self.steps:
            given = [values[name] for name in step.inputs]
            if step.run is not None:
                result = step.run(self.root, *given)
            else:
                rows = part if part is None else _in_parts(part, step.parts, self._width())
                result = _partial(self._layer(step), step.how, given[0], rows)
            if step.is_value and z is not None:
                result = mask(result, z, self.axis)
            values[step.output] = result
        return result

    def _nothing(self, x: Tensor, z: Tensor) -> Tensor:
        """What the last step makes of zeros; nothing is multiplied."""
        if torch.is_grad_enabled():  # one unit's: zeros that x has a share in
            one = torch.zeros(1, dtype=torch.long, device=x.device)
            return self._run(x, one, z[:, :1])
        none = self._run(x[:0], None, None)
        zeros = none.new_zeros(len(x), *none.shape[1:])
        last = self._layer(self.steps[-1])
        return zeros if last.bias is None else zeros + _as_channels(last.bias, zeros, self.axis)


class HiddenValue(HiddenLayers):
    """`z * hidden(x)`, in full width, for others to read."""

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """`x` (N, ...), `z` (N, units) -> the value, zero where units are closed."""
        width = self._width()
        z = z if z.shape[1] == width else z.repeat_interleave(width // z.shape[1], 1)
        open_ = z.amax(0).nonzero().reshape(-1) if len(x) else z.new_zeros(0, dtype=torch.long)
        if open_.numel() == width or len(x) == 0 or torch.is_grad_enabled():
            return self._run(x, None, z)
        if open_.numel() == 0:
            none = self._run(x[:0], None, None)
            return none.new_zeros(len(x), *none.shape[1:])
        some = self._run(x, open_, z.index_select(1, open_))
        shape = list(some.shape)
        shape[self.axis] = width
        return some.new_zeros(shape).index_copy_(self.axis, open_, some)


def _in_parts(part: Tensor, count: int, width: int) -> Tensor:
    """The outputs that are units, (k,), in each of `count` parts of `width`: (count * k,)."""
    return part if count == 1 else torch.cat([part + number * width for number in range(count)])


def _partial(layer: Any, how: str, x: Tensor, part: Tensor | None) -> Tensor:
    """What a layer gives of the units `part`, or makes of them; all for None."""
    if part is None:
        result: Tensor = layer(x)
    elif isinstance(layer, nn.BatchNorm2d):
        statistics: Any = (layer.running_mean, layer.running_var)
        mean, var = (take(tensor, part) for tensor in statistics)
        weight, bias = _some(layer.weight, part), _some(layer.bias, part)
        result = F.batch_norm(x, mean, var, weight, bias, eps=layer.eps)
    elif how == COLUMNS:
        if isinstance(layer, nn.Linear):
            result = F.linear(x, layer.weight.index_select(1, part), layer.bias)
        else:
            result = convolved(layer, x, None, part)
    else:
        result = _rows(layer, x, take(layer.weight, part), _some(layer.bias, part))
    return result


def _rows(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A layer with some of its rows; a depthwise convolution reads as many channels as it has."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    if layer.groups == 1:
        result: Tensor = layer._conv_forward(x, weight, bias)
        return result
    return _depthwise(layer, x, weight, bias)


def _depthwise(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`_conv_forward` with as many groups as there are channels."""
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = (0, 0)
    return F.conv2d(x, weight, bias, layer.stride, padding, layer.dilation, len(weight))


def _some(tensor: Tensor | None, part: Tensor) -> Tensor | None:
    return None if tensor is None else take(tensor, part)


def _as_channels(bias: Tensor, like: Tensor, axis: int) -> Tensor:
    """A bias (C,) in a shape that is added to (N, C, H, W), or to (N, ..., C) where axis is -1."""
    return bias if axis == -1 else bias.reshape(-1, *[1] * (like.ndim - 2))
