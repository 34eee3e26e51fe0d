"""Channel gating: its formulas against numbers worked out by hand and slow loops, its costs against counted multiplications, its bad input."""
from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import call, refused, save_source
from networks import CASES
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import gatecli
from gatecli import methods
from gatecli.costs import expected_macs
from gatecli.errors import ArchitectureError, SettingError
from gatecli.methods.cgnet import CGNetSettings, ChannelGate, base_channels, smoothed
from gatecli.network import Network
from gatecli.probe import relative_change
from gatecli.training import TrainOptions
from gatecli.training.goals import goal_of

FUNCTIONS = ("coarse", "fine", "fc", "l1")
SITE = "conv.channels"
every_function = pytest.mark.parametrize("function", FUNCTIONS)


class Pair(nn.Module):
    """A stem, the convolution that tests look at, and its BatchNorm; what this gives is all that the classes see."""

    def __init__(self, channels: int, kernel: int, bias: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv, self.norm = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=bias), nn.BatchNorm2d(channels, eps=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.stem(x))).flatten(1)


def pair(function: str, channels: int = 2, kernel: int = 1, size: tuple[int, int] = (1, 2), bias: bool = False, **settings: Any) -> Network:
    """The stem lets images through; weights and statistics are small whole numbers; the gate has left its neutral start."""
    torch.manual_seed(0)
    model = Pair(channels, kernel, bias).eval()
    with torch.no_grad():
        model.stem.weight.copy_(torch.eye(channels)[..., None, None])
        for tensor in [*model.norm.parameters(), *model.norm.buffers(), *model.conv.parameters()][:-1 if bias else None]:
            if tensor.is_floating_point():
                tensor.copy_(torch.randint(1, 4, tensor.shape).float() * (1 if tensor is model.norm.running_var else torch.randint(0, 2, tensor.shape) * 2 - 1))
    network = gatecli.attach(model, "cgnet", input_size=size, include=[SITE], gate=function, **settings).network
    gate = gate_of(network)
    gate.neutral.fill_(False)
    gate.norm.eps = 0
    return network


def gate_of(network: Network) -> Any:
    return network.site_gates[SITE]


