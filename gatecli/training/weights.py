"""Training of a network's own weights, no gate being trained: of what prune has left, say.

Gates that the network still has decide as evaluation does. To the loop this is a method that gates
nothing; it is none that could be attached, so it stands in no registry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gatecli.errors import SettingError, TrainingError
from gatecli.methods import About, Method, Objective, Traits
from gatecli.methods.settings import Settings
from gatecli.network import Network
from gatecli.training.options import TrainOptions

__all__ = ["PLAIN", "WEIGHTS", "check_alone", "check_no_exits", "is_plain"]

WEIGHTS = "weights"  # what --train calls it


class _Plain(Objective[Settings]):
    """The loss of the task, and nothing beside it."""

    traits = Traits(aims=False, samples=False)

    def targets(self, settings: Settings, sites: Iterable[str], epoch: int) -> dict[str, float]:
        return {}

    def loss(
        self, decisions: Mapping[str, Tensor], settings: Settings, targets: Mapping[str, float]
    ) -> Tensor:
        return torch.zeros(())


PLAIN: Method[Any] = Method(
    About(name=WEIGHTS, summary="the network's own weights", settings=Settings), _Plain()
)


def is_plain(options: TrainOptions) -> bool:
    """Whether the weights alone are to be trained, or at least are named."""
    return WEIGHTS in options.methods


def check_alone(names: list[str], changes: Mapping[str, Any]) -> None:
    """Check that nothing else is asked of a training of the weights.

    Raises:
        SettingError: Methods are named beside it, or settings, of which it has none.
    """
    if names != [WEIGHTS]:
        raise SettingError(
            f"--train {WEIGHTS} trains no gates, and methods' gates are trained with the weights"
            f" anyway: expected one of them, but got `{','.join(names)}`"
        )
    if changes:
        raise SettingError(
            f"--train {WEIGHTS} has no settings, but got --set {', '.join(changes)}: leave it out"
        )


def check_no_exits(network: Network) -> None:
    """Check that a network's weights can be trained without its gates.

    Raises:
        TrainingError: It has exits, which answer too: they are trained with what they see.
    """
    if network.site_exits:
        raise TrainingError(
            f"--train {WEIGHTS} is for networks without exits, but this one has"
            f" {', '.join(network.site_exits)}: train the method that they are of"
        )
