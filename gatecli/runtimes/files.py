"""Networks as files that other runtimes read, made to be timed and thrown away."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gatecli.runtimes.base import Order

__all__ = ["Written", "onnx_file"]


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file for a runtime.

    Attributes:
        out: Where it is.
        masks: Gates decide in it, but nothing is skipped.
    """

    out: Path
    masks: bool


@contextmanager
def onnx_file(order: Order) -> Iterator[Written]:
    """The network as an ONNX file, which is gone behind the block.

    A file that decides at run time takes single images: for larger batches everything is computed.

    Raises:
        ExportError: It cannot be written.
    """
    from gatecli.exporting.export import export
    from gatecli.network import Network
    from gatecli.traced.recipe import Recipe

    network = order.model
    if not isinstance(network, Network):
        plain = Recipe(source=order.recipe.source, input=order.recipe.input)
        network = Network(copy.deepcopy(network), plain, leaves=plain.source.leaves).eval()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "network.onnx"
        done = export(network, out, all_computed=order.batch > 1, uncalibrated=True)
        yield Written(out=out, masks=bool(network.site_gates) and not done.dynamic)
