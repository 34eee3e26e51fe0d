"""How batches come to where a network computes, and training there in fp16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerator import There, stand_in
from test_changes import AS_IT_IS, split
from torch import nn
from trainings import gated, images, options, stopped_and_resumed

from gatecli.data import DataSet, Walk, batches, delivery
from gatecli.data.delivery import suitable_workers
from gatecli.errors import SettingError
from gatecli.training import finetune
from gatecli.training.descent import Descent
from gatecli.training.optimizers import make_optimizer

GPU = torch.device("cuda:0")
real = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return images(tmp_path_factory.mktemp("delivery"))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_for_a_gpu_are_normalised_there(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    own = split(5, channels)
    (expected, labels), *_ = batches(own, input=AS_IT_IS, batch_size=4)
    with stand_in():
        (found, same), *_ = batches(own, input=AS_IT_IS, batch_size=4, walk=Walk(device=GPU))
        assert isinstance(found, There) and torch.equal(found.inner, expected)
        assert not isinstance(same, There) and torch.equal(same, labels)


def test_images_may_lie_pixel_by_pixel() -> None:
    ((plain, _),) = batches(split(5), input=AS_IT_IS, batch_size=5)
    ((other, _),) = batches(split(5), input=AS_IT_IS, batch_size=5, walk=Walk(channels_last=True))
    assert torch.equal(plain, other) and plain.is_contiguous()
    assert other.is_contiguous(memory_format=torch.channels_last)


def test_as_many_processes_read_as_help(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = [12]
    monkeypatch.setattr(delivery, "_cores", lambda: cores[0])
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    on_gpu = Walk(device=GPU)
    assert suitable_workers(Walk()) == suitable_workers(Walk(device=torch.device("cpu"))) == 0
    assert suitable_workers(on_gpu) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert suitable_workers(on_gpu) == 3
    cores[0] = 2
    assert suitable_workers(on_gpu) == 0


def test_channels_last_changes_nothing_but_rounding(data: DataSet) -> None:
    found = [finetune(gated(data), data, options(epochs=1, channels_last=on)) for on in (0, 1)]
    one, two = (each.network.state_dict() for each in found)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
        assert two[name].is_contiguous()


def test_fp16_needs_a_gpu_and_a_network_to_train(data: DataSet) -> None:
    with pytest.raises(SettingError, match="--precision fp16, but got cpu: take --precision bf16"):
        finetune(gated(data), data, options(precision="fp16"))


def scaled(limit: float | None = None) -> tuple[nn.Parameter, Descent]:
    network = nn.Linear(1, 1, bias=False)
    network.device = torch.device("cpu")
    nn.init.ones_(network.weight)
    how = options(precision="fp16", clip_grad=limit, momentum=0.0, weight_decay=0.0)
    optimizer = make_optimizer([{"params": [network.weight], "lr": 0.5}], how)
    return network.weight, Descent(network, optimizer, how)  # type: ignore[arg-type]


def test_a_scaled_loss_moves_parameters_as_it_would_unscaled() -> None:
    for limit, moved in ((None, 1 - 0.5 * 3), (1.0, 1 - 0.5)):
        weight, descent = scaled(limit)
        descent.begin()
        descent.add(3 * weight.sum())
        assert weight.grad.item() == 3 * 65536  # the scale at first
        assert descent.clip() == (3 if limit else 0)
        descent.move()
        assert weight.item() == pytest.approx(moved)


@pytest.mark.parametrize("limit", [None, 1.0])
def test_a_step_whose_scale_was_too_high_is_left_out(limit: float | None) -> None:
    weight, descent = scaled(limit)
    descent.begin()
    descent.add(1e38 * weight.sum())
    assert descent.clip() == 0
    descent.move()
    assert weight.item() == 1
    assert descent.tensors()["scaler.scale"].item() == 32768
    _, again = scaled(limit)
    assert again.load({**descent.tensors(), "model.x": weight}) == {"model.x": weight}
    assert again.tensors() == descent.tensors()


@pytest.mark.gpu
@real
def test_batches_on_a_gpu() -> None:
    own = split(20)
    ((expected, _),) = batches(own, input=AS_IT_IS, batch_size=20)
    ((found, labels),) = batches(own, input=AS_IT_IS, batch_size=20, walk=Walk(device=GPU))
    assert found.device == GPU and labels.device.type == "cpu"
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@real
def test_fp16_is_trained_and_resumed_on_a_gpu(data: DataSet, tmp_path: Path) -> None:
    how = options(precision="fp16", clip_grad=1.0, ema=0.5, channels_last=True)
    network = gated(data).to("cuda")
    found = finetune(network, data, how)
    assert network.device.type == "cuda" and found.history[-1]["train_loss"] < 10
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    straight = finetune(gated(data).to("cuda"), data, how).network.state_dict()
    resumed = stopped_and_resumed(data, tmp_path / "run", how, 4, device="cuda")
    torch.use_deterministic_algorithms(mode=False)
    for name, tensor in straight.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-3, atol=1e-4)
