"""A network with exits: who leaves, leaves the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn

from gatecli.gates.decider import Decider
from gatecli.graph.ops import is_pick
from gatecli.lowering.gather import take
from gatecli.lowering.region import needed, piece

__all__ = ["Staged", "staged"]

Stage = Callable[..., tuple[Tensor, ...]]


class Staged:
    """A network with exits, in stages: who leaves at one, leaves the batch.

    A stage is a function of the network and of what the stage before it returned. It returns the
    value at which the exit behind it stands, and what later stages need besides: a gater's gates,
    say. The first is given the images, the last returns the logits alone.

    Attributes:
        stages: those with an exit behind them.
        exits: the paths of these exits.
        last: the stage behind the last exit.
        gates: the network's gates, once they have been looked for.
    """

    def __init__(self, stages: Sequence[Stage], exits: Sequence[str], last: Stage) -> None:
        self.stages = stages
        self.exits = exits
        self.last = last
        self.gates: list[Decider] | None = None

    def __call__(self, root: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the logits of images, and where they left.

        Args:
            root: the network.
            x: (N, C, H, W).

        Returns:
            Logits (N, K), and the number of the exit that each took (N,), from 0 on, the number of
            exits for none.
        """
        return self._one(root, x) if x.shape[0] == 1 else self._several(root, x)

    def _one(self, root: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """A single image: no batch to leave."""
        live: tuple[Tensor, ...] = (x,)
        for number, (stage, path) in enumerate(zip(self.stages, self.exits, strict=True)):
            live = stage(root, *live)
            logits, z = root.get_submodule(path)(live[0])
            if z.item() > 0:
                return logits, torch.full((1,), number, device=x.device)
        return self.last(root, *live)[0], torch.full((1,), len(self.exits), device=x.device)

    def _forced(self, root: nn.Module) -> list[Decider]:
        """The gates whose decisions are given, sample by sample."""
        if self.gates is None:  # walking through all modules takes as long as some layers
            self.gates = [part for part in root.modules() if isinstance(part, Decider)]
        return [gate for gate in self.gates if gate.forced is not None]

    def _several(self, root: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """A batch, which gets smaller at each exit."""
        forced = self._forced(root)
        try:
            return self._shrinking(root, x, forced)
        finally:
            for gate in forced:
                gate.rows = None

    def _shrinking(
        self, root: nn.Module, x: Tensor, forced: Sequence[Decider]
    ) -> tuple[Tensor, Tensor]:
        taken = torch.full((x.shape[0],), len(self.exits), device=x.device)
        rows = torch.arange(x.shape[0], device=x.device)  # of the batch, that are still here
        out: Tensor | None = None
        live: tuple[Tensor, ...] = (x,)
        for number, (stage, path) in enumerate(zip(self.stages, self.exits, strict=True)):
            live = stage(root, *live)
            logits, z = root.get_submodule(path)(live[0])
            leaving = z.reshape(-1) > 0
            left = leaving.nonzero().reshape(-1)
            if left.numel() == 0:
                continue
            taken[rows[left]] = number
            if out is None:
                out = logits.new_empty(taken.shape[0], logits.shape[1])
            out[rows[left]] = logits[left]
            stay = (~leaving).nonzero().reshape(-1)
            if stay.numel() == 0:
                return out, taken
            live = tuple(_rows_of(value, stay) for value in live)
            rows = rows[stay]
            for gate in forced:
                gate.rows = rows
        (final,) = self.last(root, *live)
        if out is None:
            return final, taken
        out[rows] = final.to(out.dtype)
        return out, taken

    def values(self, root: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The values at which the exits stand, and the network's own logits; nobody leaves.

        Args:
            root: the network.
            x: (N, C, H, W).

        Returns:
            A value (N, ...) for each exit, and the logits (N, K).
        """
        seen = []
        live: tuple[Tensor, ...] = (x,)
        for stage in self.stages:
            live = stage(root, *live)
            seen.append(live[0].clone())  # what comes later may write into it
        return seen, self.last(root, *live)[0]


def _rows_of(value: Tensor, rows: Tensor) -> Tensor:
    """Samples of a value; a size, which is no tensor, is that of all of them."""
    return take(value, rows) if isinstance(value, Tensor) else value


def staged(graph: fx.Graph) -> Staged | None:
    """A lowered graph cut into stages at its exits; None where it has none."""
    picked = next((node for node in graph.nodes if is_pick(node)), None)
    if picked is None:
        return None
    final, *pairs = [node for node in picked.args if isinstance(node, fx.Node)]
    ends = [*(pair.all_input_nodes[0] for pair in pairs), final]
    stage_of = _stages(graph, ends)
    inputs = [_images(graph)]
    stages = []
    for number, end in enumerate(ends):
        live = [] if end is final else _live(graph, stage_of, number, end)
        own = {node for node, stage in stage_of.items() if stage == number}
        stages.append(piece(own, inputs, [end, *live]))
        inputs = [end, *live]
    return Staged(stages[:-1], [str(pair.target) for pair in pairs], stages[-1])


def _images(graph: fx.Graph) -> fx.Node:
    node: fx.Node = next(node for node in graph.nodes if node.op == "placeholder")
    return node


def _stages(graph: fx.Graph, ends: Sequence[fx.Node]) -> dict[fx.Node, int]:
    """Each node's stage: the first whose end needs it; the images are there from the first on."""
    stage_of = {_images(graph): 0}
    for number, end in enumerate(ends):
        for node in needed(end):
            stage_of.setdefault(node, number)
    return stage_of


def _live(
    graph: fx.Graph, stage_of: dict[fx.Node, int], number: int, end: fx.Node
) -> list[fx.Node]:
    """What later stages need of this stage and those before it, beside its end; in order."""
    found = []
    for node in graph.nodes:
        is_there = stage_of.get(node, number + 1) <= number and node is not end
        if is_there and any(stage_of.get(user, 0) > number for user in node.users):
            found.append(node)
    return found
