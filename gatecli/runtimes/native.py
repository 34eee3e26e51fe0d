"""PyTorch as it is, one operation after the other."""

from __future__ import annotations

import copy
from typing import ClassVar

from gatecli.runtimes.base import PRECISIONS, Order, Prepared, Runtime

__all__ = ["NATIVE", "Native"]


class Native(Runtime):
    """The network itself, skipping; what is not computed is decided in Python."""

    name: ClassVar[str] = "native"
    about: ClassVar[str] = "PyTorch as it is"
    precisions: ClassVar[tuple[str, ...]] = PRECISIONS
    obeys: ClassVar[bool] = True

    def prepare(self, order: Order) -> Prepared:
        import torch

        from gatecli.network import Network
        from gatecli.network.precision import in_precision

        model = order.model
        device = next(model.parameters()).device
        if order.precision != "fp32":
            model = in_precision(copy.deepcopy(model), order.precision)
        return Prepared(
            feed=lambda images: images.to(device),
            call=torch.inference_mode()(model),
            logits=lambda found: found.float(),
            obeying=model if isinstance(model, Network) else None,
        )


NATIVE = Native()
