"""PyTorch's compiler, Inductor, with weights frozen."""

from __future__ import annotations

import copy
import shutil
from typing import TYPE_CHECKING, Any, ClassVar

from gatecli.runtimes.base import PRECISIONS, Order, Prepared, Runtime

if TYPE_CHECKING:
    from torch import Tensor


__all__ = ["COMPILED", "Compiled"]


class Compiled(Runtime):
    """`torch.compile` of the network; it falls apart where gates decide in Python."""

    name: ClassVar[str] = "compiled"
    about: ClassVar[str] = "torch.compile (Inductor), weights frozen; compiling takes a minute"
    precisions: ClassVar[tuple[str, ...]] = PRECISIONS

    def missing(self) -> str:
        there = any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl"))
        return "" if there else "it needs a C++ compiler, and there is none"

    def prepare(self, order: Order) -> Prepared:
        import torch
        from torch._inductor import config

        from gatecli.network.precision import in_precision

        chosen = in_precision(copy.deepcopy(order.model), order.precision)
        device = next(chosen.parameters()).device
        torch._dynamo.reset()
        function = torch.compile(chosen, dynamic=False)

        def call(images: Tensor) -> Any:
            with torch.no_grad(), config.patch(freezing=True):
                return function(images)

        return Prepared(
            feed=lambda images: images.to(device), call=call, logits=lambda found: found.float()
        )


COMPILED = Compiled()
