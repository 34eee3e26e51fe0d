"""The traced network: which sites are found and which are not, what they cost, what a trace must
not change.
"""

from __future__ import annotations

import copy
import itertools
import operator
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commandline
import numpy as np
import pytest
import torch
import torchvision
from counting import counted
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CASES, Own, branches, in_line, lively, oneblock, traced
from torch import Tensor, fx, nn
from torch.nn import functional as F

import gatecli
from gatecli.architectures.build import build, build_skeleton
from gatecli.errors import ArchitectureError
from gatecli.graph.dominators import immediate_dominators
from gatecli.graph.macs import count_nodes
from gatecli.graph.normalize import dropout_follows_mode, without_writes
from gatecli.graph.trace import trace
from gatecli.network import Network
from gatecli.traced.recipe import InputSpec, Recipe, Source
from gatecli.traced.site import Site
from gatecli.traced.traced import NodeCost

Costs = dict[str, NodeCost]


def ghost(arch: str, **args: Any) -> nn.Module:
    """The architecture without memory."""
    with torch.device("meta"):
        return build(arch, args)


def explore(model: nn.Module, image: tuple[int, int, int]) -> tuple[dict[str, Site], Costs]:
    graph = trace(model)
    costs = count_nodes(model, graph, image)
    return in_line(model, graph, costs), costs


