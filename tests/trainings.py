"""The smallest trainings of a network with gates, straight and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import SIDE, save_npz
from torch import Tensor

import gatecli
from gatecli.architectures.cifar import CifarResNet
from gatecli.data import DataSet
from gatecli.network import Network
from gatecli.training import Run, TrainOptions, finetune
from gatecli.training.resumable import Resumable

BATCH, STEPS = 16, 3  # images a batch, and batches an epoch


class Crash(BaseException):
    """What no handler catches, as a kill."""


def images(folder: Path) -> DataSet:
    save_npz(folder / "data.npz", train=BATCH * STEPS, val=20)
    return gatecli.load_data(f"npz:{folder / 'data.npz'}")


def gated(data: DataSet, method: str = "ind-perbatch") -> Network:
    """The smallest network with gates, always the same."""
    torch.manual_seed(0)
    network = gatecli.attach(CifarResNet(8), method, input_size=(SIDE, SIDE)).network
    gatecli.fit(network, data)
    return network


def options(**more: Any) -> TrainOptions:
    usual = {"epochs": 2, "lr": 0.02, "batch_size": BATCH, "bn_batches": 1, "save_every": 0.0}
    return TrainOptions(**{**usual, **more})


def stopped_and_resumed(
    data: DataSet,
    folder: Path,
    how: TrainOptions,
    step: int,
    method: str = "ind-perbatch",
    device: str = "cpu",
) -> dict[str, Tensor]:
    """What a training comes to that is killed after a step, and begun again from its state."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Resumable, "_step_done", dying_at(step))
        with pytest.raises(Crash):
            finetune(gated(data, method).to(device), data, how, run=Run.begin(folder, {}))
    run = Run.unfinished(folder.parent)
    return finetune(gated(data, method).to(device), data, how, run=run).network.state_dict()


def dying_at(step: int) -> Any:
    def done(self: Resumable, original: Any = Resumable._step_done) -> None:
        original(self)
        if self.position.step == step:
            raise Crash

    return done
