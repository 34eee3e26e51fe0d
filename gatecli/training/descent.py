"""What moves the parameters: the gradients of some batches, clipped, and the optimizer's step."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.optim import Optimizer

from gatecli.errors import SettingError
from gatecli.network import Network
from gatecli.training.average import Average
from gatecli.training.options import TrainOptions

__all__ = ["Descent", "check_precision"]

AVERAGE = "average."  # what a state calls the averages of --ema, with the tensor's name behind
FP16 = "fp16"
SCALE, GROWTH = "scaler.scale", "scaler.growth"


class Descent:
    """Makes steps: `begin`, `add` for each batch's loss, `clip`, `move`, and `follow`.

    Attributes:
        optimizer: What moves the parameters.
        average: Of the network's tensors; None without --ema.
    """

    def __init__(self, network: Network, optimizer: Optimizer, options: TrainOptions) -> None:
        self.optimizer = optimizer
        self.average = None if options.ema is None else Average(network, options.ema)
        self._batches = options.accumulate
        self._limit = options.clip_grad
        self._scaler = None
        if options.precision == FP16:
            self._scaler = torch.amp.GradScaler(network.device.type)

    def begin(self) -> None:
        """A step begins: forget the gradients of the one before."""
        self.optimizer.zero_grad(set_to_none=True)

    def add(self, loss: Tensor) -> None:
        """Add the gradients of a batch's loss, a scalar, as its part of the step's mean."""
        if self._batches > 1:
            loss = loss / self._batches
        if self._scaler is not None:
            loss = self._scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def clip(self) -> float:
        """Shorten the gradients, those of all processes, to the norm asked for, if any is.

        Returns:
            Their norm before. 0 where nothing is asked, and where the scale of fp16 is too high:
            the step is then left out, and the next one has a lower scale.
        """
        if self._limit is None:
            return 0.0
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        groups = self.optimizer.param_groups
        parameters = [each for group in groups for each in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._limit)
        if self._scaler is not None and not norm.isfinite():
            return 0.0
        return norm.item()

    def move(self) -> None:
        """Move the parameters."""
        if self._scaler is None:
            self.optimizer.step()
            return
        self._scaler.step(self.optimizer)
        self._scaler.update()

    def follow(self) -> None:
        """The step is made: let the average follow."""
        if self.average is not None:
            self.average.follow()

    def averaged(self) -> AbstractContextManager[None]:
        """Let the network have its averages inside the block, if there are any."""
        return nullcontext() if self.average is None else self.average.shown()

    def tensors(self) -> dict[str, Tensor]:
        """What a state keeps of this, besides what the optimizer keeps."""
        averages = {} if self.average is None else self.average.tensors
        found = {AVERAGE + name: each for name, each in averages.items()}
        if self._scaler is not None:
            state = self._scaler.state_dict()
            found[SCALE] = torch.tensor(state["scale"], dtype=torch.float64)
            found[GROWTH] = torch.tensor(state["_growth_tracker"])
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Go on from what `tensors` gave.

        Returns:
            What is not of this.

        Raises:
            ValueError, KeyError: Averages are another network's, or the scale is missing.
        """
        rest = dict(tensors)
        if self.average is not None:
            names = [name for name in rest if name.startswith(AVERAGE)]
            self.average.load({name.removeprefix(AVERAGE): rest.pop(name) for name in names})
        if self._scaler is not None:
            found = {"scale": rest.pop(SCALE).item(), "_growth_tracker": rest.pop(GROWTH).item()}
            self._scaler.load_state_dict({**self._scaler.state_dict(), **found})
        return rest


def check_precision(network: Network, options: TrainOptions) -> None:
    """Check that the network's device can train in the precision asked for.

    Raises:
        SettingError: It cannot.
    """
    if options.precision == FP16 and network.device.type != "cuda":
        raise SettingError(
            f"expected a GPU (--device cuda) for --precision {FP16}, but got {network.device.type}:"
            " take --precision bf16 there"
        )