def total(costs: Costs) -> int:
    return sum(cost.macs for cost in costs.values())


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class Calls(nn.Module):
    """A network out of a function of (itself, x), with some layers to call."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.conv, self.body, self.other = (
            conv(4, 4),
            nn.Sequential(conv(4, 4), nn.ReLU(), conv(4, 4)),
            nn.Sequential(conv(4, 4), nn.ReLU(), conv(4, 4)),
        )
        self.one, self.stem, self.fc = conv(4, 4, 1), conv(3, 4), nn.Linear(4, 5)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        x = self.function(self, F.relu(self.stem(x)))
        return self.fc(x.mean((2, 3)))


def sites_of(function: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> list[str]:
    network = traced(Calls(function, **parts).eval(), (8, 8))
    return list(branches(network))


def run(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(x)
        return logits


# --- sites that are found ---

STAGES = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "resnext50_32x4d": (3, 4, 6, 3),
    "wide_resnet50_2": (3, 4, 6, 3),
}


@pytest.mark.parametrize("name", STAGES)
def test_torchvision_resnets(name: str) -> None:
    sites, _ = explore(ghost(f"torchvision:{name}"), (3, 64, 64))
    assert list(sites) == [
        f"layer{stage + 1}.{block}"
        for stage, blocks in enumerate(STAGES[name])
        for block in range(blocks)
    ]
    assert all(
        site.kind == "block" and site.units == 1 and site.positions == (2, 3)
        for site in sites.values()
    )
    assert len(sites) == {
        "resnet18": 8,
        "resnet34": 16,
        "resnet50": 16,
        "resnet101": 33,
        "resnet152": 50,
    }.get(name, 16)


@pytest.mark.parametrize("shortcut", ["projection", "pad"])
def test_cifar_resnets(shortcut: str) -> None:
    sites, _ = explore(ghost("cifar:resnet32", shortcut=shortcut), (3, 32, 32))
    assert list(sites) == [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(5)]
    assert [sites[f"layer{stage}.1"].channels for stage in (1, 2, 3)] == [16, 32, 64]


OTHERS = {"mobilenet_v2": 10, "efficientnet_b0": 9, "convnext_tiny": 18, "vit_b_16": 24}
MORE = {
    "mobilenet_v3_small": 6,
    "mnasnet1_0": 10,
    "swin_t": 24,
    "resnext101_32x8d": 33,
    "mobilenet_v3_large": 10,
    "efficientnet_b7": 48,
    "efficientnet_v2_s": 35,
    "convnext_small": 36,
    "vgg11": 0,
    "densenet121": 58,
    "densenet201": 98,
}


@pytest.mark.parametrize(
    "name", [*OTHERS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)
def test_other_networks(name: str) -> None:
    sites, _ = explore(ghost(f"torchvision:{name}"), (3, 224, 224))
    assert len(sites) == {**OTHERS, **MORE}[name]


def test_where_a_gate_finds_the_channels() -> None:
    tokens = CASES["tokens"].network()
    assert {(site.channels, site.positions) for site in branches(tokens).values()} == {(16, (1,))}
    (site,) = branches(traced(oneblock(), (8, 8))).values()
    assert (site.channels, site.positions, site.entry, site.shortcut) == (3, (2, 3), "x", "x")
    rows = nn.Sequential(nn.Flatten(), _Residual(nn.Linear(12, 12)), nn.Linear(12, 2))
    (site,) = branches(traced(rows, (2, 2))).values()
    assert (site.channels, site.positions) == (12, ())
    assert gatecli.attach(rows, "aig-perbatch", input_size=(2, 2)).max_logit_change < 1e-6


class _Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def test_a_user_s_names() -> None:
    assert list(branches(CASES["own"].network())) == ["units.0", "units.1", "units.2.body"]


ADDITIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "+": lambda m, x: x + m.body(x),
    "reversed": lambda m, x: m.body(x) + x,
    "torch.add": lambda m, x: torch.add(x, m.body(x)),
    "method": lambda m, x: x.add(m.body(x)),
    "in place": lambda m, x: m.body(x).add_(x),
    "+=": lambda m, x: operator.iadd(x, m.body(x)),
    "projection": lambda m, x: m.body(x) + m.one(x),
    "one convolution": lambda m, x: x + m.conv(x),
}


@pytest.mark.parametrize("kind", ADDITIONS)
def test_additions_of_all_kinds(kind: str) -> None:
    assert sites_of(ADDITIONS[kind]) == ["conv" if kind == "one convolution" else "body"]


def test_inner_and_following_branches() -> None:
    assert sites_of(lambda m, x: m.other(m.body(x) + x) + x) == [
        "body"
    ]  # a branch within a branch, and a long shortcut around both
    assert sites_of(lambda m, x: (lambda y: y + m.other(y))(x + m.body(x))) == ["body", "other"]


def test_branches_of_one_module_are_numbered() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.ModuleDict({"first": conv(4, 4), "second": conv(4, 4)})

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = conv(4, 4), conv(4, 4), conv(4, 4), conv(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.b(F.relu(self.a(x)))
            return x + self.d(F.relu(self.c(x)))

    assert sites_of(lambda m, x: m.layer(x), layer=Layer()) == ["layer#1", "layer#2"]


def test_a_block_called_twice_is_two_sites() -> None:
    network = traced(Calls(lambda m, x: m.block(m.block(x)), block=_Residual(conv(4, 4))), (8, 8))
    assert list(branches(network)) == ["block.body#1", "block.body#2"]
    gated = gatecli.attach(network, "ind-perbatch").network
    x = torch.randn(3, 3, 8, 8)
    with gatecli.force(gated, {"block.body#1": [0]}):
        smaller = _decided(gated, {"block.body#1": 0, "block.body#2": 1})
        assert torch.allclose(run(gated, x), run(smaller, x), atol=1e-6)
    assert "block.body.0.weight" in smaller.state_dict()
    assert not any(
        key.startswith("block")
        for key in _decided(gated, {"block.body#1": 0, "block.body#2": 0}).state_dict()
    )


def _decided(gated: Network, runs: dict[str, int]) -> Network:
    twin = gated.copy()
    for site, flag in runs.items():
        gate: Any = twin.site_gates[site]
        with torch.no_grad():
            gate.logits.copy_(torch.tensor([[0.0, 9.0 if flag else -9.0]]))
    return gatecli.prune(twin).network


# --- what only looks like a site ---

IMPOSTORS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "parallel convolutions, as RepVGG's": lambda m, x: F.relu(m.conv(x) + m.one(x)),
    "two equal branches": lambda m, x: m.body(x) + m.other(x),
    "a constant": lambda m, x: m.body(x) + 1,
    "itself": lambda m, x: m.body(x + x),
    "no weights": lambda m, x: x + F.relu(x),
    "a broadcast sum": lambda m, x: x + m.body(x).mean((2, 3), keepdim=True),
    "scaled addition": lambda m, x: torch.add(x, m.body(x), alpha=2),
    "subtraction": lambda m, x: x - m.body(x),
    "branches side by side": lambda m, x: torch.cat([m.other(x), m.body(x)], 1)[:, :4],
    "concatenated along another dimension": lambda m, x: torch.cat([x, m.body(x)], 2)[:, :, :8],
}


@pytest.mark.parametrize("kind", IMPOSTORS)
def test_impostors_are_refused(kind: str) -> None:
    assert sites_of(IMPOSTORS[kind]) == []


def test_a_branch_whose_inside_is_read_elsewhere_is_refused() -> None:
    def read(m: Any, x: Tensor) -> Tensor:
        inner = m.conv(x)
        return (x + m.one(F.relu(inner))) * inner.mean((2, 3), keepdim=True)

    def value_read(m: Any, x: Tensor) -> Tensor:
        value = m.body(x)
        return (x + value) * value

    assert sites_of(read) == sites_of(value_read) == []


def test_ways_that_share_a_node_are_refused() -> None:
    """Both operands come through `y`, which is no single entry, as its other reader leads around
    it.
    """

    def shared(m: Any, x: Tensor) -> Tensor:
        y = m.one(x)
        return (y * x + x) + m.conv(y)

    assert sites_of(shared) == []


def test_unrelated_heads_are_refused() -> None:
    class Heads(nn.Module):
        def __init__(self, same: bool) -> None:
            super().__init__()
            self.same, self.a, self.b = same, nn.Linear(12, 5), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            return self.a(x) + self.b(x if self.same else x * 2)

    assert not branches(traced(Heads(True), (2, 2))) and not branches(traced(Heads(False), (2, 2)))


# --- what it costs ---


def test_resnet50_at_224() -> None:
    sites, costs = explore(ghost("torchvision:resnet50"), (3, 224, 224))
    macs = {name: site.macs for name, site in sites.items()}
    assert total(costs) == 4_089_184_256
    assert macs["layer1.0"] == 179_830_784
    assert [name for name, count in macs.items() if count == 269_746_176] == [
        "layer2.0",
        "layer3.0",
        "layer4.0",
    ]
    assert sum(count == 218_365_952 for count in macs.values()) == 12


def test_resnet101() -> None:
    sites, costs = explore(ghost("torchvision:resnet101"), (3, 224, 224))
    assert total(costs) == 7_801_405_440
    assert sum(site.macs == 218_365_952 for site in sites.values()) == 29
    assert sum(site.shortcut == site.entry for site in sites.values()) == 29  # identity shortcuts
    _, costs = explore(ghost("torchvision:resnet101", stem="cifar", num_classes=10), (3, 32, 32))
    assert round(2 * total(costs) / 1e9, 2) == 5.02


def test_vit_counts_the_products_of_attention() -> None:
    _, costs = explore(ghost("torchvision:vit_b_16"), (3, 224, 224))
    assert total(costs) == 17_563_828_224


def macs_of_a_run(model: nn.Module, x: Tensor) -> int:
    with counted() as macs, torch.no_grad():
        model(x)
    return macs.total


def fvcore_macs(model: nn.Module, x: Tensor) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        analysis = (
            FlopCountAnalysis(model, x)
            .unsupported_ops_warnings(False)
            .uncalled_modules_warnings(False)
        )
        return sum(
            count
            for op, count in analysis.by_operator().items()
            if op in ("conv", "linear", "addmm")
        )


@pytest.mark.parametrize("name", [*CASES, "mobilenet_v3_small", "resnext50_32x4d"])
def test_macs_against_a_run_and_fvcore(name: str) -> None:
    case = CASES.get(name)
    model = (
        ghost(f"torchvision:{name}") if case is None else case.build()
    )  # without memory, which fvcore cannot trace
    image = (3, 64, 64) if case is None else (case.channels, *case.size)
    x = torch.zeros(1, *image, device="meta" if case is None else "cpu")
    macs = total(count_nodes(model, trace(copy.deepcopy(model)), image))
    assert macs > 0 and macs == macs_of_a_run(model, x)
    if case is not None and name != "tokens":  # it does not know attention
        assert macs == fvcore_macs(model, x)


@pytest.mark.parametrize(
    "product",
    [
        lambda a, b: a @ b,
        torch.matmul,
        torch.bmm,
        lambda a, b: a.matmul(b),
        lambda a, b: torch.einsum("bij,bjk->bik", a, b),
    ],
)
def test_products_are_counted_however_they_are_written(
    product: Callable[[Tensor, Tensor], Tensor],
) -> None:
    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.flatten(2)  # (1, 3, 35)
            return product(y, y.transpose(1, 2))

    model = Product()
    assert total(count_nodes(model, trace(model), (3, 5, 7))) == 3 * 3 * 35


def test_functional_layers_and_attention_are_counted() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel, self.matrix = (
                nn.Parameter(torch.zeros(6, 3, 3, 3)),
                nn.Parameter(torch.zeros(5, 6)),
            )

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, self.kernel, padding=1).flatten(2).transpose(1, 2)  # (1, 80, 6)
            return F.linear(F.scaled_dot_product_attention(x, x, x), self.matrix)

    model = Functional()
    macs = total(count_nodes(model, trace(model), (3, 8, 10)))
    assert macs == 80 * 6 * 27 + 2 * 80 * 80 * 6 + 80 * 6 * 5
    assert macs == macs_of_a_run(model, torch.zeros(1, 3, 8, 10))


class Uncommon(nn.Module):
    """Bilinear layers, in both spellings, and what the counter cannot know."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pair, self.fc = nn.Conv2d(3, 6, 1), nn.Bilinear(6, 6, 4), nn.Linear(4, 5)
        self.form, self.matrix = nn.Parameter(torch.zeros(4, 4, 4)), nn.Parameter(torch.zeros(7, 4))
        self.table, self.shift = nn.Embedding(9, 4), nn.Parameter(torch.zeros(1, 12, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)  # (1, 12, 6)
        x = self.pair(x, x) + self.shift
        x = F.bilinear(x, x, self.form) + self.table(
            torch.zeros(1, 1, dtype=torch.long, device=x.device)
        )
        return self.fc(x).mean(1) + torch.cdist(x, self.matrix).mean()


def test_bilinear_layers_are_counted_and_what_cannot_be_is_named() -> None:
    network = traced(Uncommon(), (3, 4))
    assert network.macs_dense == 12 * 3 * 6 + 12 * 6 * 6 * 4 + 12 * 4 * 4 * 4 + 12 * 4 * 5
    assert network.uncounted == ["cdist"]


class Deforming(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset, self.deform, self.fc = (
            nn.Conv2d(3, 18, 3, padding=1),
            torchvision.ops.DeformConv2d(3, 4, 3, padding=1),
            nn.Linear(4, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.deform(x, self.offset(x)).mean((2, 3)))


def test_a_layer_kept_whole_that_cannot_be_counted_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    torch.save(Deforming().state_dict(), "d.pt")
    args = [
        "inspect",
        "d.pt",
        "--arch",
        "test_graph:Deforming",
        "--input-size",
        8,
        "--leaf",
        "deform",
    ]
    assert commandline.call(*args)["uncounted"] == ["deform"]
    assert "note: MACs leave out `deform`" in commandline.run(*args).err


@pytest.mark.parametrize(
    "name", ["vit_b_32", "swin_t", "swin_v2_t", "convnext_tiny", "googlenet", "efficientnet_b0"]
)
def test_nothing_of_the_library_is_left_out(name: str) -> None:
    assert traced(build_skeleton(f"torchvision:{name}", {}), (224, 224)).uncounted == []


def test_a_module_that_runs_twice_counts_twice() -> None:
    once, twice = (
        Calls(lambda m, x, n=n: m.again(x) if n == 1 else m.again(m.again(x)), again=conv(4, 4))
        for n in (1, 2)
    )
    counts = [total(count_nodes(model, trace(model), (3, 8, 8))) for model in (once, twice)]
    assert counts[1] - counts[0] == 4 * 4 * 9 * 64


def test_counting_computes_nothing_and_changes_nothing() -> None:
    model = CASES["own"].build().train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    graph = trace(model)
    count_nodes(model, graph, (3, 2**15, 2**15))  # 3 billion pixels
    assert model.training and all(
        torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items()
    )


# --- dominators ---


@st.composite
def graphs(draw: st.DrawFn) -> fx.Graph:
    """A random graph of one input, some constants and many operations of one to three operands."""
    graph = fx.Graph()
    nodes = [graph.placeholder("x"), graph.get_attr("a"), graph.get_attr("b")]
    for _ in range(draw(st.integers(1, 14))):
        operands = draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=3))
        nodes.append(graph.call_function(torch.stack, (operands,)))
    graph.output(nodes[-1])
    return graph


def reached(graph: fx.Graph, without: fx.Node | None) -> set[fx.Node]:
    """What can be reached from the input when one node is taken out."""
    start = next(node for node in graph.nodes if node.op == "placeholder")
    seen, todo = set(), [start]
    while todo:
        node = todo.pop()
        if node is not without and node not in seen:
            seen.add(node)
            todo += node.users
    return seen


@settings(deadline=None, max_examples=150)
@given(graphs())
def test_dominators_against_brute_force(graph: fx.Graph) -> None:
    found, everything = immediate_dominators(graph), reached(graph, None)
    assert set(found) == set(graph.nodes)
    for node in graph.nodes:
        chain, above = [], found[node]
        while above is not None:
            chain.append(above)
            above = found[above]
        cut_off = {
            other
            for other in graph.nodes
            if other is not node and node in everything and node not in reached(graph, other)
        }
        assert set(chain) == cut_off and len(chain) == len(cut_off)


# --- traces ---


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line that stands in the way
            return x * 2
        return x


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"odd": Branching()})
        self.own = Own()

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self.inner["odd"](x))


