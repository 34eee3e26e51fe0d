"""A network cut at its exits: one module a stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gatecli.errors import ExportError
from gatecli.exporting.registry import Piece
from gatecli.gates.exit import Exit
from gatecli.graph.trace import copied
from gatecli.network import Network
from gatecli.network.lower import stages_of

__all__ = ["Stage", "pieces"]


class Stage(nn.Module):
    """What lies between two exits, with the exit behind it.

    Gates within it are computed with everything, and multiplied.

    Args:
        network: what the stage is of.
        part: (root, values) -> the value at which the exit stands, and what is needed later.
        exit_: the exit behind it; None: the last stage.
    """

    def __init__(
        self, network: Network, part: Callable[..., tuple[Tensor, ...]], exit_: Exit | None
    ) -> None:
        super().__init__()
        self.network, self.part, self.leave = network, part, exit_
        self.eval()

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The values of a batch -> the exit's logits and scores, and the values to go on with.

        The last stage gives logits alone.
        """
        live = self.part(self.network.root, *values)
        if self.leave is None:
            return live
        logits = self.leave.classify(live[0])
        return (logits, self.leave.finite_score(live[0], logits), *live)


def pieces(network: Network, image: Tensor) -> list[Piece]:
    """Cut a network.

    Args:
        network: on the CPU, in evaluation.
        image: an example, (1, C, H, W).

    Raises:
        ExportError: it has no exits, or a stage needs more of those before it than values.
    """
    form: Any = stages_of(copied(network.graph))
    if form is None:
        raise ExportError(
            "expected a network with exits that images can leave by, as --split cuts it there, but"
            " it has none: attach exits and calibrate them, or leave --split out"
        )
    exits: Any = [*map(network.get_submodule, form.exits), None]
    found = []
    values: tuple[Tensor, ...] = (torch.cat([image, image]),)
    for part, exit_ in zip([*form.stages, form.last], exits, strict=True):
        stage = Stage(network, part, exit_)
        with torch.no_grad():
            given = stage(*values)
        _check_samples(given)
        found.append(_piece(stage, values, given))
        values = given[2:]
    return found


def _check_samples(values: tuple[Tensor, ...]) -> None:
    """Raise ExportError where a value is not one that samples can be taken out of."""
    for value in values:
        if not isinstance(value, Tensor) or value.shape[:1] != (2,):
            raise ExportError(
                "the network cannot be cut at its exits: what lies behind them needs more of what"
                " came before than a value of each image; leave --split out"
            )


def _piece(stage: Stage, values: tuple[Tensor, ...], given: tuple[Tensor, ...]) -> Piece:
    going = [f"next{number}" for number in range(len(given) - 2)]
    return Piece(
        module=stage,
        examples=values,
        takes=[f"value{number}" for number in range(len(values))],
        gives=["logits", "score", *going] if stage.leave else ["logits"],
        exit=stage.leave,
    )
