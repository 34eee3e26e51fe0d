"""torch.export files: static networks for any batch.

Dynamic ones for single images, with torch.cond where something may be skipped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import _symbolic_trace as symbolic_trace

from gatecli.errors import ExportError
from gatecli.execute import LOWERED, lower_whole, staged
from gatecli.executors import SkipBlock, SkipLayer
from gatecli.exporting.marks import masked
from gatecli.exporting.quiet import quiet, reason
from gatecli.graph.trace import compile_graph
from gatecli.network import Network


class CondBlock(nn.Module):
    """A SkipBlock for one image: `relu(shortcut + z * branch(x))`."""

    def __init__(self, block: SkipBlock) -> None:
        super().__init__()
        self.__dict__["root"] = block.root
        self.branch, self.rectify = block.branch, block.rectify

    def forward(self, x: Tensor, shortcut: Tensor, z: Tensor, *others: Tensor) -> Tensor:
        def run(x: Tensor, shortcut: Tensor, *others: Tensor) -> Tensor:
            value = self.branch(self.root, x, *others) + shortcut
            return (
                (torch.relu(value) if self.rectify else value).flatten().clone()
            )  # both ways must agree in memory, too

        def skip(x: Tensor, shortcut: Tensor, *others: Tensor) -> Tensor:
            value = shortcut.flatten().clone()  # nor may a way return an alias of what it was given
            return torch.relu(value) if self.rectify else value

        result: Tensor = torch.cond(z.reshape(()) > 0.5, run, skip, (x, shortcut, *others))
        return result.reshape(shortcut.shape)


class CondLayer(nn.Module):
    """A SkipLayer for one image: `z * branch(x)`."""

    def __init__(self, layer: SkipLayer) -> None:
        super().__init__()
        self.__dict__["root"] = layer.root
        self.branch, self.channels = layer.branch, layer.channels

    def forward(self, x: Tensor, z: Tensor, *others: Tensor) -> Tensor:
        def run(x: Tensor, *others: Tensor) -> Tensor:
            return self.branch(self.root, x, *others).contiguous()

        def skip(x: Tensor, *others: Tensor) -> Tensor:
            return x.new_zeros(x.shape[0], self.channels, *x.shape[2:])

        result: Tensor = torch.cond(z.reshape(()) > 0.5, run, skip, (x, *others))
        return result


class Skipping(nn.Module):
    """A network for one image that computes only what runs."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        lowered = lower_whole(network, network.graph, network.costs)
        holder: Any = network.get_submodule(LOWERED)
        for name, part in list(holder.named_children()):
            holder.register_module(
                name, CondLayer(part) if isinstance(part, SkipLayer) else CondBlock(part)
            )
        stages = staged(lowered)
        self.exits = (
            [] if stages is None else [network.get_submodule(path) for path in stages.exits]
        )
        self.parts: list[Callable[..., Any]] = (
            [compile_graph(lowered)] if stages is None else [*stages.stages, stages.last]
        )

    def forward(self, images: Tensor) -> Tensor:
        if self.exits:
            return self._from(0, (images,))
        logits: Tensor = self.parts[0](self.network, images)
        return logits

    def _from(self, number: int, values: tuple[Tensor, ...]) -> Tensor:
        """What comes of the values that stage `number` begins with."""
        values = self.parts[number](self.network, *values)
        if number == len(self.exits):
            return values[0]
        logits, z = self.exits[number](values[0])

        def leave(logits: Tensor, *values: Tensor) -> Tensor:
            return logits.clone()

        def stay(logits: Tensor, *values: Tensor) -> Tensor:
            return self._from(number + 1, values)

        result: Tensor = torch.cond(z.reshape(()) > 0.5, leave, stay, (logits, *values))
        return result


@contextmanager
def _no_wrapped_functions() -> Iterator[None]:
    """While torch.export traces, functions named by torch.fx.wrap are replaced by ones without
    default arguments, which torch.cond cannot take; its own trace needs none of them.
    """
    named: dict[Any, Any] = getattr(symbolic_trace, "_wrapped_fns_to_patch", {})
    kept = dict(named)
    named.clear()
    try:
        yield
    finally:
        named.update(kept)


def write_pt2(
    network: Network, dynamic: bool, image: Tensor, path: Path, facts: dict[str, str]
) -> Callable[[Tensor], Tensor]:
    """Write the network to `path`; returns a function that runs the file.

    `dynamic`: single images only. Raises ExportError where torch.export fails.
    """
    module = Skipping(copy.deepcopy(network)).eval() if dynamic else masked(network).module
    example = (
        image if dynamic else torch.cat([image, image])
    )  # torch takes a size of 1 for a constant
    shapes: Sequence[Any] | None = None if dynamic else ({0: torch.export.Dim("batch", min=1)},)
    try:
        with torch.no_grad(), quiet(), _no_wrapped_functions():
            program = torch.export.export(module, (example,), dynamic_shapes=shapes)
    except Exception as error:  # the exporter raises whatever it comes to
        raise ExportError(
            f"torch.export of torch {torch.__version__} cannot take the network: {reason(error)}"
        ) from error
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={"gatecli.json": facts["gatecli"]})
    return runner(path)


def runner(path: Path) -> Callable[[Tensor], Tensor]:
    """The file's logits of images."""
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(images)
        return logits

    return run