def test_an_untraceable_line_is_named() -> None:
    with pytest.raises(ArchitectureError) as caught:
        gatecli.attach(Untraceable(), "ind-perbatch", input_size=(16, 16))
    text = str(caught.value)
    assert (
        "test_graph.py:" in text
        and "if x.sum() > 0:" in text
        and "--leaf" in text
        and "Untraceable" in text
        and "\n" not in text
    )


@pytest.mark.parametrize("pattern", ["inner.odd", "*.odd"])
def test_a_leaf_makes_it_work(pattern: str) -> None:
    model = lively(Untraceable(), torch.randn(4, 3, 16, 16))
    network = traced(model, (16, 16), leaves=[pattern])
    assert list(branches(network)) == ["own.units.0", "own.units.1", "own.units.2.body"]
    for scale in (1, -1):
        x = torch.ones(2, 3, 16, 16) * scale
        assert torch.equal(run(model, x), run(network, x))
    result = gatecli.attach(network, "aig-perbatch")
    assert result.gates == 3 and result.max_logit_change < 1e-6


def advice(error: ArchitectureError) -> list[str]:
    """The patterns after `--leaf`, unquoted as a shell would."""
    words = shlex.split(str(error).partition("(library")[0].rpartition(", or keep")[2])
    return [word for before, word in itertools.pairwise(words) if before == "--leaf"]


