"""What an operation gives is told by what it is given: remembered, it is what it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gatecli.graph.known_shapes import KnownShapes

Made = Callable[[Tensor], Tensor | tuple[Tensor, ...]]

OPERATIONS: dict[str, Made] = {
    "convolution": lambda x: F.conv2d(x, x.new_empty(6, 4, 3, 3), padding=1),
    "stride": lambda x: F.conv2d(x, x.new_empty(6, 4, 3, 3), stride=2),
    "norm": lambda x: F.batch_norm(x, x.new_empty(4), x.new_empty(4)),
    "several": lambda x: torch.ops.aten.native_layer_norm(x, [5], None, None, 1e-5),
    "whole number": lambda x: x.long() + 1,
    "number": lambda x: x.long() + 1.0,
    "truth": lambda x: x.long() + True,
    "type": lambda x: x.to(torch.float64),
    "view": lambda x: x.flatten(1)[:, 2:],
    "in place": lambda x: F.relu6(x.clone(), inplace=True),
    "in place, a view": lambda x: x.clone().transpose_(1, 2),
}
LAYOUTS = {
    "as it comes": torch.empty(2, 4, 5, 5, device="meta"),
    "channels last": torch.empty(2, 4, 5, 5, device="meta").to(memory_format=torch.channels_last),
    "half": torch.empty(2, 4, 5, 5, device="meta", dtype=torch.bfloat16),
}


def looks(result: Tensor | tuple[Tensor, ...]) -> list[object]:
    parts = result if isinstance(result, tuple) else (result,)
    return [(each.shape, each.stride(), each.dtype, each.device) for each in parts]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_second_time_is_like_the_first_and_like_none(name: str, layout: str) -> None:
    x = LAYOUTS[layout]
    x = x.float() if name == "norm" else x
    wanted = looks(OPERATIONS[name](x))
    for _ in range(2):
        with KnownShapes():
            assert looks(OPERATIONS[name](x)) == wanted


def test_what_does_not_fit_is_refused_every_time() -> None:
    for _ in range(2):
        with KnownShapes(), pytest.raises(RuntimeError):
            torch.empty(2, 3, device="meta") + torch.empty(2, 4, device="meta")
        with KnownShapes(), pytest.raises(RuntimeError):
            torch.empty(2, 3, device="meta").add_(torch.empty(4, 2, 3, device="meta"))


def test_a_tensor_with_values_is_computed() -> None:
    with KnownShapes():
        for value in (1.0, 2.0):
            assert (torch.full((2,), value) * 3).tolist() == [3 * value] * 2


def test_a_result_is_a_tensor_of_its_own() -> None:
    x = torch.empty(3, device="meta")
    with KnownShapes():
        assert x.add(1) is not x.add(1)
        assert x.mul_(2) is x
