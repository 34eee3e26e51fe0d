"""torch.export files: static networks for any batch, dynamic ones for single images.

Where something may be skipped, torch.cond decides.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import _symbolic_trace as symbolic_trace

from gatecli.errors import ExportError
from gatecli.exporting.facts import KEY
from gatecli.exporting.marks import masked
from gatecli.exporting.quiet import quiet, reason
from gatecli.exporting.registry import Logits, Task
from gatecli.graph.trace import compile_graph
from gatecli.network import Network
from gatecli.network.lower import LOWERED, lower_whole, stages_of

__all__ = ["Skipping", "write_pt2"]


class Skipping(nn.Module):
    """A network for one image that computes only what runs."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        lowered = lower_whole(network.traced)
        holder: Any = network.get_submodule(LOWERED)
        for name, part in list(holder.named_children()):
            holder.register_module(name, part.for_export())
        stages: Any = stages_of(lowered)
        self.exits: list[nn.Module] = []
        self.parts: list[Callable[..., Any]]
        if stages is None:
            self.parts = [compile_graph(lowered)]
        else:
            self.parts = [*stages.stages, stages.last]
            self.exits = [network.get_submodule(path) for path in stages.exits]

    def forward(self, images: Tensor) -> Tensor:
        """`images` (1, C, H, W) -> logits (1, K)."""
        if self.exits:
            return self._from(0, (images,))
        logits: Tensor = self.parts[0](self.network.root, images)
        return logits

    def _from(self, number: int, values: tuple[Tensor, ...]) -> Tensor:
        """What comes of the values that stage `number` begins with."""
        values = self.parts[number](self.network.root, *values)
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
    """Inside, torch.fx knows no functions that it has been told to keep whole.

    While torch.export traces, those named by torch.fx.wrap are replaced by ones without default
    arguments, which torch.cond cannot take; its own trace needs none of them.
    """
    named: dict[Any, Any] = getattr(symbolic_trace, "_wrapped_fns_to_patch", {})
    kept = dict(named)
    named.clear()
    try:
        yield
    finally:
        named.update(kept)


def write_pt2(task: Task) -> Logits:
    """Write a network with torch.export.

    Returns:
        A function that runs the file.

    Raises:
        ExportError: torch.export fails.
    """
    path = task.files[0]
    program = _exported(task)
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={"gatecli.json": task.facts[KEY]})
    return _runner(path)


def _exported(task: Task) -> ExportedProgram:
    if task.dynamic:
        module: nn.Module = Skipping(copy.deepcopy(task.network)).eval()
        example = task.image
        shapes = None
    else:
        module = masked(task.network).module
        example = torch.cat([task.image, task.image])  # torch takes a size of 1 for a constant
        shapes = ({0: torch.export.Dim("batch", min=1)},)
    try:
        with torch.no_grad(), quiet(), _no_wrapped_functions():
            return torch.export.export(module, (example,), dynamic_shapes=shapes)
    except Exception as error:  # the exporter raises whatever it comes to
        raise ExportError(
            f"torch.export of torch {torch.__version__} cannot take the network: {reason(error)}"
        ) from error


def _runner(path: Path) -> Logits:
    """A function that gives the file's logits of images."""
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(images)
        return logits

    return run
