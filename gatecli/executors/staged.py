"""A network with exits: who leaves, leaves the batch."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gatecli.executors.rows import Branch, take
from gatecli.gates import Gate


class Staged:
    """A network with exits: the stages between them, as functions (root, value) -> value, and what comes behind the last. Who leaves, leaves the batch.

    Called, it returns logits (N, K) and the exit that each sample took (N,), its number from 0 on, the number of exits for none.
    """

    def __init__(self, stages: Sequence[Branch], exits: Sequence[str], last: Branch) -> None:
        self.stages, self.exits, self.last = stages, exits, last
        self.gates: list[Gate] | None = None

    def __call__(self, root: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._one(root, x) if x.shape[0] == 1 else self._several(root, x)

    def _one(self, root: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """A single image: no batch to leave."""
        for number, (stage, path) in enumerate(zip(self.stages, self.exits, strict=True)):
            x = stage(root, x)
            logits, z = root.get_submodule(path)(x)
            if z.item() > 0:
                return logits, torch.tensor([number], device=x.device)
        return self.last(root, x), torch.tensor([len(self.exits)], device=x.device)

    def _forced(self, root: nn.Module) -> list[Gate]:
        if self.gates is None:  # walking through all modules takes as long as some layers
            self.gates = [part for part in root.modules() if isinstance(part, Gate)]
        return [gate for gate in self.gates if gate.forced is not None]

    def _several(self, root: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        taken = torch.full((x.shape[0],), len(self.exits), device=x.device)
        rows, out = torch.arange(x.shape[0], device=x.device), None
        forced = self._forced(root)
        try:
            for number, (stage, path) in enumerate(zip(self.stages, self.exits, strict=True)):
                x = stage(root, x)
                logits, z = root.get_submodule(path)(x)
                leaving = z.reshape(-1) > 0
                left = leaving.nonzero().reshape(-1)
                if left.numel() == 0:
                    continue
                taken[rows[left]] = number
                out = logits.new_empty(taken.shape[0], logits.shape[1]) if out is None else out
                out[rows[left]] = logits[left]
                stay = (~leaving).nonzero().reshape(-1)
                if stay.numel() == 0:
                    return out, taken
                x, rows = take(x, stay), rows[stay]
                for gate in forced:
                    gate.rows = rows
            final = self.last(root, x)
        finally:
            for gate in forced:
                gate.rows = None
        if out is None:
            return final, taken
        out[rows] = final.to(out.dtype)
        return out, taken

    def values(self, root: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The values at which the exits stand, and the network's own logits, for all samples: nobody leaves."""
        seen = []
        for stage in self.stages:
            x = stage(root, x)
            seen.append(x.clone())  # what comes later may write into x
        return seen, self.last(root, x)