def run(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(x)
        return logits


def masked(network: Network, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network._masked(network, x)
        return logits


# --- by hand ---

X = torch.tensor([[[[1.0, -2.0]], [[3.0, 5.0]]]])  # one image, channels (1, -2) and (3, 5), two positions
W = torch.tensor([[1.0, 10.0], [2.0, 20.0]])
# without grouping the base path reads channel 0 alone:  Yp = [[1, -2], [2, -4]],  W x = [[31, 48], [62, 96]]
OPENED = torch.tensor([[[[31.0, 48.0]], [[62.0, 96.0]]]])
CLOSED = torch.tensor([[[[1.0, -2.0]], [[2.0, -4.0]]]]) * 100  # BN1 of these tests: times 100


def by_hand(function: str, delta: list[float], fc: list[list[float]] | None = None) -> tuple[Network, Tensor]:
    """A network whose norms do nothing (BN1: times 100) with these thresholds, and what it gives for X."""
    network = pair(function, eta=0.5, grouping="no")
    conv, norm, gate = network.get_submodule("conv"), network.get_submodule("norm"), gate_of(network)
    with torch.no_grad():
        conv.weight.copy_(W[..., None, None])  # type: ignore[operator, union-attr]
        for each, scale in ((norm, 1.0), (getattr(gate, "base", None), 100.0)):
            if isinstance(each, nn.BatchNorm2d):
                each.reset_parameters()
                each.weight.fill_(scale)
                each.eps = 0
        gate.delta.copy_(torch.tensor(delta))
        if fc is not None:
            gate.weight.copy_(torch.tensor(fc))
    return network, run(network, X).reshape(1, 2, 1, 2)


def test_fine_by_hand() -> None:
    """Yp > Delta = (0, -3): open at channel 0's first position (1 > 0) and channel 1's first (2 > -3); -2 and -4 stay closed."""
    network, out = by_hand("fine", [0.0, -3.0])
    assert torch.equal(out, torch.tensor([[[[31.0, -200.0]], [[62.0, -400.0]]]]))
    with gatecli.record_gates(network) as record:
        run(network, X)
    assert record.latest()[SITE].tolist() == [[0.5, 0.5]]


def test_coarse_by_hand() -> None:
    """Means of Yp over positions: (-.5, -1) against (-.6, 0): channel 0 opens, channel 1 does not."""
    _, out = by_hand("coarse", [-0.6, 0.0])
    assert torch.equal(out, torch.cat([OPENED[:, :1], CLOSED[:, 1:]], 1))


def test_fc_by_hand() -> None:
    """Mean |x| of the channels: (1.5, 4); times [[2, 0], [0, -1]]: (3, -4), against (3.5, -5): channel 1 opens, channel 0 does not."""
    _, out = by_hand("fc", [3.5, -5.0], [[2.0, 0.0], [0.0, -1.0]])
    assert torch.equal(out, torch.cat([CLOSED[:, :1], OPENED[:, 1:]], 1))


@pytest.mark.parametrize("delta, expected", [(3.9, OPENED), (4.1, CLOSED / 100)])
def test_l1_by_hand(delta: float, expected: Tensor) -> None:
    """Input channel 0 is the base path; channel 1's mean |x| = 4 decides whether it is computed with; there is no BN1."""
    _, out = by_hand("l1", [delta])
    assert torch.equal(out, expected)


def test_the_gates_gradient() -> None:
    """d z / d Yp = eps s (1 - s), s = sigmoid(eps (Yp - Delta)), at most eps / 4; d z / d Delta is its negative; z itself is hard."""
    network = pair("fine", eta=0.5, grouping="no", eps=3.0)
    gate = gate_of(network).train()
    gate.norm.eval()
    x = torch.tensor([-1.0, 0.2, 0.0, 2.0]).reshape(1, 2, 1, 2).requires_grad_()
    with torch.no_grad():
        gate.delta.copy_(torch.tensor([0.1, 0.0]))
    z = gate(x)
    assert z.flatten().tolist() == [0.0, 1.0, 0.0, 1.0]
    z.sum().backward()
    s = torch.sigmoid(3 * torch.tensor([-1.1, 0.1, 0.0, 2.0]))
    slope = 3 * s * (1 - s)
    assert x.grad is not None
    assert torch.allclose(x.grad.flatten(), slope) and torch.allclose(gate.delta.grad, -slope.reshape(2, 2).sum(1)) and slope.max() <= 3 / 4
    odds = torch.zeros(1, requires_grad=True)
    smoothed(odds).backward()
    assert odds.grad is not None and odds.grad.item() == 0.25


# --- slow loops ---


@torch.no_grad()
def slow(network: Network, image: Tensor, decided: Tensor | None = None) -> tuple[Tensor, int]:
    """What a gated `pair` means for one image (C, H, W), and how many multiplications that takes, by loops over single numbers.

    Written from the paper and the settings alone. decided: the gate's decisions, forced; (units,).
    """
    settings = CGNetSettings(**network.recipe.steps[0].settings["settings"])
    conv: Any = network.get_submodule("conv")
    norm: Any = network.get_submodule("norm")
    gate = gate_of(network)
    channels, height, width = image.shape
    parts, side = round(1 / settings.eta), conv.kernel_size[0]
    order = sorted(range(channels), key=lambda c: (c % parts, c)) if settings.shuffle == "yes" else list(range(channels))
    grouped, size = settings.grouping == "yes" and settings.gate != "l1", channels // parts
    base = [set(order[(o // size) * size : (o // size + 1) * size] if grouped else order[:size]) for o in range(channels)]
    count = 0

    def total(o: int, i: int, j: int, inputs: set[int]) -> float:
        nonlocal count
        sum_ = 0.0
        for c in sorted(inputs):
            for a, b in itertools.product(range(side), repeat=2):
                count += 1
                y, x = i + a - side // 2, j + b - side // 2
                if 0 <= y < height and 0 <= x < width:
                    sum_ += float(conv.weight[o, c, a, b]) * float(image[c, y, x])
        return sum_

    def normed(value: float, by: Any, o: int) -> float:
        scaled = (value - float(by.running_mean[o])) / float(by.running_var[o]) ** 0.5
        return scaled if by.weight is None else scaled * float(by.weight[o]) + float(by.bias[o])

    everything = set(range(channels))
    places = list(itertools.product(range(height), range(width)))
    mean_size = [sum(abs(float(image[c, i, j])) for i, j in places) / len(places) for c in range(channels)]
    out = torch.empty(channels, height, width)
    if settings.gate == "l1":
        gated = sorted(everything - base[0])
        open_ = {c for u, c in enumerate(gated) if (decided[u] > 0 if decided is not None else normed(mean_size[c], gate.norm, u) > float(gate.delta[u]))}
        for o, (i, j) in itertools.product(range(channels), places):
            out[o, i, j] = normed(total(o, i, j, base[o] | open_) + (0 if conv.bias is None else float(conv.bias[o])), norm, o)
        return out, count
    for o in range(channels):
        yp = {place: total(o, *place, base[o]) for place in places}
        if settings.gate == "fc":
            count += channels
            said = normed(sum(float(gate.weight[o, c]) * mean_size[c] for c in range(channels)), gate.norm, o)
        elif settings.gate == "coarse":
            said = normed(sum(yp.values()) / len(places), gate.norm, o)
        for place in places:
            value = normed(yp[place], gate.norm, o) if settings.gate == "fine" else said
            if decided[o] > 0 if decided is not None else value > float(gate.delta[o]):
                full = yp[place] + total(o, *place, everything - base[o]) + (0 if conv.bias is None else float(conv.bias[o]))
                out[o][place] = normed(full, norm, o)
            else:
                out[o][place] = normed(yp[place], gate.base, o)
    return out, count


@pytest.mark.parametrize("grouping, shuffle", [("no", "no"), ("yes", "no"), ("yes", "yes"), ("no", "yes")])
@every_function
def test_forward_and_multiplications_against_loops(function: str, grouping: str, shuffle: str) -> None:
    """The masked graph, the skipping one at batch 1 and in a batch, and the MACs that are reported, for mixed decisions."""
    network = pair(function, 4, 3, (3, 3), bias=True, eta="1/2", grouping=grouping, shuffle=shuffle)
    gate = gate_of(network)
    images = torch.randint(-3, 4, (3, 4, 3, 3), generator=torch.Generator().manual_seed(1)).float()
    with gatecli.record_gates(network) as record:  # thresholds between what the images say, so that decisions differ
        gate.delta.data.zero_()
        run(network, images)
    said = record.odds[SITE][0] / gate.slope
    with torch.no_grad():
        gate.delta.copy_(said.sort(0).values[:2].mean(0))
    results = [slow(network, image) for image in images]
    expected = torch.stack([out for out, _ in results]).flatten(1)
    with gatecli.record_gates(network) as record:
        mine = run(network, images)
    z = record.latest()[SITE]
    assert 0 < z.mean() < 1
    assert torch.allclose(mine, expected, atol=1e-4) and torch.allclose(masked(network, images), expected, atol=1e-4)
    stem = 4 * 4 * 9
    for image, (out, count), decided in zip(images, results, z, strict=True):
        assert torch.allclose(run(network, image[None]), out.flatten()[None], atol=1e-4)
        assert expected_macs(network, {SITE: decided.tolist()}) == pytest.approx(stem + count)
        if function != "fine":  # what torch itself sees being computed
            with FlopCounterMode(display=False) as counter:
                run(network, image[None])
            assert counter.get_total_flops() / 2 == stem + count
    assert expected_macs(network, {SITE: z.mean(0).tolist()}) == pytest.approx(stem + sum(count for _, count in results) / 3)


@every_function
def test_pruned_against_loops(function: str) -> None:
    network = pair(function, 4, 3, (3, 3), bias=True, eta="1/2")
    image = torch.randint(-3, 4, (4, 3, 3), generator=torch.Generator().manual_seed(1)).float()
    for units in ([0, 1, 1, 0], [0] * 4, [1] * 4, [1, 0, 0, 0]):
        decided = units[: gate_of(network).units]
        smaller = gatecli.prune(network, rates={SITE: [float(unit) for unit in decided]}, static=0.5).network
        out, count = slow(network, image, torch.tensor(decided))
        assert torch.allclose(run(smaller, image[None]), out.flatten()[None], atol=1e-4)
        assert smaller.macs_dense == 4 * 4 * 9 + count - (16 if function == "fc" else 0)