def by_sign(x: Tensor) -> Tensor:
    return x if x.mean() > 0 else -x


ODD: dict[str, Callable[[Tensor], Any]] = {
    "decides": by_sign,
    "length": lambda x: torch.stack([x[index] for index in range(len(x))]),
    "loop": lambda x: torch.stack([image * 2 for image in x]),
    "numpy": lambda x: x * float(np.abs(x.detach().numpy()).max()),
    "array": lambda x: torch.from_numpy(np.sqrt(np.abs(x.detach().numpy()))),
}


class Gathering(nn.Module):
    """A layer of a dense block, which takes a list and drops in training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        return F.dropout(self.conv(torch.cat([*features], 1)), 0.5, self.training)


class Gathered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.layers, self.fc = (
            nn.Conv2d(3, 4, 3),
            nn.ModuleList([Gathering(4), Gathering(8)]),
            nn.Linear(12, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [self.first(x)]
        for layer in self.layers:
            features.append(layer(features))
        return self.fc(torch.cat(features, 1).mean((2, 3)))


def test_layers_that_take_lists_are_seen_through() -> None:
    graph = trace(Gathered())
    assert [node.target for node in graph.nodes if node.op == "call_module"] == [
        "first",
        "layers.0.conv",
        "layers.1.conv",
        "fc",
    ]


class Odd(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        return ODD[self.kind](x)


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("count", [1, 3])
def test_the_advice_on_an_untraceable_line_works(kind: str, count: int) -> None:
    torch.manual_seed(0)
    model = Calls(
        lambda m, x: m.odd(x + m.body(x)), odd=nn.Sequential(*(Odd(kind) for _ in range(count)))
    ).eval()
    with pytest.raises(ArchitectureError) as caught:
        traced(model, (8, 8))
    assert "test_graph.py:" in str(caught.value) and "\n" not in str(caught.value)
    assert advice(caught.value) == (["odd.*"] if count == 3 else ["odd.0"])
    network = traced(copy.deepcopy(model), (8, 8), leaves=advice(caught.value))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(run(model, x), run(network, x)) and list(branches(network)) == ["body"]
    assert (
        gatecli.attach(model, "ind-perbatch", input_size=(8, 8), leaves=advice(caught.value)).gates
        == 1
    )


def test_the_advice_spares_other_modules() -> None:
    model = Calls(
        lambda m, x: m.parts(x),
        parts=nn.Sequential(
            _Residual(conv(4, 4)), Odd("decides"), _Residual(conv(4, 4)), Odd("loop")
        ),
    ).eval()
    with pytest.raises(ArchitectureError) as caught:
        traced(model, (8, 8))
    assert advice(caught.value) == ["parts.1", "parts.3"]
    assert list(branches(traced(model, (8, 8), leaves=advice(caught.value)))) == [
        "parts.0.body",
        "parts.2.body",
    ]


def test_no_leaf_helps_where_the_network_s_own_forward_stands_in_the_way() -> None:
    with pytest.raises(ArchitectureError) as caught:
        traced(Branching(), (8, 8))
    assert "if x.sum() > 0" in str(caught.value) and "--leaf" not in str(caught.value)


class Optional(Own):
    def forward(self, x: Tensor, mask: Tensor | None = None, double: bool = False) -> Tensor:
        if mask is not None:
            x = x * mask
        x = super().forward(x)
        return x * 2 if double else x


def test_optional_arguments_keep_their_defaults() -> None:
    model = Optional().eval()
    network = traced(copy.deepcopy(model), (16, 16))
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(run(model, x), run(network, x)) and len(branches(network)) == 3


class Scaled(Own):
    """Calculates with a buffer before it meets the image."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.scale.view(1, 1, 1, 1))


