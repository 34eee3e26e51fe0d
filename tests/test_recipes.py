"""What training recipes are made of: each against a slow reference, and resumed to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import SIDE, save_npz
from torch import Tensor, nn

import gatecli
from gatecli.architectures.cifar import CifarResNet
from gatecli.data import DataSet
from gatecli.errors import CheckpointError, SettingError
from gatecli.network import Network
from gatecli.progress import silent
from gatecli.training import Run, TrainOptions, finetune
from gatecli.training.loop import Loop
from gatecli.training.optimizers import make_optimizer
from gatecli.training.state import load_state, state_tensors
from gatecli.training.trained import trained_methods

BATCH, STEPS = 16, 3


class Crash(BaseException):
    """What no handler catches, as a kill."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    folder = tmp_path_factory.mktemp("recipes")
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


def of_parameters(momentum: float = 0.9, **more: Any) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    group = {"params": [parameter], "base_lr": 0.1, "momentum": momentum, "weight_decay": 0.2}
    return parameter, make_optimizer([group], options(lr=0.1, **more))


def test_adamw_by_hand() -> None:
    parameter, optimizer = of_parameters(0.8, optimizer="adamw")
    theta, mean, square = [1.0, -2.0], [0.0, 0.0], [0.0, 0.0]
    for step, gradient in enumerate(([0.5, 1.0], [-1.0, 2.0], [0.25, 0.0]), 1):
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        for i, g in enumerate(gradient):
            theta[i] -= 0.1 * 0.2 * theta[i]
            mean[i] = 0.8 * mean[i] + 0.2 * g
            square[i] = 0.999 * square[i] + 0.001 * g * g
            size = (square[i] / (1 - 0.999**step)) ** 0.5 + 1e-8
            theta[i] -= 0.1 * mean[i] / (1 - 0.8**step) / size
        assert parameter.tolist() == pytest.approx(theta, rel=1e-5)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"optimizer": "adam"}, "sgd, adamw"),
        ({"optimizer": "adamw", "nesterov": True}, "--nesterov to go with --optimizer sgd"),
    ],
    ids=str,
)
def test_options_that_are_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        options(**more)


def test_adamw_needs_a_beta_below_one() -> None:
    with pytest.raises(SettingError, match="below 1 with --optimizer adamw"):
        of_parameters(1.0, optimizer="adamw")


def test_gates_rates_are_raised_in_short_runs_of_sgd_alone(data: DataSet) -> None:
    def rates(**more: Any) -> set[float]:
        network = gated(data)
        trained = trained_methods(network.recipe, {}, options())
        loop = Loop(network, data, trained, options(**more), silent)
        return {group["base_lr"] for group in loop.optimizer.param_groups}

    assert max(rates()) > 0.02 and rates(optimizer="adamw") == {0.02}


def stopped_and_resumed(
    data: DataSet, folder: Path, how: TrainOptions, step: int, method: str = "ind-perbatch"
) -> dict[str, Tensor]:
    """What a training comes to that is killed after a step, and begun again from its state."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_step_done", dying_at(step))
        with pytest.raises(Crash):
            finetune(gated(data, method), data, how, run=Run.begin(folder, {}))
    run = Run.unfinished(folder.parent)
    return finetune(gated(data, method), data, how, run=run).network.state_dict()


def dying_at(step: int) -> Any:
    def done(self: Loop, original: Any = Loop._step_done) -> None:
        original(self)
        if self.position.step == step:
            raise Crash

    return done


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    assert not [name for name in one if not torch.equal(one[name], two[name])]


RESUMED: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw", "lr": 0.002},
}


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_to_the_bit(data: DataSet, tmp_path: Path, name: str) -> None:
    how = options(**RESUMED[name])
    straight = finetune(gated(data), data, how).network.state_dict()
    assert_same(straight, stopped_and_resumed(data, tmp_path / "run", how, STEPS + 1))


def test_a_state_of_the_other_optimizer(data: DataSet) -> None:
    states = {}
    for name in ("sgd", "adamw"):
        network = gated(data)
        own = list(network.parameters())
        optimizer = make_optimizer([{"params": own}], options(optimizer=name))
        for parameter in own:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        states[name] = state_tensors(network, optimizer)
    with pytest.raises(CheckpointError, match=r"AdamW keeps .*`momentum\..*another optimizer"):
        load_state(network, optimizer, states["sgd"])
    load_state(network, optimizer, states["adamw"])
    lacking = {name: each for name, each in states["adamw"].items() if name != "step.fc.bias"}
    with pytest.raises(KeyError):
        load_state(network, optimizer, lacking)
