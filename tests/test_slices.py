"""Removing channels: what is left computes what the masked network computed, and is smaller."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import SIDE, call, edit, refused, run, save_npz, save_source
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CASES, branches, dense, infer, lively, traced
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import gatecli
from gatecli.errors import SettingError
from gatecli.graph.ops import add_at, mask, widen
from gatecli.graph.patterns import is_channelwise, tail_of
from gatecli.graph.runs import runs_of
from gatecli.graph.trace import compile_graph
from gatecli.lowering.narrowed import AddAt
from gatecli.network import Network
from gatecli.network.compare import relative_change
from gatecli.network.costs import expected_macs
from gatecli.stages.attach import attach
from gatecli.stages.predict import predict

LIMIT = 1e-5


def decided(network: Network, decisions: dict[str, list[int]]) -> Network:
    """A copy whose data-independent gates decide so."""
    twin = network.copy()
    for site, units in decisions.items():
        gate: Any = twin.site_gates[site]
        with torch.no_grad():
            gate.logits.copy_(torch.tensor([[0.0, 9.0 if unit else -9.0] for unit in units]))
    return twin


# --- operations ---


def test_masks_of_several_units() -> None:
    value, z = torch.randn(2, 6, 3, 3), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    found = mask(value, z)
    for sample in range(2):
        for channel in range(6):
            assert torch.equal(
                found[sample, channel], value[sample, channel] * z[sample, channel // 2]
            )


@given(st.sets(st.integers(0, 11), min_size=1))
def test_widening_and_adding_at_places(places: set[int]) -> None:
    kept = sorted(places)
    runs = tuple(runs_of(kept))
    assert [number for first, end in runs for number in range(first, end)] == kept and all(
        a[1] < b[0] for a, b in itertools.pairwise(runs)
    )
    x, value = torch.randn(2, 12, 2, 2), torch.randn(2, len(kept), 2, 2)
    wide = torch.zeros(2, 12, 2, 2)
    wide[:, kept] = value
    assert torch.equal(widen(value, runs, 12), wide) and torch.allclose(
        add_at(x, value, runs), x + wide
    )


@pytest.mark.parametrize("count", [6, 60])
@pytest.mark.parametrize("axis", [1, -1])
def test_widening_is_as_many_nodes_however_many_runs(count: int, axis: int) -> None:
    """Exporters take seconds for hundreds of nodes: a pruned network may have as many runs."""
    runs = tuple((2 * number, 2 * number + 1) for number in range(count))
    shape = (2, count, 3, 3) if axis == 1 else (2, 3, 3, count)

    def wide(value: Tensor) -> Tensor:
        return widen(value, runs, 2 * count, axis)

    assert len(make_fx(wide)(torch.randn(shape)).graph.nodes) < 16


CHANNELWISE: dict[str, Any] = {
    "relu": nn.ReLU(inplace=True),
    "hardswish": nn.Hardswish(inplace=True),
    "dropout": nn.Dropout(),
    "pool": nn.MaxPool2d(2),
    "identity": nn.Identity(),
}
MIXING: dict[str, Any] = {
    "softmax": nn.Softmax(1),
    "shuffle": nn.ChannelShuffle(2),
    "instance": nn.GroupNorm(1, 6, affine=False),
    "weights": nn.Conv2d(6, 6, 1),
    "glu": nn.GLU(1),
}


@pytest.mark.parametrize("name", [*CHANNELWISE, *MIXING])
def test_operations_are_tried(name: str) -> None:
    root = nn.Sequential({**CHANNELWISE, **MIXING}[name])
    graph = fx.Graph()
    node = graph.call_module("0", (graph.placeholder("x"),))
    assert is_channelwise(root, node) == (name in CHANNELWISE)


# --- granularity ---


class Blocks(nn.Module):
    """Blocks that end in ways of their own.

    A BatchNorm, a bias, an activation that keeps zero, one that does not, and a depthwise
    convolution.
    """

    ENDS = ("norm", "bias", "relu", "sigmoid", "depthwise")

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        ends: dict[str, list[nn.Module]] = {
            "norm": [nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)],
            "bias": [nn.Conv2d(width, width, 1)],
            "relu": [
                nn.Conv2d(width, width, 1),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.Dropout(0.1),
            ],
            "sigmoid": [nn.Conv2d(width, width, 1), nn.Sigmoid()],
            "depthwise": [nn.Conv2d(width, width, 3, 1, 1, groups=width)],
        }
        self.stem, self.fc = nn.Conv2d(3, width, 1), nn.Linear(width, 5)
        for name in self.ENDS:
            self.add_module(
                name,
                nn.Sequential(
                    nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU(), *ends[name]
                ),
            )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for index, name in enumerate(self.ENDS):
            x = x + self.get_submodule(name)(x)
            x = torch.relu(x) if index % 2 else x
        return self.fc(x.mean((2, 3)))


def blocks() -> nn.Module:
    return Blocks()


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(3)
    return lively(Blocks(), torch.randn(8, 3, 6, 5))


def grained(source: nn.Module, method: str, units: int) -> Network:
    return attach(traced(source, (6, 5)), method, exclude=["depthwise"], granularity=units).network


@pytest.mark.parametrize("method", ["ind-perbatch", "aig-pergate"])
@pytest.mark.parametrize("units", [2, 3, 12])
def test_groups_are_skipped_and_mean_what_the_masks_mean(
    source: nn.Module, method: str, units: int
) -> None:
    gated, images = grained(source, method, units), torch.randn(5, 3, 6, 5)
    assert relative_change(infer(source, images), infer(gated, images)) <= LIMIT
    assert [gated.sites[site].units for site in gated.gated_by] == [units] * 4
    generator = torch.Generator().manual_seed(units)
    for count in (1, 5):
        decisions = {
            site: torch.randint(0, 2, (count, units), generator=generator).float()
            for site in gated.gated_by
        }
        decisions["bias"] = decisions["bias"][:1].expand(count, units)  # all alike
        decisions["norm"][-1] = 0  # one image leaves the block alone
        with gatecli.force(gated, decisions):
            wanted = compile_graph(gated.graph)(gated, images[:count])
            torch.testing.assert_close(infer(gated, images[:count]), wanted)
            with torch.enable_grad():
                torch.testing.assert_close(gated(images[:count]), wanted)
            torch.testing.assert_close(
                infer(gated, images[:count].contiguous(memory_format=torch.channels_last)), wanted
            )


def test_a_closed_group_is_not_computed(source: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in output channels of the last convolutions.

    The trunk runs only for images with an open group.
    """
    gated, images = grained(source, "ind-perbatch", 4), torch.randn(3, 3, 6, 5)
    seen: list[tuple[int, int]] = []
    forward = nn.Conv2d._conv_forward

    def watch(self: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self is gated.get_submodule("norm.0") or self is gated.get_submodule("norm.3"):
            seen.append((len(x), len(weight)))
        return forward(self, x, weight, bias)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", watch)
    closed = {site: [0] * 4 for site in gated.gated_by}
    for z, calls in (
        ([[0, 0, 0, 0]], []),
        ([[0, 1, 1, 0]], [(3, 12), (3, 6)]),
        ([[1, 0, 0, 1]], [(3, 12), (3, 3), (3, 3)]),
        ([[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0]], [(2, 12), (2, 3), (1, 3)]),
    ):
        seen.clear()
        with gatecli.force(gated, {**closed, "norm": torch.tensor(z).float()}):
            infer(gated, images)
        assert seen == calls


@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pruned_groups_are_gone_and_the_function_stays(
    source: nn.Module, round_to: int, seed: int
) -> None:
    gated, images = grained(source, "ind-perbatch", 6), torch.randn(4, 3, 6, 5)
    generator = torch.Generator().manual_seed(seed)
    decisions = {
        site: torch.randint(0, 2, (6,), generator=generator).tolist() for site in gated.gated_by
    }
    decisions["norm"], decisions["bias"] = [0, 1, 1, 0, 0, 0], [0] * 6
    result = gatecli.prune(decided(gated, decisions), round_to=round_to)
    smaller = result.network
    with gatecli.force(gated, decisions):
        assert relative_change(infer(gated, images), infer(smaller, images)) <= LIMIT
    assert (
        "bias" in result.removed
        and result.thinned["norm"] == [0, 3, 4, 5]
        and not result.kept_dynamic
    )
    held = smaller.state_dict()
    kept = 4 if round_to == 1 else 8
    assert result.padded.get("norm", 0) == kept - 4 and (result.padded or round_to == 1)
    assert held["norm.3.weight"].shape == (kept, 12, 3, 3) and held["norm.4.running_var"].shape == (
        kept,
    )
    if 0 < sum(decisions["sigmoid"]) < 6:  # sigmoid(0) is not 0: no spare filters there
        assert held["sigmoid.3.weight"].shape[0] == 2 * sum(decisions["sigmoid"])
    assert (
        smaller.params < gated.params and smaller.macs_dense == expected_macs(gated, decisions)
    ) or round_to > 1
    again = attach(smaller, "aig-perbatch").network  # what is left can be gated again
    assert (
        "norm" in again.gated_by
        and relative_change(infer(smaller, images), infer(again, images)) <= LIMIT
    )
    with gatecli.force(again, {"norm": torch.tensor([[1.0], [0.0], [1.0], [0.0]])}):
        torch.testing.assert_close(infer(again, images), compile_graph(again.graph)(again, images))


def test_expected_macs_count_the_shared_part_where_any_unit_runs(source: nn.Module) -> None:
    gated = grained(source, "aig-pergate", 2)
    decisions = {site: torch.ones(4, 2) for site in gated.gated_by}
    decisions["norm"] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    with gatecli.force(gated, decisions):
        seen = predict(gated, [(torch.randn(4, 3, 6, 5), torch.zeros(4))])
    assert seen.rates["norm"] == [0.25, 0.5] and seen.busy["norm"] == 0.5
    first, last = 12 * 12 * 30, 12 * 12 * 9 * 30  # MACs of the two convolutions at 6x5
    assert (
        gated.macs_dense - expected_macs(gated, seen.rates, seen.busy)
        == 0.5 * first + (1 - 0.375) * last
    )
    assert gated.macs_dense - expected_macs(gated, seen.rates) == pytest.approx(
        0.75 * 0.5 * first + (1 - 0.375) * last
    )  # taken to be independent


def test_what_cannot_be_split() -> None:
    with pytest.raises(SettingError, match=r"`depthwise` cannot be split into 2 units"):
        attach(traced(Blocks(), (6, 5)), "ind-perbatch", granularity=2)
    with pytest.raises(
        SettingError,
        match=r"expected the number of units to divide the 12 filters of `norm`, but got 5",
    ):
        attach(traced(Blocks(), (6, 5)), "ind-perbatch", exclude=["depthwise"], granularity=5)
    with pytest.raises(SettingError, match="cannot be split"):
        attach(CASES["tokens"].network(), "ind-perbatch", granularity=2)


def test_tails(source: nn.Module) -> None:
    network = traced(source, (6, 5))
    nodes = {node.name: node for node in network.graph.nodes}
    tails = {
        name: [str(node.target) for node in tail_of(network, nodes[site.value])]
        for name, site in branches(network).items()
    }
    assert tails == {
        "norm": ["norm.3", "norm.4"],
        "bias": ["bias.3"],
        "relu": ["relu.3", "relu.4", "relu.5", "relu.6"],
        "sigmoid": ["sigmoid.3", "sigmoid.4"],
        "depthwise": [],
    }


# --- dense blocks ---


@functools.cache
def gated_dense(seed: int) -> Network:
    torch.manual_seed(seed)
    return attach(
        traced(lively(dense(), torch.randn(8, 3, 8, 12)), (8, 12)), "ind-perbatch"
    ).network


@given(st.lists(st.booleans(), min_size=5, max_size=5), st.integers(0, 3))
@settings(max_examples=20)
def test_removed_dense_layers_become_biases(keep: list[bool], seed: int) -> None:
    torch.manual_seed(seed)
    gated = gated_dense(seed)
    assert [site.kind for site in branches(gated).values()] == ["layer"] * 5
    decisions = {site: [int(flag)] for site, flag in zip(gated.gated_by, keep, strict=True)}
    result = gatecli.prune(decided(gated, decisions))
    images = torch.randn(3, 3, 8, 12)
    with gatecli.force(gated, decisions):
        assert relative_change(infer(gated, images), infer(result.network, images)) <= LIMIT
    assert (
        result.removed == [site for site, (flag,) in decisions.items() if not flag]
        and not result.stuck
    )
    held = result.network.state_dict()
    assert held["last.weight"].shape == (10 + 4 * sum(keep[3:]),) and held["fc.weight"].shape == (
        5,
        10 + 4 * sum(keep[3:]),
    )
    assert held["conv.weight"].shape[1] == 8 + 4 * sum(keep[:3]) and ("conv.bias" in held) == (
        not all(keep[:3])
    )


class NormAct(nn.BatchNorm2d):
    """A BatchNorm that holds its activation, as timm's do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sigmoid()


class SameConv(nn.Conv2d):
    """A convolution that pads on its own, as timm's for TensorFlow's weights do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


@pytest.mark.parametrize("kind", [NormAct, SameConv])
def test_layers_of_a_kind_of_their_own(kind: type[nn.Module]) -> None:
    """What a subclass does is done, or the layer is kept.

    A branch that ends in one is not split, but for a convolution that is torch's behind a padding.
    """
    torch.manual_seed(0)
    model = dense()
    if kind is NormAct:
        model.norm, model.last = NormAct(20), NormAct(18)  # type: ignore[assignment]
    else:
        model.conv = SameConv(20, 10, 3, bias=False)  # type: ignore[assignment]
    gated = attach(traced(lively(model, torch.randn(8, 3, 8, 12)), (8, 12)), "ind-perbatch").network
    off = {site: [0] for site in gated.gated_by}
    result = gatecli.prune(decided(gated, off))
    images = torch.randn(3, 3, 8, 12)
    with gatecli.force(gated, off):
        assert relative_change(infer(gated, images), infer(result.network, images)) <= LIMIT
    assert len(result.removed) == (5 if kind is NormAct else 2) and all(
        "conv" in why for why in result.stuck.values()
    )
    tail = nn.Sequential(
        nn.Conv2d(4, 4, 1),
        nn.ReLU(),
        SameConv(4, 4, 3) if kind is SameConv else nn.Conv2d(4, 4, 1),
        NormAct(4) if kind is NormAct else nn.Identity(),
    )
    network = traced(Residual(tail), (6, 6))
    if kind is NormAct:
        with pytest.raises(SettingError, match="cannot be split"):
            attach(network, "ind-perbatch", granularity=2)
        return
    split = attach(network, "ind-perbatch", granularity=2).network.eval()
    (site,) = split.gated_by
    images = torch.randn(3, *(network.input.channels, 6, 6))
    with gatecli.force(split, {site: [1, 0]}):
        assert relative_change(split._masked(split, images), infer(split, images)) <= LIMIT


class Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.stem, self.branch, self.fc = nn.Conv2d(3, 4, 1), branch, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc((x + self.branch(x)).mean((2, 3)))


def test_gates_that_stay_read_what_is_left() -> None:
    """Data-dependent gates look at the concatenation.

    They lose the removed layers' channels, and decide as before.
    """
    gated = CASES["dense"].network()
    gated = attach(gated, "aig-perbatch").network
    torch.manual_seed(1)
    for gate in gated.site_gates.values():
        torch.nn.init.normal_(gate.get_submodule("decide").weight)  # type: ignore[arg-type]
    first, second, *others = gated.gated_by
    rates = {first: [0.0], second: [0.5], **{site: [0.5] for site in others}}
    result = gatecli.prune(gated, rates=rates)
    images = torch.randn(6, 3, 8, 12)
    with gatecli.force(gated, {first: [0]}), gatecli.record_gates(gated) as before:
        wanted = infer(gated, images)
    with gatecli.record_gates(result.network) as after:
        found = infer(result.network, images)
    assert result.removed == [first] and relative_change(wanted, found) <= LIMIT
    for site in (second, *others):
        torch.testing.assert_close(before.odds[site][0], after.odds[site][0])
    reduce: Any = result.network.site_gates[second].get_submodule("reduce")
    assert reduce.in_features == 8


# --- on the command line ---


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_source(tmp_path / "r20.pt")
    save_npz(tmp_path / "data.npz")
    return tmp_path


def test_the_road_with_groups_of_filters(here: Path) -> None:
    attached = call(
        "attach",
        "r20.pt",
        "--method",
        "ind-pergate",
        "--input-size",
        SIDE,
        "--set",
        "granularity=4",
    )
    assert attached["gates"] == 9 and attached["units"] == 36

    def close(tensors: dict[str, Tensor]) -> None:
        for name in ("layer1.0", "layer3.1"):
            tensors[f"gates.{name}.logits"][1:3] = torch.tensor([9.0, -9.0])
        tensors["gates.layer2.1.logits"][:] = torch.tensor([9.0, -9.0])

    edit(Path("r20.ind-pergate.safetensors"), Path("closed.safetensors"), close)
    pruned = call("prune", "closed.safetensors", "--round-to", 8)
    assert pruned["removed"] == [
        "layer2.1",
        {"site": "layer1.0", "units": [1, 2]},
        {"site": "layer3.1", "units": [1, 2]},
    ]
    assert pruned["max_logit_change"] <= LIMIT and pruned["params"] < pruned["params_before"]
    x = torch.randn(2, 3, SIDE, SIDE)
    loaded = gatecli.load(pruned["out"])
    assert (
        loaded.state_dict()["layer1.0.conv2.weight"].shape[0] == 8
        and loaded.params == pruned["params"]
    )
    torch.testing.assert_close(infer(loaded, x), infer(gatecli.load("closed.safetensors"), x))
    assert call("eval", "--data", "npz:data.npz")["macs_expected"] == pruned["macs_dense"]
    opened = call(
        "eval", "closed.safetensors", "--data", "npz:data.npz", "--strategy", "always-on"
    )["top1"]
    calibrated = call(
        "calibrate", "closed.safetensors", "--data", "npz:data.npz", "--target-acc", 0
    )
    assert calibrated["baseline_top1"] == opened and set(calibrated["rates"].values()) == {0.0}
    assert call("prune")["params"] < pruned["params"]
    refused(
        "prune closed.safetensors --round-to 0 --out x.safetensors",
        "--round-to to be between 1 and 65536",
    )


def test_groups_that_do_not_divide(here: Path) -> None:
    refused(
        f"attach r20.pt --method aig-perbatch --input-size {SIDE} --set granularity=5",
        "to divide the 16 filters of `layer1.0`, but got 5",
    )
    refused(
        f"attach r20.pt --method aig-perbatch --input-size {SIDE} --set targets=1,1",
        "9 numbers, one for each gate, but got 2",
    )


def test_a_layer_that_cannot_be_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    gated = attach(
        CASES["plaindense"].build(), "ind-perbatch", input_size=(9, 6), arch="networks:plaindense"
    ).network
    gatecli.write(decided(gated, {site: [0] for site in gated.gated_by}), "gated.safetensors")
    done = run("prune", "gated.safetensors", "--arch", "networks:plaindense", "--threshold", "0.4")
    assert (
        done.code == 0
        and "note: convs.0 never runs, but stays in the file: "
        "`convs.1` reads it and pads it with zeros"
        in done.err
    )
    loaded = gatecli.load("gated.pruned.safetensors", arch="networks:plaindense")
    assert list(loaded.gated_by) == ["convs.0", "convs.1"] and list(branches(loaded)) == [
        "convs.0",
        "convs.1",
    ]


@pytest.mark.parametrize(
    ("case", "site", "reader"),
    [
        ("own", "entrance.filters", "`units.0.c1`"),
        ("cifar-projection", "conv1.filters", "`layer1.0.conv1`"),
        ("preactivation", "conv.filters", "`blocks.0.bn1`"),
        ("tokens", "patches.filters", "`transpose` behind `patches`"),
    ],
)
def test_what_cannot_go_is_said_with_the_network_s_own_names(
    case: str, site: str, reader: str
) -> None:
    """Filters of every convolution closed; a node's name, or a gate's, says nothing to a user."""
    gated = attach(CASES[case].network(), "ind-perbatch", kinds=["filter"]).network
    closed = {name: [0] * place.units for name, place in gated.sites.items()}
    result = gatecli.prune(decided(gated, {name: closed[name] for name in gated.gated_by}))
    assert result.stuck[site] == f"{reader} would have nothing left to read"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("count", [1, 3])
def test_adding_at_an_index_is_adding_at_runs(layout: torch.memory_format, count: int) -> None:
    runs = ((0, 1), (2, 4), (5, 6), (7, 8), (9, 11), (12, 13))  # more than slices are used for
    x, value = (
        torch.randn(count, 13, 4, 4).contiguous(memory_format=layout),
        torch.randn(count, 8, 4, 4).contiguous(memory_format=layout),
    )
    for rectify in (False, True):
        block = AddAt(torch.nn.Module(), runs, rectify=rectify, rectified=False)
        expected = add_at(x, value, runs)
        before = x.clone()
        seen = block(value, x)
        assert (
            torch.allclose(seen, expected.relu() if rectify else expected)
            and seen.is_contiguous(memory_format=layout)
            and torch.equal(x, before)
        )
    with torch.inference_mode():
        block.write = True
        assert block(value, before).data_ptr() == before.data_ptr()
