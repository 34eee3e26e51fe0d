"""Tensors of no layer are left out by name; what looks like part of the network is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reading import State, computes, error, opened, prefixed, resnet20
from torch import nn

zeros = torch.zeros
PASSENGERS: dict[str, State] = {
    "loss": {"criterion.weight": torch.ones(10)},
    "loss_fn": {"loss_fn.alpha": torch.ones(10), "loss_fn.centers.weight": zeros(10, 64)},
    "metrics": {
        "train_acc.tp": zeros(10, dtype=torch.long),
        "val_acc.fp": zeros(10, dtype=torch.long),
        "metrics.auroc.confmat": zeros(10, 10, dtype=torch.long),
        "test_f1.fn": zeros(10),
    },
    "queue": {"queue": zeros(64, 8), "queue_ptr": zeros(1, dtype=torch.long)},
    "averaged": {"n_averaged": torch.tensor(3), "num_updates": torch.tensor(7)},
    "self-supervised": {
        "prototypes.weight": zeros(30, 64),
        "projector.0.weight": zeros(64, 64),
        "projector.0.bias": zeros(64),
        "predictor.weight": zeros(64, 64),
        "projection_head.weight": zeros(64, 64),
        "projection_head.bias": zeros(64),
    },
    "one number": {"temperature": torch.tensor(1.5), "step": zeros(1, dtype=torch.int32)},
    "auxiliary": {"aux_head.weight": zeros(10, 64), "aux_head.bias": zeros(10)},
}


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("where", ["inside", "outside"])
@pytest.mark.parametrize("kind", PASSENGERS)
def test_passengers_are_left_out_and_named(
    tmp_path: Path, kind: str, where: str, prefix: str
) -> None:
    model = resnet20()
    extra = PASSENGERS[kind]
    state = prefixed(dict(model.state_dict()), prefix)
    state |= prefixed(extra, prefix) if where == "inside" else extra
    network, notes = opened(tmp_path / "x.pt", {"state_dict": state})
    assert computes(network, model) and network.state_dict().keys() == model.state_dict().keys()
    (note,) = (note for note in notes if note.startswith("left out"))
    assert next(iter(extra)) in note


def test_counters_of_thop(tmp_path: Path) -> None:
    model = resnet20()
    state = dict(model.state_dict())
    for name, _ in model.named_modules():
        for counter in ("total_ops", "total_params"):
            state[f"{name}.{counter}".lstrip(".")] = zeros(1, dtype=torch.float64)
    network, notes = opened(tmp_path / "x.pt", state)
    assert computes(network, model)
    assert any("total_ops" in note and "in all)" in note for note in notes)


def test_counters_of_batches_in_odd_forms(tmp_path: Path) -> None:
    """As averages of weights leave them, or not at all."""
    model = resnet20()
    for odd in (torch.tensor(3.7), zeros(1), torch.tensor(float("nan")), zeros(0), None):
        state = {}
        for name, tensor in model.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                state[name] = tensor
            elif odd is not None:
                state[name] = odd
        network, notes = opened(tmp_path / "x.pt", state)
        assert computes(network, model) and not any("left out" in note for note in notes)
        counter = network.state_dict()["bn1.num_batches_tracked"]
        assert counter.dtype == torch.int64 and counter.shape == ()


def test_statistics_of_the_images_are_said(tmp_path: Path) -> None:
    model = resnet20()
    mean = torch.tensor([0.5, 0.25, 0.125]).reshape(1, 3, 1, 1)
    state = {"normalize.mean": mean, "normalize.std": mean, **model.state_dict()}
    network, notes = opened(tmp_path / "x.pt", state)
    assert computes(network, model)
    assert any("`normalize.mean` is 0.5, 0.25, 0.125" in n and "--mean" in n for n in notes)


PARTS: dict[str, State] = {
    "attention in a block": {"layer1.0.attention.weight": zeros(16, 16)},
    "a number in a block": {"layer1.0.alpha": zeros(1)},
    "a shared activation": {"act.weight": zeros(1)},
    "a layer": {"attention.weight": zeros(64, 64), "attention.bias": zeros(64)},
    "a norm": {"neck.weight": zeros(64), "neck.bias": zeros(64)},
    "a second head": {"fc2.weight": zeros(5, 10), "fc2.bias": zeros(5)},
    "a parameter": {"gamma": zeros(64)},
    "a block more": {"layer1.3.conv1.weight": zeros(16, 16, 3, 3)},
}


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("kind", PARTS)
def test_what_looks_like_a_part_is_not_left_out(tmp_path: Path, kind: str, prefix: str) -> None:
    state = prefixed({**resnet20().state_dict(), **PARTS[kind]}, prefix)
    text = error(tmp_path / "x.pt", state)
    assert "nearest" in text or "looks like a part" in text
    assert "--arch package.module:callable" in text and next(iter(PARTS[kind])) in text


def test_a_users_passengers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lossnet.py").write_text(
        "from torch import nn\ndef make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 5))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 5))
    state = {**prefixed(dict(model.state_dict()), "net."), "criterion.weight": zeros(5)}
    network, notes = opened(
        tmp_path / "x.pt", {"state_dict": state}, arch="lossnet:make", input_size=(8, 8)
    )
    assert computes(network, model, side=8) and any("criterion.weight" in n for n in notes)