def test_a_buffer_stays_the_network_s() -> None:
    model = Scaled().eval()
    network = traced(copy.deepcopy(model), (16, 16))
    assert set(network.state_dict()) == set(model.state_dict())
    x = torch.randn(2, 3, 16, 16)
    for each in (model, network):
        each.load_state_dict({**each.state_dict(), "scale": torch.tensor([3.0])})
    assert torch.equal(run(model, x), run(network, x))


def test_training_survives_a_failed_trace() -> None:
    model = Untraceable().train()
    with pytest.raises(ArchitectureError):
        trace(model)
    assert all(part.training for part in model.modules())


def test_wrong_images_and_outputs_are_named() -> None:
    with pytest.raises(ArchitectureError, match=r"3 x 4 x 4.*--input-size"):
        gatecli.attach(
            nn.Sequential(nn.Conv2d(3, 4, 7), nn.Flatten(), nn.Linear(4, 2)),
            "ind-perbatch",
            input_size=(4, 4),
        )

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = Own()

        def forward(self, x: Tensor) -> Any:
            return self.own(x), x

    with pytest.raises(ArchitectureError, match="logits"):
        gatecli.attach(Pair(), "ind-perbatch", input_size=(16, 16))

    class TwoInputs(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(ArchitectureError, match=r"one image tensor.*`y`"):
        trace(TwoInputs())


def test_reserved_names_are_refused() -> None:
    for name in ("gates", "exits", "gater"):
        model = Calls(lambda m, x, name=name: m._modules[name](x), **{name: conv(4, 4)})
        with pytest.raises(ArchitectureError, match=f"`{name}`"):
            traced(model, (8, 8))


def test_node_names_with_leading_zeros_and_python_s_own_names() -> None:
    parts = {"conv_01": conv(4, 4), "conv_1": conv(4, 4), "range": conv(4, 4), "sum": conv(4, 4)}
    model = lively(
        Calls(lambda m, x: x + m.conv_01(m.conv_1(x)) + m.range(m.sum(x)), **parts),
        torch.randn(4, 3, 8, 8),
    )
    gated = gatecli.attach(model, "ind-perbatch", input_size=(8, 8)).network
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(run(model, x), run(gated.copy().copy(), x), atol=1e-6)


class Constants(nn.Module):
    """Tensors that are no parameters.

    A buffer, one that no file holds, an attribute, and one that the forward makes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.own = Own()
        self.register_buffer("mean", torch.full((3, 1, 1), 0.3))
        self.register_buffer("std", torch.full((3, 1, 1), 0.7), persistent=False)
        self.shift = torch.tensor(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.own((x - self.mean) / self.std + self.shift) * torch.tensor(
            [1.0, 2.0, 3.0, 4.0, 5.0]
        )


def test_constants_work_and_files_hold_what_they_held() -> None:
    model, x = lively(Constants(), torch.randn(4, 3, 16, 16)), torch.randn(2, 3, 16, 16)
    gated = gatecli.attach(model, "ind-perbatch", input_size=(16, 16)).network
    assert torch.allclose(run(model, x), run(gated.copy(), x), atol=1e-6)
    assert set(model.state_dict()) == {
        name for name in gated.state_dict() if not name.startswith("gates.")
    }


def test_sites_within_the_module_of_another() -> None:
    """`stage` and `stage.inner`: the gate of one lies inside the other's."""

    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.a, self.b = _Inner(), conv(4, 4), conv(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner(x)
            return x + self.b(F.relu(self.a(x)))

    class _Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(4, 4), conv(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(F.relu(self.a(x)))

    for method in ("ind-perbatch", "aig-perbatch"):
        gated = gatecli.attach(
            Calls(lambda m, x: m.stage(x), stage=Stage()), method, input_size=(8, 8)
        ).network
        assert list(gated.gated_by) == ["stage.inner", "stage"] and set(gated.site_gates) == set(
            gated.gated_by
        )
        assert {"gates.stage.threshold", "gates.stage.inner.threshold"} <= set(gated.state_dict())
        with (
            gatecli.force(gated, {"stage": [0], "stage.inner": [1]}),
            gatecli.record_gates(gated) as record,
        ):
            run(gated, torch.randn(2, 3, 8, 8))
        assert {site: z.sum().item() for site, z in record.latest().items()} == {
            "stage": 0,
            "stage.inner": 2,
        }


def test_removing_a_block_may_remove_the_relu_of_the_next() -> None:
    """A pre-activation ReLU does nothing once its input is a shortcut that is never negative."""

    class Pre(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.a, self.b = nn.ReLU(inplace=True), conv(4, 4), conv(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(self.act(self.a(F.relu(x))))

    model = Calls(lambda m, x: m.second(m.first(x)), first=Pre(), second=Pre())
    gated = gatecli.attach(
        lively(model, torch.randn(4, 3, 8, 8)), "ind-perbatch", input_size=(8, 8)
    ).network
    smaller = _decided(gated, {"first": 0, "second": 1})
    again = gatecli.attach(smaller, "ind-perbatch").network
    x = torch.randn(3, 3, 8, 8)
    with gatecli.force(gated, {"first": [0]}):
        assert torch.allclose(run(gated, x), run(again, x), atol=1e-6)
    with gatecli.force(again, {"second": [0]}), gatecli.force(gated, {"first": [0], "second": [0]}):
        assert torch.allclose(run(gated, x), run(again, x), atol=1e-6)


def test_a_branch_that_ends_in_a_view() -> None:
    """What the executor adds into must have memory of its own."""
    model = lively(
        Calls(lambda m, x: x + m.body(x).mean((2, 3), keepdim=True).expand_as(x)),
        torch.randn(4, 3, 8, 8),
    )
    gated = gatecli.attach(model, "ind-perbatch", input_size=(8, 8)).network
    x, z = torch.randn(3, 3, 8, 8), torch.tensor([[1.0], [0.0], [1.0]])
    assert list(gated.gated_by) == ["body"]
    with gatecli.force(gated, {"body": z}), torch.no_grad():
        mixed = gated._masked(gated, x)
        assert torch.allclose(run(gated, x), mixed, atol=1e-6)
    with gatecli.force(gated, {"body": [1]}):
        assert torch.allclose(run(gated, x[[0, 2]]), mixed[[0, 2]], atol=1e-6)


# --- writing in place ---


def test_the_image_is_not_written_into() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.own = nn.ReLU(inplace=True), Own()

        def forward(self, x: Tensor) -> Tensor:
            return self.own(self.act(x))

    model = lively(First(), torch.randn(4, 3, 16, 16))
    network, x = traced(copy.deepcopy(model), (16, 16)), torch.randn(2, 3, 16, 16)
    before = x.clone()
    logits = run(network, x)
    assert (
        torch.equal(x, before) and torch.equal(logits, run(model, x)) and not torch.equal(x, before)
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: _assigned(x, m.body(x), operator.iadd),
        lambda m, x: _assigned(x, m.body(x), operator.imul),
        lambda m, x: _assigned(x, m.body(x), operator.isub),
        lambda m, x: _assigned(x, m.body(x), lambda a, b: a.add_(b)),
        lambda m, x: _assigned(m.body(x), x, lambda a, b: F.relu(a, inplace=True)),
        lambda m, x: _assigned(m.body(x), x, lambda a, b: F.relu(a, True)),
        lambda m, x: _assigned(m.body(x), x, lambda a, b: F.hardtanh(a, -0.2, 0.3, True)),
        lambda m, x: _assigned(m.body(x), x, lambda a, b: torch.relu_(a)),
        lambda m, x: _assigned(m.body(x), x, lambda a, b: a.clamp_(-0.1, 0.1)),
        lambda m, x: _assigned(
            m.body(x), x, lambda a, b: nn.LeakyReLU(0.5, inplace=True).forward(a)
        ),
        lambda m, x: _assigned(m.body(x), x, lambda a, b: a[:, 1:2].zero_()),
        lambda m, x: _assigned(m.body(x), x, lambda a, b: a[..., 1:][:, 0].mul_(b[:, 0, :, 1:])),
        lambda m, x: _assigned(m.body(x), x, lambda a, b: F.relu(a[:2], inplace=True)),
    ],
)
def test_later_readers_see_what_was_written(function: Callable[[Any, Tensor], Tensor]) -> None:
    """The source writes into a tensor and goes on reading it by its old name."""
    model = lively(Calls(function), torch.randn(4, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    network = traced(copy.deepcopy(model), (8, 8))
    assert torch.equal(run(model, x), run(network, x))


def _assigned(a: Tensor, b: Tensor, write: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    write(a, b)
    return a * 2 + b


def test_what_nobody_notices_may_be_written() -> None:
    """Layers' new results, which only the writer reads.

    The result of a block's addition is not of that kind.
    """
    model = Calls(
        lambda m, x: F.relu(operator.iadd(m.body(F.relu(m.conv(x), inplace=True)), x), inplace=True)
    )
    graph = trace(model)
    assert sum(node.target is operator.iadd for node in graph.nodes) == 1
    assert [node.kwargs.get("inplace") for node in graph.nodes if node.target is F.relu] == [
        False,
        True,
        False,
    ]


def test_settling_an_odd_graph_leaves_it_alone() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.stack, ([x, x],)))
    before = str(graph)
    without_writes(nn.Module(), graph)
    dropout_follows_mode(graph)
    assert str(graph) == before


# --- modules that read self.training ---


def both_modes(model: nn.Module, images: Tensor, size: tuple[int, int]) -> None:
    """The traced network behaves as its source does, in evaluation and, for the same draws, in
    training; the tensors are the same.
    """
    network = traced(copy.deepcopy(model).eval(), size)
    assert set(network.state_dict()) == set(model.state_dict())
    for training in (False, True):
        results = []
        for each in (model, network):
            torch.manual_seed(5)
            results.append(run(each.train(training), images))
        assert torch.equal(*results)
    network.train()
    torch.manual_seed(0)
    first = run(network, images)
    assert not torch.equal(first, run(network, images))  # it does draw
    assert torch.equal(run(network.eval(), images), run(network, images))


def test_stochastic_depth() -> None:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt
    from torchvision.ops import StochasticDepth

    model = ConvNeXt(
        [CNBlockConfig(8, None, 4)], stochastic_depth_prob=0.7, layer_scale=1.0, num_classes=5
    )
    network = traced(copy.deepcopy(model).eval())
    assert len(branches(network)) == 4 and any(
        isinstance(part, StochasticDepth) for part in network.modules()
    )
    both_modes(model, torch.randn(6, 3, 32, 32), (32, 32))


class Drops(nn.Module):
    """Functional dropout in the network's own forward, by a method, and in a block, as in Wide
    ResNets.
    """

    def __init__(self) -> None:
        super().__init__()
        self.own, self.fc = Own(), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.own(x), 0.2, self.training)
        return F.dropout(self.fc(x), p=0.4, training=self.training)


def test_functional_dropout_follows_the_mode() -> None:
    both_modes(lively(Drops(), torch.randn(4, 3, 16, 16)), torch.randn(4, 3, 16, 16), (16, 16))
    assert list(branches(traced(Drops().eval(), (16, 16)))) == [
        "own.units.0",
        "own.units.1",
        "own.units.2.body",
    ]


class Noisy(nn.Module):
    """Draws in training only, decided by a condition and in a method of its own.

    No graph of one mode is the other's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(4, 4)

    def noise(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.training else x

    def forward(self, x: Tensor) -> Tensor:
        return self.noise(self.conv(x))


def test_a_module_that_reads_training_stays_whole() -> None:
    model = nn.Sequential(
        conv(3, 4), _Residual(Noisy()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    network = traced(copy.deepcopy(model).eval(), (8, 8))
    assert (
        isinstance(network.get_submodule("1.body"), Noisy)
        and network.sites["1.body"].macs == 4 * 4 * 9 * 64
    )
    both_modes(lively(model, torch.randn(4, 3, 8, 8)), torch.randn(4, 3, 8, 8), (8, 8))


def test_dropout_that_always_draws_goes_on_drawing() -> None:
    model = lively(Calls(lambda m, x: F.dropout(x + m.body(x), 0.5)), torch.randn(4, 3, 8, 8))
    result = gatecli.attach(
        model, "ind-perbatch", input_size=(8, 8)
    )  # its logits are compared under the same draws
    x = torch.randn(2, 3, 8, 8)
    assert result.max_logit_change < 1e-6 and not torch.equal(
        run(result.network, x), run(result.network, x)
    )


def test_a_network_keeps_the_mode_of_its_source() -> None:
    assert Network(Own().train(), Recipe(Source("", {}), InputSpec((16, 16), 0))).training
    assert not traced(Own().eval(), (16, 16)).training


NAMES = (
    "input",
    "copy",
    "before",
    "device",
    "params",
    "recipe",
    "root",
    "traced",
    "graph",
    "sites",
)


class Named(nn.Module):
    """A network with a part of a given name, beside a block."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, nn.Conv2d(3, 8, 3, padding=1))
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = getattr(self, self.name)(x)
        x = x + self.block(x).relu()
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


@pytest.mark.parametrize("name", NAMES)
def test_a_users_parts_may_have_the_networks_names(name: str) -> None:
    """Gated, written and read again: gatecli's own words are no names in a file."""
    own, x = Named(name).eval(), torch.randn(2, 3, 16, 16)
    gated = gatecli.attach(own, "ind-perbatch", input_size=(16, 16)).network.eval()
    assert torch.allclose(gated(x), own(x), atol=1e-5)
    assert f"{name}.weight" in gated.state_dict() and gated.recipe.steps
    assert torch.equal(gated.copy().eval()(x), gated(x))
