"""Layers of a library's own are seen through, and additions to some channels are additions."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gatecli
from gatecli.graph.see_through import pad_same
from gatecli.network import Network
from gatecli.probe import logits, relative_change
from gatecli.traced.recipe import InputSpec, Recipe, Source

SIZE = (15, 18)


class NormAct(nn.BatchNorm2d):
    """A BatchNorm that holds an activation, as timm's does."""

    def __init__(self, width: int, act: nn.Module) -> None:
        super().__init__(width)
        self.drop = nn.Identity()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class OddNorm(nn.BatchNorm2d):
    """One that does something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class SameConv(nn.Conv2d):
    """A convolution that pads as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip(
            x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            missing = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [missing // 2, missing - missing // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride)


class StaticConv(nn.Conv2d):
    """One that holds its padding."""

    def __init__(self, *args: int, **how: int) -> None:
        super().__init__(*args, **how)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.static_padding(x), self.weight, self.bias, self.stride)


class Own(nn.Module):
    def __init__(self, norm: type[nn.Module] = NormAct) -> None:
        super().__init__()
        self.stem = SameConv(3, 8, 3, stride=2)
        self.norm = NormAct(8, nn.ReLU(inplace=True))
        self.conv1 = SameConv(8, 8, 3)
        self.bn1 = NormAct(8, nn.PReLU(8)) if norm is NormAct else norm(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = NormAct(8, nn.Identity())
        self.down = StaticConv(8, 12, 2, stride=2)
        self.bn3 = NormAct(12, nn.SiLU())
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = F.relu(x + self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        return self.fc(self.bn3(self.down(x)).mean((2, 3)))


class Partial(nn.Module):
    """Adds to some channels, as ReXNet does, and with new ones behind, as dual paths do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.one = nn.Sequential(nn.Conv2d(6, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 9, 1))
        self.two = nn.Sequential(nn.Conv2d(9, 7, 3, padding=1), nn.ReLU(), nn.Conv2d(7, 8, 1))
        self.fc = nn.Linear(13, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.one(x)
        y = torch.cat([y[:, 0:6] + x, y[:, 6:]], dim=1)
        z = self.two(y)
        new = torch.cat([y[:, :4] + z[:, :4], y[:, 4:], z[:, 4:]], dim=1)
        return self.fc(F.relu(new).mean((2, 3)))


def made(network: type[nn.Module], *args: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = network(*args).eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return model


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def set_decisions(gate: nn.Module, units: list[int]) -> None:
    """What a gate that does not look at images decides."""
    if not gate.data_dependent:
        with torch.no_grad():
            gate.logits.copy_(torch.tensor([[0.0, 9.0] if unit else [9.0, 0.0] for unit in units]))


def traced(model: nn.Module) -> Network:
    return Network(model, Recipe(Source("", {}), InputSpec(SIZE, 0)))


def test_layers_become_torchs_own_with_the_same_tensors() -> None:
    model = made(Own)
    names = list(model.state_dict())
    network = traced(model)
    assert sorted(network.state_dict()) == sorted(names)
    own = [type(part) for part in network.modules() if isinstance(part, nn.Conv2d | nn.BatchNorm2d)]
    assert set(own) == {nn.Conv2d, nn.BatchNorm2d}
    assert type(model.bn1) is NormAct  # the source is left alone
    torch.testing.assert_close(network(images()), model(images()))
    kinds = {site.kind for site in network.sites.values()}
    assert {"block", "filter", "conv"} <= kinds


def test_training_stays_the_same() -> None:
    model, twin = made(Own).train(), made(Own)
    network = traced(twin).train()
    torch.testing.assert_close(network(images()), model(images()))
    torch.testing.assert_close(network.state_dict(), model.state_dict())


def test_what_does_something_else_is_left_whole() -> None:
    model = made(Own, OddNorm)
    network = traced(model)
    assert type(network.get_submodule("bn1")) is OddNorm
    torch.testing.assert_close(network(images()), model(images()))


@pytest.mark.parametrize(("method", "kinds"), [("ind-perbatch", ["filter"]), ("cgnet", ["conv"])])
def test_gating_and_pruning_inside_is_exact(method: str, kinds: list[str]) -> None:
    model = made(Own)
    gated = gatecli.attach(model, method, kinds=kinds, input_size=SIZE).network.eval()
    assert relative_change(logits(model, images()), logits(gated, images())) < 1e-6
    rates, decisions = {}, {}
    for site, gate in gated.site_gates.items():
        decisions[site] = [index % 2 for index in range(gate.units)]
        rates[site] = [float(unit) for unit in decisions[site]]
        set_decisions(gate, decisions[site])
    result = gatecli.prune(gated, rates=rates, static=0.5)
    with gatecli.force(gated, decisions):
        wanted = logits(gated, images())
    assert relative_change(wanted, logits(result.network, images())) < 1e-5
    assert result.network.params < gated.params


def test_additions_to_some_channels_are_blocks() -> None:
    model = made(Partial)
    gated = gatecli.attach(model, "aig-perbatch", input_size=SIZE).network.eval()
    assert sorted(gated.site_gates) == ["one", "two"]
    x = images(6)
    rows = {"one": [1, 0, 1, 0, 0, 1], "two": [0, 0, 1, 1, 0, 1]}
    with gatecli.force(gated, {site: torch.tensor(each)[:, None] for site, each in rows.items()}):
        torch.testing.assert_close(gated(x), gated._masked(gated, x))
    for site in ("one", "two"):
        rates = {name: [float(name != site)] for name in ("one", "two")}
        result = gatecli.prune(gated, rates=rates, static=0.5)
        with gatecli.force(gated, {name: [int(value[0])] for name, value in rates.items()}):
            wanted = logits(gated, x)
        assert relative_change(wanted, logits(result.network, x)) < 1e-6
        assert result.network.params < gated.params


@pytest.mark.parametrize(("size", "kernel", "stride"), [(7, 3, 2), (8, 3, 2), (9, 5, 3), (4, 1, 2)])
def test_pad_same_gives_ceil_of_size_by_stride(size: int, kernel: int, stride: int) -> None:
    x = pad_same(torch.ones(1, 1, size, size), (kernel,) * 2, (stride,) * 2, (1, 1))
    assert F.conv2d(x, torch.ones(1, 1, kernel, kernel), stride=stride).shape[-1] == math.ceil(
        size / stride
    )
    before = (x[0, 0, :, x.shape[-1] // 2] == 0).nonzero().flatten()
    missing = x.shape[-1] - size
    assert int((before < x.shape[-1] // 2).sum()) == missing // 2


def test_a_shortcut_handed_on_by_a_layer_that_does_nothing_is_exported(tmp_path: Path) -> None:
    """Two names for one value: the second one would come too late in the file."""
    pytest.importorskip("onnxruntime")

    class Handed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.act = nn.Identity()
            self.fc = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = self.act(x + self.one(x))
            x = self.act(x + self.two(x))
            return self.fc(x.mean((2, 3)))

    gated = gatecli.attach(made(Handed), "aig-perbatch", input_size=SIZE).network.eval()
    result = gatecli.export(gated, tmp_path / "out.onnx", "onnx")
    assert result.max_difference < 1e-5


def test_what_is_seen_through_is_written_as_source(tmp_path: Path) -> None:
    model = made(Own)
    model.bn1 = NormAct(8, nn.SiLU()).eval()  # the source of one with tensors cannot be written
    result = gatecli.export(traced(model), tmp_path / "out.py", "weights")
    assert result.max_difference < 1e-5
