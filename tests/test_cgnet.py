"""Channel gating: its formulas against numbers worked out by hand and slow loops, its costs against
counted multiplications, its bad input.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import call, refused, save_npz, save_source
from counting import counted
from networks import CASES, infer, masked
from torch import Tensor, nn
from torch.nn import functional as F

import gatecli
from gatecli import methods
from gatecli.errors import ArchitectureError, SettingError
from gatecli.methods.cgnet import CGNetSettings, ChannelGate, base_channels, smoothed
from gatecli.network import Network
from gatecli.network.compare import relative_change
from gatecli.network.costs import expected_macs
from gatecli.training import TrainOptions
from gatecli.training.goals import goal_of
from gatecli.training.trained import Trained

GATES = ("coarse", "fine", "fc", "l1")
OLD = ("fc, base path", "l1, base path")  # as files without the setting `base_path` mean them
FUNCTIONS = (*GATES, *OLD)
NONE = 1e-30  # an epsilon that changes no sum: not every torch takes 0
every_function = pytest.mark.parametrize("function", FUNCTIONS)


def settings_of(function: str) -> dict[str, str]:
    """The settings that one of FUNCTIONS stands for."""
    gate, _, path = function.partition(", ")
    return {"gate": gate, "base_path": "yes" if path else "no"}


class Pair(nn.Module):
    """A stem, the convolution that tests look at, and its BatchNorm.

    What this gives is all that the classes see.
    """

    def __init__(self, channels: int, kernel: int, bias: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv, self.norm = (
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=bias),
            nn.BatchNorm2d(channels, eps=NONE),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.stem(x))).flatten(1)


def pair(
    function: str,
    channels: int = 2,
    kernel: int = 1,
    size: tuple[int, int] = (1, 2),
    bias: bool = False,
    **settings: Any,
) -> Network:
    """The stem lets images through; weights and statistics are small whole numbers.

    The gate has left its neutral start.
    """
    torch.manual_seed(0)
    model = Pair(channels, kernel, bias).eval()
    with torch.no_grad():
        model.stem.weight.copy_(torch.eye(channels)[..., None, None])
        for tensor in [*model.norm.parameters(), *model.norm.buffers(), *model.conv.parameters()][
            : -1 if bias else None
        ]:
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.randint(1, 4, tensor.shape).float()
                    * (
                        1
                        if tensor is model.norm.running_var
                        else torch.randint(0, 2, tensor.shape) * 2 - 1
                    )
                )
    network = gatecli.attach(
        model,
        "cgnet",
        input_size=size,
        include=["conv.*"],
        **settings_of(function),
        **settings,
    ).network
    gate = gate_of(network)
    gate.neutral.fill_(False)
    gate.norm.eps = NONE
    return network


def site_of(network: Network) -> str:
    """The one gated site of a `pair`."""
    (site,) = network.gated_by
    return site


def gate_of(network: Network) -> Any:
    return network.site_gates[site_of(network)]


# --- by hand ---

X = torch.tensor(
    [[[[1.0, -2.0]], [[3.0, 5.0]]]]
)  # one image, channels (1, -2) and (3, 5), two positions
W = torch.tensor([[1.0, 10.0], [2.0, 20.0]])
# without grouping the base path reads channel 0 alone:  Yp = [[1, -2], [2, -4]],  W x = [[31, 48],
# [62, 96]]
OPENED = torch.tensor([[[[31.0, 48.0]], [[62.0, 96.0]]]])
CLOSED = torch.tensor([[[[1.0, -2.0]], [[2.0, -4.0]]]]) * 100  # BN1 of these tests: times 100


def by_hand(
    function: str, delta: list[float], fc: list[list[float]] | None = None
) -> tuple[Network, Tensor]:
    """A network whose norms do nothing (BN1: times 100) with these thresholds, and what it gives
    for X.
    """
    network = pair(function, eta=0.5, grouping="no")
    conv, norm, gate = (
        network.get_submodule("conv"),
        network.get_submodule("norm"),
        gate_of(network),
    )
    with torch.no_grad():
        conv.weight.copy_(W[..., None, None])  # type: ignore[operator, union-attr]
        for each, scale in ((norm, 1.0), (getattr(gate, "base", None), 100.0)):
            if isinstance(each, nn.BatchNorm2d):
                each.reset_parameters()
                each.weight.fill_(scale)
                each.eps = NONE
        gate.delta.copy_(torch.tensor(delta))
        if fc is not None:
            gate.weight.copy_(torch.tensor(fc))
    return network, infer(network, X).reshape(1, 2, 1, 2)


def test_fine_by_hand() -> None:
    """Yp > Delta = (0, -3).

    Open at channel 0's first position (1 > 0) and channel 1's first (2 > -3); -2 and -4 stay
    closed.
    """
    network, out = by_hand("fine", [0.0, -3.0])
    assert torch.equal(out, torch.tensor([[[[31.0, -200.0]], [[62.0, -400.0]]]]))
    with gatecli.record_gates(network) as record:
        infer(network, X)
    assert record.latest()[site_of(network)].tolist() == [[0.5, 0.5]]


def test_coarse_by_hand() -> None:
    """Means of Yp over positions: (-.5, -1) against (-.6, 0).

    Channel 0 opens, channel 1 does not.
    """
    _, out = by_hand("coarse", [-0.6, 0.0])
    assert torch.equal(out, torch.cat([OPENED[:, :1], CLOSED[:, 1:]], 1))


@pytest.mark.parametrize(("function", "closed"), [("fc", CLOSED * 0), ("fc, base path", CLOSED)])
def test_fc_by_hand(function: str, closed: Tensor) -> None:
    """Mean |x| of the channels: (1.5, 4).

    Times [[2, 0], [0, -1]]: (3, -4), against (3.5, -5): channel 1 opens, channel 0 does not, and is
    zero.
    """
    _, out = by_hand(function, [3.5, -5.0], [[2.0, 0.0], [0.0, -1.0]])
    assert torch.equal(out, torch.cat([closed[:, :1], OPENED[:, 1:]], 1))


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        ((-0.3, 0.9), [31.0, 48.0, 62.0, 96.0]),
        ((-0.2, 0.9), [30.0, 50.0, 60.0, 100.0]),
        ((-0.3, 1.1), [1.0, -2.0, 2.0, -4.0]),
        ((-0.2, 1.1), [0.0] * 4),
    ],
)
def test_l1_by_hand(delta: tuple[float, float], expected: list[float]) -> None:
    """Mean |x| of the channels: (1.5, 4); with one mean 2 and one deviation 2: (-1/4, 1).

    What is above its Delta is computed with, and nothing else.
    """
    network, _ = by_hand("l1", list(delta))
    norm = gate_of(network).norm
    assert norm.running_mean.shape == (1,)
    norm.running_mean.fill_(2.0)
    norm.running_var.fill_(4.0)
    assert infer(network, X).flatten().tolist() == expected


@pytest.mark.parametrize(("delta", "expected"), [(3.9, OPENED), (4.1, CLOSED / 100)])
def test_l1_with_a_base_path_by_hand(delta: float, expected: Tensor) -> None:
    """Input channel 0 is the base path.

    Channel 1's mean |x| = 4 decides whether it is computed with; there is no BN1.
    """
    _, out = by_hand("l1, base path", [delta])
    assert torch.equal(out, expected)


def test_l1_compares_channels_with_each_other_in_training() -> None:
    """Norms of two images' channels: (1, 3) and (5, 7): mean 4, variance 5.

    With Delta = 0 the second image's channels open; each channel by itself, one of each would.
    """
    network = pair("l1")
    gate = gate_of(network).train()
    x = torch.tensor([[1.0, -3.0], [-5.0, 7.0]])[:, :, None, None].expand(2, 2, 1, 2)
    with gatecli.record_gates(network) as record, torch.no_grad():
        gate.delta.zero_()
        gate(x)
    norms = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    odds = record.odds[site_of(network)][0]
    assert torch.allclose(odds, gate.slope * (norms - 4) / 5**0.5)
    assert record.latest()[site_of(network)].tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert gate.norm.running_mean.item() == pytest.approx(0.1 * 4)


def test_the_gates_gradient() -> None:
    """d z / d Yp = eps s (1 - s), s = sigmoid(eps (Yp - Delta)), at most eps / 4.

    D z / d Delta is its negative; z itself is hard.
    """
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
    assert (
        torch.allclose(x.grad.flatten(), slope)
        and torch.allclose(gate.delta.grad, -slope.reshape(2, 2).sum(1))
        and slope.max() <= 3 / 4
    )
    odds = torch.zeros(1, requires_grad=True)
    smoothed(odds).backward()
    assert odds.grad is not None and odds.grad.item() == 0.25


@pytest.mark.parametrize("sparse", ["no", "yes"])
def test_sparse_backpropagation(sparse: str) -> None:
    """The gradient through a decision is zero where it is 0, and as ever where it is 1."""
    network = pair("fine", eta=0.5, sparse_bp=sparse)
    gate = gate_of(network).train()
    gate.norm.eval()
    gate.delta.data.zero_()
    x = torch.tensor([-1.0, 0.2, 0.0, 2.0]).reshape(1, 2, 1, 2).requires_grad_()
    z = gate(x)
    z.sum().backward()
    s = torch.sigmoid(2 * x.detach().flatten())
    slope = 2 * s * (1 - s)
    if sparse == "yes":
        slope = torch.tensor([0.0, slope[1], 0.0, slope[3]])
    assert x.grad is not None and torch.allclose(x.grad.flatten(), slope)
    assert torch.allclose(gate.delta.grad, -slope.reshape(2, 2).sum(1))
    assert z.flatten().tolist() == [0.0, 1.0, 0.0, 1.0]


# --- slow loops ---


class Loops:
    """What a gated `pair` means for one image (C, H, W), by loops over single numbers.

    Written from the paper and the settings alone; `count`: the multiplications that it took.
    """

    def __init__(self, network: Network, image: Tensor) -> None:
        self.settings = CGNetSettings(**network.recipe.steps[0].settings["settings"])
        self.conv: Any = network.get_submodule("conv")
        self.norm: Any = network.get_submodule("norm")
        self.gate = gate_of(network)
        self.image, self.count = image, 0
        self.channels, self.height, self.width = image.shape
        self.based = self.settings.base_path or self.settings.gate in ("coarse", "fine")
        self.grouped = self.settings.grouping and self.settings.gate != "l1"
        self.base = self.base_paths() if self.based else [set()] * self.channels
        self.everything = set(range(self.channels))
        self.places = list(itertools.product(range(self.height), range(self.width)))
        self.mean_size = [
            sum(abs(float(image[c, i, j])) for i, j in self.places) / len(self.places)
            for c in range(self.channels)
        ]

    def base_paths(self) -> list[set[int]]:
        """The input channels of each output channel's base path."""
        parts = round(1 / self.settings.eta)
        order = (
            sorted(range(self.channels), key=lambda c: (c % parts, c))
            if self.settings.shuffle
            else list(range(self.channels))
        )
        size = self.channels // parts
        return [
            set(
                order[(o // size) * size : (o // size + 1) * size] if self.grouped else order[:size]
            )
            for o in range(self.channels)
        ]

    def total(self, o: int, i: int, j: int, inputs: set[int]) -> float:
        sum_, side = 0.0, self.conv.kernel_size[0]
        for c in sorted(inputs):
            for a, b in itertools.product(range(side), repeat=2):
                self.count += 1
                y, x = i + a - side // 2, j + b - side // 2
                if 0 <= y < self.height and 0 <= x < self.width:
                    sum_ += float(self.conv.weight[o, c, a, b]) * float(self.image[c, y, x])
        return sum_

    def normed(self, value: float, by: Any, o: int) -> float:
        scaled = (value - float(by.running_mean[o])) / float(by.running_var[o]) ** 0.5
        return scaled if by.weight is None else scaled * float(by.weight[o]) + float(by.bias[o])

    def opened(self, sums: float, o: int) -> float:
        """The output of the convolution's bias and BatchNorm."""
        bias = 0 if self.conv.bias is None else float(self.conv.bias[o])
        return self.normed(sums + bias, self.norm, o)

    def is_open(self, value: float, unit: int, decided: Tensor | None) -> bool:
        return bool(value > float(self.gate.delta[unit]) if decided is None else decided[unit] > 0)

    def gated_inputs(self, decided: Tensor | None) -> Tensor:
        """Of the gate `l1`."""
        open_ = {
            c
            for u, c in enumerate(sorted(self.everything - self.base[0]))
            if self.is_open(
                self.normed(self.mean_size[c], self.gate.norm, u if self.based else 0), u, decided
            )
        }
        out = torch.empty(self.channels, self.height, self.width)
        for o, (i, j) in itertools.product(range(self.channels), self.places):
            out[o, i, j] = self.opened(self.total(o, i, j, self.base[o] | open_), o)
        return out

    def compared(self, o: int, yp: dict[tuple[int, int], float]) -> dict[tuple[int, int], float]:
        """What an output channel's Delta is compared with, at each position."""
        if self.settings.gate == "fine":
            return {place: self.normed(yp[place], self.gate.norm, o) for place in self.places}
        if self.settings.gate == "fc":
            self.count += self.channels
            said = sum(
                float(self.gate.weight[o, c]) * self.mean_size[c] for c in range(self.channels)
            )
        else:
            said = sum(yp.values()) / len(self.places)
        return dict.fromkeys(self.places, self.normed(said, self.gate.norm, o))

    def gated_outputs(self, decided: Tensor | None) -> Tensor:
        """Of the other gates."""
        out = torch.empty(self.channels, self.height, self.width)
        for o in range(self.channels):
            yp = {place: self.total(o, *place, self.base[o]) for place in self.places}
            for place, value in self.compared(o, yp).items():
                if not self.is_open(value, o, decided):
                    closed = self.normed(yp[place], self.gate.base, o) if self.based else 0.0
                    out[o][place] = closed
                else:
                    rest = self.total(o, *place, self.everything - self.base[o])
                    out[o][place] = self.opened(yp[place] + rest, o)
        return out


@torch.no_grad()
def slow(network: Network, image: Tensor, decided: Tensor | None = None) -> tuple[Tensor, int]:
    """What a gated `pair` means for one image (C, H, W), and the multiplications that this takes.

    decided: the gate's decisions, forced; (units,).
    """
    loops = Loops(network, image)
    is_of_inputs = loops.settings.gate == "l1"
    out = loops.gated_inputs(decided) if is_of_inputs else loops.gated_outputs(decided)
    return out, loops.count


@pytest.mark.parametrize(
    ("grouping", "shuffle"), [("no", "no"), ("yes", "no"), ("yes", "yes"), ("no", "yes")]
)
@every_function
def test_forward_and_multiplications_against_loops(
    function: str, grouping: str, shuffle: str
) -> None:
    """The masked graph, the skipping one at batch 1 and in a batch, and the MACs that are reported,
    for mixed decisions.
    """
    network = pair(function, 4, 3, (3, 3), bias=True, eta="1/2", grouping=grouping, shuffle=shuffle)
    gate = gate_of(network)
    images = torch.randint(-3, 4, (3, 4, 3, 3), generator=torch.Generator().manual_seed(1)).float()
    with gatecli.record_gates(
        network
    ) as record:  # thresholds between what the images say, so that decisions differ
        gate.delta.data.zero_()
        infer(network, images)
    said = record.odds[site_of(network)][0] / gate.slope
    with torch.no_grad():
        gate.delta.copy_(said.sort(0).values[:2].mean(0))
    results = [slow(network, image) for image in images]
    expected = torch.stack([out for out, _ in results]).flatten(1)
    with gatecli.record_gates(network) as record:
        mine = infer(network, images)
    z = record.latest()[site_of(network)]
    assert 0 < z.mean() < 1
    assert torch.allclose(mine, expected, atol=1e-4) and torch.allclose(
        masked(network, images), expected, atol=1e-4
    )
    stem = 4 * 4 * 9
    for image, (out, count), decided in zip(images, results, z, strict=True):
        assert torch.allclose(infer(network, image[None]), out.flatten()[None], atol=1e-4)
        assert expected_macs(network, {site_of(network): decided.tolist()}) == pytest.approx(
            stem + count
        )
        if function != "fine":  # what is really computed
            with counted() as macs:
                infer(network, image[None])
            assert macs.total == stem + count
    assert expected_macs(network, {site_of(network): z.mean(0).tolist()}) == pytest.approx(
        stem + sum(count for _, count in results) / 3
    )


@every_function
def test_pruned_against_loops(function: str) -> None:
    network = pair(function, 4, 3, (3, 3), bias=True, eta="1/2")
    site = site_of(network)
    image = torch.randint(-3, 4, (4, 3, 3), generator=torch.Generator().manual_seed(1)).float()
    for units in ([0, 1, 1, 0], [0] * 4, [1] * 4, [1, 0, 0, 0]):
        decided = units[: gate_of(network).units]
        smaller = gatecli.prune(
            network, rates={site: [float(unit) for unit in decided]}, static=0.5
        ).network
        out, count = slow(network, image, torch.tensor(decided))
        assert torch.allclose(infer(smaller, image[None]), out.flatten()[None], atol=1e-4)
        if function in ("fc", "l1") and not any(decided):  # nothing would be left to read
            assert expected_macs(smaller, {site: decided}) == 4 * 4 * 9 + count
            continue
        assert smaller.macs_dense == 4 * 4 * 9 + count - (16 if function[:2] == "fc" else 0)


@pytest.mark.parametrize(
    ("function", "grouping"),
    [*((function, "no") for function in FUNCTIONS), ("coarse", "yes"), ("fc, base path", "yes")],
)
def test_mixed_sites_against_loops(function: str, grouping: str) -> None:
    """Some channels open for good, some closed for good, the others still the gate's.

    Pruned three times, and in the end decided for all.
    """
    network = pair(function, 8, 3, (3, 3), bias=True, eta="1/2", grouping=grouping)
    site = site_of(network)
    gate, images = (
        gate_of(network),
        torch.randint(-3, 4, (4, 8, 3, 3), generator=torch.Generator().manual_seed(1)).float(),
    )
    gate.delta.data.zero_()
    with gatecli.record_gates(network) as record:
        infer(network, images)
    with torch.no_grad():
        gate.delta.copy_((record.odds[site][0] / gate.slope).sort(0).values[1:3].mean(0))
    with gatecli.record_gates(network) as record:
        infer(network, images)
    own, smaller, units = (
        record.latest()[site].clone(),
        network,
        list(range(gate.units)),
    )
    for opened, closed in (([0], [2]), ([3], []), ([], [1])):
        rates = {
            site: [1.0 if unit in opened else 0.0 if unit in closed else 0.5 for unit in units]
        }
        done = gatecli.prune(smaller, rates=rates)
        own[:, opened], own[:, closed] = 1.0, 0.0
        gate.threshold[opened], gate.threshold[closed] = 0.0, 1.0
        assert (
            done.max_logit_change <= 1e-5
            and done.network.params < smaller.params
            and done.kept_dynamic == ([site] if len(units) > len(opened + closed) else [])
        )
        smaller, units = done.network, [unit for unit in units if unit not in opened + closed]
        mine = infer(smaller, images)
        assert torch.allclose(mine, infer(network, images), atol=1e-4) and torch.allclose(
            masked(smaller, images), mine, atol=1e-4
        )
        if function == "fine":
            continue
        for image, decided in zip(images, own, strict=True):
            assert torch.allclose(
                infer(smaller, image[None]),
                slow(network, image, decided)[0].flatten()[None],
                atol=1e-4,
            )
            with (
                counted() as macs
            ):  # nothing of what is decided is computed, and all that is computed is counted
                infer(smaller, image[None])
            decisions = {site: decided[units].tolist()} if units else {}
            assert expected_macs(smaller, decisions) == pytest.approx(macs.total, rel=1e-9)
    final = (
        gatecli.prune(
            smaller, rates={site: [float(unit % 2) for unit in units]}, static=0.5
        ).network
        if units
        else smaller
    )
    gate.threshold[units] = torch.tensor([float(1 - unit % 2) for unit in units])
    assert not final.gated_by and torch.allclose(
        infer(final, images), infer(network, images), atol=1e-4
    )


# --- closed channels that are zero ---


def mixed(name: str) -> Network:
    """A network whose fc gates open about half of their channels, each image its own."""
    network = trained(name, "fc")
    x = CASES[name].images(6)
    for site, gate in network.site_gates.items():  # in order: what comes later sees what is closed
        with gatecli.record_gates(network) as record:
            infer(network, x)
        assert isinstance(gate, ChannelGate)
        with torch.no_grad():
            said = record.odds[site][0].sort(0).values / gate.slope
            gate.delta[::2] += said[1:3, ::2].mean(0)
            gate.delta[1::2] += said[3:5, 1::2].mean(0)
    return network


@pytest.mark.parametrize("name", ["cifar-projection", "own", "bottleneck", "preactivation"])
def test_what_is_zero_is_not_read(name: str) -> None:
    """A convolution costs the share of its open outputs times that of its open inputs.

    Summed here from the recorded decisions, by the names of the convolutions before and after.
    """
    network, x = mixed(name), CASES[name].images(6)
    with gatecli.record_gates(network) as record:
        batch = infer(network, x)
    assert relative_change(masked(network, x), batch) <= 1e-5
    decided = record.latest()
    before = {
        node: site
        for site in network.gated_by
        for saving in network.sites[site].savings
        for node in [saving.node]
        if node not in network.sites[site].branch
    }
    assert before
    own = {network.sites[site].branch[0]: site for site in network.gated_by}
    totals = set()
    for number in range(len(x)):
        total = 0.0
        for node, cost in network.costs.items():
            sites = [where[node] for where in (own, before) if node in where]
            total += cost.macs * math.prod(decided[site][number].mean().item() for site in sites)
        one = {site: z[number].tolist() for site, z in decided.items()}
        assert expected_macs(network, one) == pytest.approx(total, rel=1e-6)
        with counted() as macs:
            infer(network, x[number : number + 1])
        assert macs.total == pytest.approx(total, rel=1e-6)
        totals.add(round(total))
    assert len(totals) > 2 and min(totals) < network.macs_dense


def test_which_convolutions_read_zeros() -> None:
    """The second of a basic block reads the first's; behind an addition nothing is zero."""
    network = gatecli.attach(CASES["cifar-projection"].network(), "cgnet", gate="fc").network
    for site in network.gated_by:
        read = [s.node for s in network.sites[site].savings[len(network.sites[site].tail) :]]
        first = site.endswith("conv1.filters")
        assert read == ([site.removesuffix("1.filters").replace(".", "_") + "2"] if first else [])


@pytest.mark.parametrize(("first", "second"), [("fc", "coarse"), ("coarse", "fc")])
def test_both_ways_of_gating_leave_each_other_alone(first: str, second: str) -> None:
    network = gatecli.attach(
        CASES["own"].network(), "cgnet", gate=first, include=["units.0.*"]
    ).network
    both = gatecli.attach(network, "cgnet", gate=second)
    convs = [site.rpartition(".")[0] for site in both.network.gated_by]
    assert len({*convs}) == len(convs) == 5 and both.max_logit_change <= 1e-5
    trained_both = both.network.train()
    trained_both(CASES["own"].images(6))
    x = CASES["own"].images(3)
    assert relative_change(masked(trained_both.eval(), x), infer(trained_both, x)) <= 1e-5
    with pytest.raises(ArchitectureError, match="found nothing to gate"):
        gatecli.attach(both.network, "cgnet", gate=first)


def test_a_gate_that_loses_inputs_says_the_same() -> None:
    """What channels have always said goes into the mean that is taken away from all."""
    gate = gate_of(pair("fc", 4))
    gate.norm.running_mean.copy_(torch.arange(4.0))
    x = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    x[:, 1], x[:, 3] = -2.0, 0.5
    before = gate.log_odds(x)
    kept, gone = torch.tensor([0, 2]), torch.tensor([1, 3])
    gate.drop_inputs(kept, gone, torch.tensor([-2.0, 0.5]))
    assert gate.weight.shape == (4, 2)
    assert torch.allclose(gate.log_odds(x[:, kept]), before, atol=1e-5)


# --- older files ---


@pytest.mark.parametrize(
    ("stored", "base_path"), [("fc", True), ("l1", True), ("coarse", False), ("fine", False)]
)
def test_files_without_the_setting_mean_what_they_meant(stored: str, base_path: bool) -> None:
    method = methods.get("cgnet")
    settings = methods.recorded_settings(method, {"gate": stored, "eta": 0.25})
    assert settings.base_path == base_path and not settings.sparse_bp
    assert not CGNetSettings(gate=stored).base_path


# --- on whole networks ---


def trained(name: str, function: str, **settings: Any) -> Network:
    """A gated network that a few steps have taken out of its neutral start."""
    case = CASES[name]
    network = gatecli.attach(
        case.build(),
        "cgnet",
        input_size=case.size,
        arch=case.arch,
        **settings_of(function),
        **settings,
    ).network.train()
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    for seed in range(3):
        optimizer.zero_grad()
        F.cross_entropy(
            network(case.images(6, seed)), torch.arange(6) % network.num_classes
        ).backward()
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize(
    ("function", "name", "grouping"),
    [
        *((function, "own", "no") for function in FUNCTIONS),
        ("coarse", "cifar-projection", "yes"),
        ("fc, base path", "own", "yes"),
    ],
)
def test_skips_prunes_saves_and_loads(
    function: str, name: str, grouping: str, tmp_path: Path
) -> None:
    case, network = CASES[name], trained(name, function, grouping=grouping, shuffle="yes")
    x = case.images(5)
    assert not any(bool(gate.neutral) for gate in network.site_gates.values())
    for images in (x, x[:1]):
        assert relative_change(masked(network, images), infer(network, images)) <= 1e-5
    draw = torch.Generator().manual_seed(0)
    first, second, *_ = sites = list(network.gated_by)
    rates = {
        site: (torch.rand(network.site_gates[site].units, generator=draw) > 0.5).float().tolist()
        for site in sites
    }
    # without a base path a convolution, or the next one, would have nothing left to read
    few = [float(function in ("fc", "l1")), *[0.0] * (len(rates[first]) - 1)]
    rates |= {first: few, second: [1.0] * len(rates[second])}
    pruned = gatecli.prune(network, rates=rates, static=0.5)
    assert pruned.max_logit_change <= 1e-5 and not pruned.network.gated_by
    assert (
        pruned.removed == ([] if any(few) else [first])
        and pruned.ungated == [second]
        and set(pruned.thinned) == set(sites) - {second, *pruned.removed}
    )
    assert second in pruned.network.sites
    assert (first in pruned.network.sites) == (function == "fc")  # a convolution, if a smaller one
    overhead = sum(
        network.costs[node.name].macs
        for node in network.graph.nodes
        if str(node.target).startswith("gates.")
    )
    assert (
        pruned.network.macs_dense == pytest.approx(expected_macs(network, rates) - overhead)
        and pruned.network.params < network.params
    )
    mixed = gatecli.prune(
        network,
        rates={site: [0.0, 1.0, *[0.5] * (len(units) - 2)] for site, units in rates.items()},
    )
    assert (
        mixed.max_logit_change <= 1e-5
        and mixed.freed == {site: [1] for site in sites}
        and mixed.thinned == {site: [0] for site in sites}
        and mixed.network.params < network.params
    )
    for each in (network, pruned.network, mixed.network):
        path = tmp_path / str(id(each))
        gatecli.write(each, path)
        loaded = gatecli.load(path, arch=case.arch)
        assert (
            torch.equal(infer(loaded, x), infer(each, x))
            and loaded.sites == each.sites
            and loaded.macs_dense == each.macs_dense
        )


@every_function
def test_neutral_until_the_first_training_step(function: str) -> None:
    """Every gate is open for every finite input and at every threshold below 1, and nothing but
    training in earnest changes that.
    """
    case = CASES["cifar-projection"]
    source = case.build()
    network = gatecli.attach(
        source, "cgnet", input_size=case.size, start=0.5, **settings_of(function)
    ).network
    for scale in (1e-20, 1.0, 1e12):
        x = case.images(3) * scale
        with gatecli.record_gates(network) as record:
            assert relative_change(infer(source, x), infer(network, x)) <= 1e-5
        assert all(bool((z == 1).all()) for z in record.latest().values())
    with gatecli.force(
        network.train(), {site: [1] * gate.units for site, gate in network.site_gates.items()}
    ):
        infer(network, x)
    assert all(bool(gate.neutral) for gate in network.site_gates.values())
    network(case.images(4))
    assert not any(bool(gate.neutral) for gate in network.site_gates.values())
    assert all(bool((gate.delta == 0.5).all()) for gate in network.site_gates.values())
    with gatecli.record_gates(network.eval()) as record:
        infer(network, case.images(3))
    assert any(bool((z == 0).any()) for z in record.latest().values())


def test_what_is_gated() -> None:
    """All 3x3 convolutions behind the stem; 1x1 ones where they are named."""
    case = CASES["bottleneck"]
    network = gatecli.attach(case.network(), "cgnet").network
    assert list(network.gated_by) == [
        f"layer{n}.{i}.conv2.channels" for n, i in ((1, 0), (1, 1), (2, 0), (3, 0), (4, 0))
    ]
    named = gatecli.attach(
        case.network(), "cgnet", include=["layer1.*"], exclude=["*downsample*"]
    ).network
    assert list(named.gated_by) == [
        f"layer1.{i}.conv{n}.channels" for i in (0, 1) for n in (1, 2, 3)
    ]
    sites = case.network().sites
    assert (
        sites["layer1.1.conv2.channels"].units == 8
        and sites["layer1.1.conv2.channels"].macs == 8 * 8 * 9 * 64
    )
    gated = network.sites["layer1.1.conv2.channels"]
    assert gated.macs == 8 * 6 * 9 * 64


def test_the_base_path() -> None:
    def channels(count: int, **how: Any) -> tuple[tuple[int, ...], int]:
        return base_channels(count, CGNetSettings(eta=0.25, **how))

    assert channels(8, grouping=False) == ((0, 1), 1) and channels(
        8, grouping=False, shuffle=True
    ) == ((0, 4), 1)
    assert (
        channels(8) == ((0, 1), 1)
        and channels(8, grouping=True) == (tuple(range(8)), 4)
        and channels(8, grouping=True, shuffle=True) == ((0, 4, 1, 5, 2, 6, 3, 7), 4)
    )
    assert channels(8, gate="l1", base_path=True) == ((0, 1), 1)
    assert channels(8, gate="l1") == channels(8, gate="fc", grouping=True) == ((), 1)
    assert base_channels(8, CGNetSettings(eta=0.375, grouping=False)) == ((0, 1, 2), 1)


def test_the_loss_draws_thresholds_to_the_target() -> None:
    """lambda sum (T - Delta)^2, over all channels of all gates."""
    method, settings = methods.get("cgnet"), CGNetSettings(target=2.0, loss_weight=0.1)
    network = gatecli.attach(CASES["own"].network(), "cgnet").network
    gates = list(network.site_gates.values())
    penalty = method.objective.penalty(gates, settings)
    assert isinstance(penalty, Tensor) and penalty.item() == pytest.approx(
        0.1 * 4 * sum(gate.units for gate in gates)
    )
    penalty.backward()  # type: ignore[no-untyped-call]
    assert all(
        torch.allclose(gate.delta.grad, torch.tensor(-0.4))
        for gate in gates
        if isinstance(gate, ChannelGate)
    )


def test_training_says_no_rate_and_keeps_the_last_epoch() -> None:
    network, method = gatecli.attach(CASES["own"].network(), "cgnet").network, methods.get("cgnet")
    trained = [Trained(method, method.about.settings())]
    goal = goal_of(network, trained, TrainOptions(epochs=3))
    row = {
        "epoch": 1,
        "val_top1": 99.0,
        "achieved_rate": 0.9,
        "achieved": {"cgnet": 0.9},
        "macs_expected": 1e6,
        "target_rate": None,
    }
    assert (
        goal.rank(row) is None
        and goal.reported(row) is None
        and goal.meets(row)
        and goal.chosen(None).startswith("last: epoch 3")
    )
    with pytest.raises(SettingError, match="cgnet are trained"):
        goal_of(network, trained, TrainOptions(max_drop=1.0))
    decayed, free = trained[0].groups(network, TrainOptions(epochs=1))
    gates = list(network.site_gates.values())
    assert free["weight_decay"] == 0 and {id(p) for p in free["params"]} == {
        id(gate.delta) for gate in gates
    }
    assert decayed["weight_decay"] == 1e-4 and len(decayed["params"]) == 2 * len(gates)


def test_gates_in_gated_branches_are_refused() -> None:
    network = gatecli.attach(CASES["own"].network(), "cgnet").network
    with pytest.raises(SettingError, match="one within the other: prune first"):
        gatecli.attach(network, "aig-perbatch")
    with pytest.raises(SettingError, match="one within the other: prune first"):
        gatecli.attach(gatecli.attach(CASES["own"].network(), "aig-perbatch").network, "cgnet")
    stacked = gatecli.attach(network, "dgate")
    assert stacked.max_logit_change <= 1e-5


# --- bad input ---


def test_eta_must_divide(tmp_path: Path) -> None:
    with pytest.raises(
        SettingError,
        match=(
            r"`eta` to divide the 8 input and 8 output channels of `units.0.c1.channels` into equal"
            r" groups, but got 0.333333;"
        ),
    ) as caught:
        gatecli.attach(CASES["own"].network(), "cgnet", eta="1/3", grouping="yes")
    assert "nearest that divides all is 1/4" in str(caught.value)
    with pytest.raises(SettingError, match="nearest that divides all is 1/4"):
        gatecli.attach(CASES["own"].network(), "cgnet", eta=0.3)
    with pytest.raises(SettingError, match="8 input and 12 output"):
        gatecli.attach(CASES["own"].network(), "cgnet", eta="1/8", grouping="yes")


def test_convolutions_that_are_refused_say_why() -> None:
    from torchvision.models.resnet import Bottleneck, ResNet

    grouped = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=4, groups=4, width_per_group=4).eval()
    network = gatecli.attach(
        grouped, "cgnet", input_size=(32, 32), include=["layer1.0.conv1.*"]
    ).network
    assert list(network.gated_by) == ["layer1.0.conv1.channels"]
    for pattern, why in (
        ("layer1.0.conv2.*", "`layer1.0.conv2.channels` convolves in 4 groups"),
        ("conv1.channels", "reads the image"),
    ):
        with pytest.raises(SettingError, match=why):
            gatecli.attach(network, "cgnet", include=[pattern])
    with pytest.raises(SettingError, match=r"`units.2.body.3.channels` has no BatchNorm behind it"):
        gatecli.attach(CASES["own"].network(), "cgnet", include=["units.2.body.3.*"])


def test_nothing_to_gate() -> None:
    for name in ("writing", "oneblock", "tokens"):
        with pytest.raises(ArchitectureError, match=r"cgnet found nothing to gate.*BatchNorm"):
            gatecli.attach(CASES[name].network(), "cgnet")


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_source(Path("r20.pt"))
    found = call("attach", "r20.pt", "--method", "cgnet", "--set", "eta=1/4", "--set", "gate=fine")
    assert (found["gates"], found["units"]) == (18, 6 * 16 + 6 * 32 + 6 * 64) and found[
        "max_logit_change"
    ] <= 1e-6
    refused("attach r20.pt --method cgnet --set eta=1/3 --out other.safetensors", "5/16")
    refused(
        "attach r20.pt --method cgnet --set eta=1/0 --out other.safetensors", "`eta` to be a number"
    )
    save_npz(Path("data.npz"))
    tuned = call(
        "finetune",
        "--data",
        "npz:data.npz",
        "--epochs",
        1,
        "--batch-size",
        32,
        "--set",
        "target=0.5",
        "--set",
        "loss_weight=0.1",
    )
    assert (
        tuned["target_rate"] is None
        and 0 < tuned["achieved_rate"] < 1
        and tuned["macs_expected"] < tuned["macs_dense"]
    )
    assert tuned["chosen"].startswith("last: epoch 1")
