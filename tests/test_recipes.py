"""What training recipes are made of: each against a slow reference, and resumed to the bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trainings import STEPS, gated, images, options, stopped_and_resumed

from gatecli.architectures.cifar import CifarResNet
from gatecli.data import DataSet
from gatecli.errors import CheckpointError, SettingError, TrainingError
from gatecli.gates.observe import Record, observe
from gatecli.methods.layer_gates.settings import AigSettings
from gatecli.methods.settings import Length
from gatecli.progress import silent
from gatecli.training import TrainOptions, finetune
from gatecli.training.average import Average
from gatecli.training.descent import Descent
from gatecli.training.loop import Loop
from gatecli.training.mixing import Mixing
from gatecli.training.optimizers import make_optimizer
from gatecli.training.resumable import Resumable
from gatecli.training.state import load_state, state_tensors
from gatecli.training.trained import trained_methods


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return images(tmp_path_factory.mktemp("recipes"))


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
        ({"accumulate": 0}, "--accumulate to be at least 1, but got 0"),
        ({"erase": 1.5}, "--erase to be between 0 and 1, but got 1.5"),
        ({"mixup": -0.1}, "--mixup to be between 0 and 1000, but got -0.1"),
        ({"cutmix": 1e-300}, "--cutmix to be 0, or at least 0.001, but got 1e-300"),
        ({"clip_grad": 0.0}, "--clip-grad to be above 0, but got 0"),
        ({"clip_grad": float("nan")}, "--clip-grad to be above 0, but got nan"),
        ({"ema": 1.0}, "--ema to be between 0 and 1, neither, but got 1"),
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


def test_gates_rates_in_short_runs_are_as_the_optimizer_s_steps_need_them(data: DataSet) -> None:
    def rates(**more: Any) -> set[float]:
        groups = loop_of(data, options(**more)).optimizer.param_groups
        return {group["base_lr"] for group in groups}

    assert rates() == {0.02, 10.0} and rates(optimizer="adamw") == {0.02, 1.0}


@pytest.mark.parametrize(
    ("steps", "expected"), [(4, 1.0), (100, 0.1), (2000, 0.005), (5000, None), (400, None)]
)
def test_adamw_s_gates_go_ten_over_the_steps(steps: int, expected: float | None) -> None:
    lr = 0.03 if steps == 400 else 0.001  # one is quick enough as it is
    length = Length(epochs=1, steps=steps, lr=lr, weight_decay=0.1, alike=1000.0, is_adaptive=True)
    found = AigSettings().suited(length)
    assert found.get("gate_lr") == expected
    if expected is not None:
        assert found["gate_weight_decay"] == pytest.approx(0.1 * lr / expected, rel=0.05)


def loop_of(data: DataSet, how: TrainOptions, method: str = "ind-perbatch") -> Loop:
    network = gated(data, method)
    trained = trained_methods(network.recipe, {}, how)
    return Loop(network, data, trained, how, silent)


def test_a_step_is_the_mean_of_its_batches(data: DataSet) -> None:
    plain: dict[str, Any] = {"epochs": 1, "momentum": 0.0, "weight_decay": 0.0, "bn_batches": 0}
    how = options(accumulate=STEPS, **plain)
    loop = loop_of(data, how)
    loop.network.train()
    parameters = dict(loop.network.named_parameters())
    total = {name: torch.zeros_like(each) for name, each in parameters.items()}
    record = Record()
    with observe(loop.network, record):
        for number, (x, y) in enumerate(loop.examples.training(0)):
            loss, _ = loop.loss(record, x, y, loop.goal.targets(0), number)
            record.clear()
            for each, gradient in zip(
                total.values(), torch.autograd.grad(loss, list(parameters.values())), strict=True
            ):
                each.add_(gradient)
    rates = {}
    for group in loop.optimizer.param_groups:
        rates.update({id(each): group["base_lr"] for each in group["params"]})
    found = finetune(gated(data), data, how)
    moved = found.network.state_dict()
    for name, each in parameters.items():
        expected = each.detach() - rates[id(each)] * total[name] / STEPS
        torch.testing.assert_close(moved[name], expected, rtol=1e-4, atol=1e-6)
    assert found.history[-1]["step"] == 1


def test_a_step_has_no_more_batches_than_an_epoch(data: DataSet) -> None:
    with pytest.raises(SettingError, match="at most the 3 batches of an epoch"):
        finetune(gated(data), data, options(accumulate=STEPS + 1))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"cache_features": True, "erase": 0.5}, "without augmentation, but got --erase 0.5"),
        ({"cache_features": True, "mixup": 0.2}, "--mixup 0.2 is for training the network"),
        ({"precision": "fp16"}, "--precision fp16, but got cpu"),
        ({"cutmix": 1.0, "mixup": 0.2}, "--mixup 0.2 and --cutmix 1 is for"),
        ({"cache_features": True, "augment": "randaugment"}, "got --augment randaugment"),
    ],
    ids=str,
)
def test_what_exits_alone_refuse(data: DataSet, more: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        finetune(gated(data, "dgate"), data, options(**more))


def a_batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.rand(5, 3, 8, 8, generator=draw), torch.tensor([3, 1, 0, 2, 2])


def test_mixed_images_by_hand() -> None:
    x, y = a_batch()
    mixing = Mixing(options(mixup=0.4), 4)
    mixed, shares = mixing(x, y, 7)
    own = float(shares[0, 3])
    assert 0 < own < 1 and torch.equal(mixed, mixing(x, y, 7)[0])
    assert not torch.equal(mixed, mixing(x, y, 8)[0])
    for i in range(5):
        torch.testing.assert_close(mixed[i], own * x[i] + (1 - own) * x[i - 1])
        expected = [0.0] * 4
        expected[int(y[i])] += own
        expected[int(y[i - 1])] += 1 - own
        assert shares[i].tolist() == pytest.approx(expected)


def test_cut_images_by_hand() -> None:
    x, y = a_batch()
    mixed, shares = Mixing(options(cutmix=1.0), 4)(x, y, 2)
    own = (mixed == x).all(1)
    assert torch.equal(mixed, torch.where(own[:, None], x, x.roll(1, 0)))
    assert 0 < own[0].sum() < 64 and bool((own == own[0]).all())
    kept = own[0].double().mean().item()
    assert shares[0].tolist() == pytest.approx([0, 0, 1 - kept, kept])
    rows, columns = torch.nonzero(~own[0], as_tuple=True)
    sides = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    assert len(rows) == sides  # one rectangle


def test_each_batch_is_mixed_in_one_of_both_ways() -> None:
    x, y = a_batch()
    mixing = Mixing(options(mixup=1, cutmix=1), 4)
    cut = 0
    for seed in range(20):
        mixed, _ = mixing(x, y, seed)
        cut += bool(torch.isin(mixed, x).all())
    assert 2 < cut < 18


def test_the_loss_of_mixed_images_by_hand(data: DataSet) -> None:
    loop = loop_of(data, options(mixup=0.4, label_smoothing=0.1, train="weights"))
    x, y = next(loop.examples.training(0))
    loss, answered = loop.loss(Record(), x, y, {}, 5)
    _, shares = loop.loss.mixing(x, y, 5)
    total = 0.0
    for row, share in zip(answered.logits.tolist(), shares.tolist(), strict=True):
        whole = math.log(sum(math.exp(value) for value in row))
        for value, part in zip(row, share, strict=True):
            total += (0.9 * part + 0.01) * (whole - value) / len(y)
    assert loss.item() == pytest.approx(total, rel=1e-4)
    own = y if shares[torch.arange(len(y)), y].mean() > 0.5 else y.roll(1)
    assert torch.equal(answered.labels, own)


def test_early_exits_learn_from_mixed_images(data: DataSet) -> None:
    found = finetune(gated(data, "early-exit"), data, options(epochs=1, mixup=0.2))
    assert found.history[0]["train_loss"] > 0


def test_gradients_are_shortened_to_a_norm() -> None:
    parameter, optimizer = of_parameters(clip_grad=1.0)
    descent = Descent(CifarResNet(8), optimizer, options(clip_grad=1.0))
    for gradient, expected in (([3.0, 4.0], [0.6, 0.8]), ([0.3, -0.4], [0.3, -0.4])):
        parameter.grad = torch.tensor(gradient)
        assert descent.clip() == pytest.approx(sum(g * g for g in gradient) ** 0.5)
        assert parameter.grad.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_norm_that_is_not_finite_stops_the_training(data: DataSet) -> None:
    network = gated(data)
    network.get_parameter("fc.bias").register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match="step 1: the norm of the gradients is nan"):
        finetune(network, data, options(clip_grad=1.0))


def test_the_average_by_hand(data: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[dict[str, list[float]]] = []

    def look(self: Loop, original: Any = Resumable._step_done) -> None:
        held = self.network.state_dict()
        watched = ("fc.weight", "bn1.running_var")
        weights.append({name: held[name].flatten().tolist() for name in watched})
        original(self)

    monkeypatch.setattr(Resumable, "_step_done", look)
    how = options(ema=0.75, keep="last", bn_batches=0)
    found = finetune(gated(data), data, how)
    assert len(weights) == 2 * STEPS
    for name, average in weights[0].items():
        for step in weights[1:]:
            average = [0.75 * a + 0.25 * w for a, w in zip(average, step[name], strict=True)]
        written = found.network.state_dict()[name].flatten().tolist()
        assert written == pytest.approx(average, rel=1e-4, abs=1e-6)
        assert written != pytest.approx(weights[-1][name], rel=1e-4, abs=1e-6)
    assert found.history[-1]["val_top1"] == found.top1  # the average is what is validated


def test_what_is_no_number_stays_out_of_the_average() -> None:
    network = nn.BatchNorm1d(2)
    network.register_buffer("threshold", torch.tensor(float("inf")))
    average = Average(network, 0.5)
    for value in (1.0, 3.0):
        network.running_mean.fill_(value)
        average.follow()
    with average.shown():
        assert network.running_mean.tolist() == [2.0, 2.0] and network.threshold.isposinf()
    assert network.running_mean.tolist() == [3.0, 3.0]


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    assert not [name for name in one if not torch.equal(one[name], two[name])]


RESUMED: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw", "lr": 0.002},
    "accumulate": {"accumulate": 3, "clip_grad": 0.5, "momentum": 0.9},
    "ema": {"ema": 0.5, "keep": "last"},
    "mixed images": {"mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1, "distill": 1.0},
    "channels last": {"channels_last": True, "optimizer": "adamw", "ema": 0.5, "lr": 0.002},
    "changed images": {"augment": "randaugment", "erase": 0.5},
}


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_to_the_bit(data: DataSet, tmp_path: Path, name: str) -> None:
    how = options(**RESUMED[name])
    straight = finetune(gated(data), data, how).network.state_dict()
    step = STEPS // how.accumulate  # an epoch is behind, but for what is closed with it
    assert_same(straight, stopped_and_resumed(data, tmp_path / "run", how, step))


def test_exits_are_resumed_too(data: DataSet, tmp_path: Path) -> None:
    """They are trained on standardised features, and folded into the average of the weights."""
    how = options(optimizer="adamw", ema=0.5, clip_grad=1.0)
    straight = finetune(gated(data, "dgate"), data, how).network.state_dict()
    assert_same(straight, stopped_and_resumed(data, tmp_path / "run", how, STEPS + 1, "dgate"))


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
