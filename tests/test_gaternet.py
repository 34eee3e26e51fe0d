"""GaterNet: where filters are gated, how gates are trained, what is computed, and what prune
leaves.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import counted
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from networks import CASES, infer, lively, masked, traced, unit_macs
from torch import Tensor, nn
from torch.nn import functional as F

import gatecli
from gatecli import methods
from gatecli.architectures.build import build
from gatecli.errors import ArchitectureError, CheckpointError, GatecliError, SettingError
from gatecli.gates.estimators import semantic_hash
from gatecli.gates.gate import Gate
from gatecli.methods.gaternet import GaterNetSettings
from gatecli.methods.gaternet.gater import Gater
from gatecli.network import Network
from gatecli.network.compare import relative_change
from gatecli.network.costs import expected_macs

LIMIT = 1e-5


@functools.cache
def gated(name: str = "own", **how: Any) -> Network:
    case = CASES[name]
    return gatecli.attach(
        case.build(), "gaternet", input_size=case.size, arch=case.arch, **how
    ).network


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and relative_change(a, b) <= LIMIT


def drawn(network: Network, seed: int, count: int | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = () if count is None else (count,)
    return {
        site: torch.randint(0, 2, (*shape, gate.units), generator=generator).float()
        for site, gate in network.site_gates.items()
    }


# --- where ---


class ShakeShake(nn.Module):
    """A residual unit whose branch is the mean of two ways, and an ordinary one."""

    def __init__(self) -> None:
        super().__init__()

        def way() -> nn.Module:
            return nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, 1, 1, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, 1, 1, bias=False),
                nn.BatchNorm2d(8),
            )

        self.stem, self.one, self.two, self.fc = (
            nn.Conv2d(3, 8, 3, 1, 1),
            way(),
            way(),
            nn.Linear(8, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + 0.5 * (self.one(x) + self.two(x))
        return self.fc(x.mean((2, 3)))


def shakeshake() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return traced(lively(ShakeShake(), torch.randn(8, 3, 8, 8)), (8, 8))


def test_residual_branches_end_in_gated_convolutions() -> None:
    network = gated("bottleneck")
    assert list(network.gated_by) == [
        f"layer{stage}.{block}.conv3.filters"
        for stage, block in ((1, 0), (1, 1), (2, 0), (3, 0), (4, 0))
    ]
    site = network.sites["layer1.1.conv3.filters"]
    assert (site.kind, site.units) == ("filter", 256)
    assert site.macs / site.units == network.get_submodule("layer1.1.conv3").in_channels * 8 * 8


def test_the_first_layer_of_a_dense_block_is_left_out() -> None:
    assert list(gated("dense").gated_by) == [
        "first.1.conv2.filters",
        "first.2.conv2.filters",
        "second.1.conv2.filters",
    ]


def test_ways_that_are_summed_up_are_gated_each() -> None:
    network = gatecli.attach(shakeshake(), "gaternet").network
    assert list(network.gated_by) == ["one.4.filters", "two.4.filters"]


def test_a_pattern_says_where() -> None:
    network = gated("own", where="units.*.c1")
    assert list(network.gated_by) == ["units.0.c1.filters", "units.1.c1.filters"]
    assert {site.kind for site in network.sites.values()} >= {"filter", "block"}
    with pytest.raises(ArchitectureError, match="found nothing to gate"):
        gated("own", where="nowhere*")


# --- training ---


def slow_hash(scores: Tensor, noise: Tensor, real: list[bool]) -> Tensor:
    out = torch.zeros_like(scores)
    for row in range(scores.shape[0]):
        for column in range(scores.shape[1]):
            value = scores[row, column].item() + noise[row, column].item()
            saturated = max(0.0, min(1.0, 1.2 / (1 + math.exp(-value)) - 0.1))
            out[row, column] = saturated if real[row] else float(value > 0)
    return out


def test_semantic_hash_against_a_slow_reference() -> None:
    scores = torch.linspace(-4, 4, 60).reshape(10, 6).requires_grad_()
    torch.manual_seed(3)
    gates = semantic_hash(scores)
    torch.manual_seed(3)
    noise = torch.randn(10, 6)
    real = (torch.randperm(10) < 5).tolist()
    assert sum(real) == 5 and torch.allclose(
        gates, slow_hash(scores.detach(), noise, real), atol=1e-6
    )
    gates.sum().backward()
    noisy = (scores.detach() + noise).requires_grad_()
    (1.2 * noisy.sigmoid() - 0.1).clamp(0, 1).sum().backward()
    assert (
        scores.grad is not None
        and noisy.grad is not None
        and torch.allclose(scores.grad, noisy.grad, atol=1e-6)
    )


def test_the_gates_loss_reaches_the_gater_alone() -> None:
    network = gated().copy().train()
    with torch.no_grad():
        network.get_submodule("gater").fc2.weight.normal_(0, 0.3)
    chosen = methods.get("gaternet").objective
    own = GaterNetSettings(l1_weight=0.7)
    with gatecli.record_gates(network) as record:
        torch.manual_seed(0)
        network(CASES["own"].images(8))
    decisions = record.latest()
    loss = chosen.loss(decisions, own, chosen.targets(own, network.gated_by, 0))
    gates = torch.cat([z.detach() for z in decisions.values()], 1)
    assert loss.item() == pytest.approx(
        0.7 * sum(abs(v) for row in gates.tolist() for v in row) / gates.shape[1] / len(gates),
        rel=1e-5,
    )
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in network.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert not reached or name.startswith("gater."), name
    assert all(
        parameter.grad is not None
        for name, parameter in network.named_parameters()
        if name.startswith("gater.features")
    )
    assert float(network.get_submodule("gater.fc2").weight.grad.abs().max()) > 0


def test_the_task_loss_reaches_the_gater_too() -> None:
    network = gated().copy().train()
    with torch.no_grad():
        network.get_submodule("gater").fc2.weight.normal_(0, 0.3)
    torch.manual_seed(0)
    F.cross_entropy(network(CASES["own"].images(8)), torch.arange(8) % 5).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and (
            float(parameter.grad.abs().max()) > 0 or name == "gater.fc1.bias"
        ), name  # a BatchNorm takes shifts away


def test_a_target_rate_ends_the_pressure() -> None:
    chosen = methods.get("gaternet").objective
    own = GaterNetSettings(target_rate=0.5)
    for rate, expected in ((0.25, 0.0), (0.75, 0.25)):
        z = {"a": torch.full((4, 3), rate), "b": torch.full((4, 5), rate)}
        assert chosen.loss(z, own, chosen.targets(own, z, 0)).item() == pytest.approx(expected)


def test_half_of_a_batch_has_real_gates_at_all_sites() -> None:
    network = gated().copy().train()
    with gatecli.record_gates(network) as record:
        infer(network, CASES["own"].images(10))
    gates = torch.cat(list(record.latest().values()), 1)
    binary = ((gates == 0) | (gates == 1)).all(1)
    assert 5 <= int(binary.sum()) < 10


# --- the gater ---


def test_attach_draws_nothing_from_the_global_generator_and_is_seeded() -> None:
    source = CASES["own"].build()
    torch.manual_seed(5)
    one = gatecli.attach(source, "gaternet").network
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)
    two = gatecli.attach(source, "gaternet").network
    assert all(
        torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items()
    )


def plain_gater(path: Path, classes: int = 5, size: int = 32) -> Network:
    torch.manual_seed(7)
    torch.save(
        lively(
            build("cifar:resnet20", {"num_classes": classes}), torch.randn(4, 3, 32, 32)
        ).state_dict(),
        path,
    )
    return gatecli.load(path, input_size=(size, size))


def test_a_gater_starts_from_a_trained_classifier(tmp_path: Path) -> None:
    gater = plain_gater(tmp_path / "small.pt")
    network = gatecli.attach(
        CASES["own"].network(), "gaternet", gater_network=gater, bottleneck=4
    ).network
    state = network.state_dict()
    given = gater.state_dict()
    features = {
        name.removeprefix("gater.features."): tensor
        for name, tensor in state.items()
        if name.startswith("gater.features.")
    }
    assert set(given) - set(features) == {"fc.weight", "fc.bias"} and all(
        torch.equal(tensor, given[name]) for name, tensor in features.items()
    )
    x = CASES["own"].images(3)
    seen = []
    gater.get_submodule("fc").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    infer(gater, x)
    assert torch.allclose(network.get_submodule("gater.features")(x), seen[0], atol=1e-5)
    assert not network.get_submodule("gater.fc2").weight.any() and bool(
        (network.get_submodule("gater.fc2").bias > 0).all()
    )


def test_gaters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    own = CASES["own"].network()
    with pytest.raises(
        SettingError, match=r"3 x 32 x 32, but the gater small\.pt takes 3 x 16 x 16"
    ):
        gatecli.attach(own, "gaternet", gater_network=plain_gater(tmp_path / "small.pt", size=16))
    with pytest.raises(SettingError, match=r"backbone.s 5 classes, but the gater small\.pt has 7"):
        gatecli.attach(own, "gaternet", gater_network=plain_gater(tmp_path / "small.pt", classes=7))
    backbone = plain_gater(tmp_path / "small.pt")
    with pytest.raises(SettingError, match="backbone's own file"):
        gatecli.attach(backbone, "gaternet", gater_network=plain_gater(tmp_path / "small.pt"))
    with pytest.raises(SettingError, match="leave it out"):
        gatecli.attach(own, "gaternet", gater_network=backbone, gater="torchvision:resnet18")
    with pytest.raises(SettingError, match="gatecli has changed it"):
        gatecli.attach(
            own, "gaternet", gater_network=gatecli.attach(backbone, "ind-perbatch").network
        )
    with pytest.raises(SettingError, match="ind-perbatch has none"):
        gatecli.attach(own, "ind-perbatch", gater_network=backbone)
    with pytest.raises(SettingError, match="networks:own"):
        gatecli.attach(own, "gaternet", gater="networks:own")
    with pytest.raises(ArchitectureError, match="resnet21"):
        gatecli.attach(own, "gaternet", gater="cifar:resnet21")
    with pytest.raises(SettingError, match="one has one"):
        gatecli.attach(gated("own", include=("units.0.*",)), "gaternet")


def test_a_recipe_cannot_name_code(tmp_path: Path) -> None:
    network = gated("oneblock").copy()
    step = network.recipe.steps[0]
    step.settings["settings"]["gater"] = "os:getcwd"
    gatecli.write(network, tmp_path / "evil")
    with pytest.raises(GatecliError, match="os:getcwd"):
        gatecli.load(tmp_path / "evil", arch="networks:oneblock")
    step.settings["settings"]["gater"] = "cifar:resnet20"
    step.settings["settings"]["gater_args"] = "[]"
    gatecli.write(network, tmp_path / "broken")
    with pytest.raises(SettingError, match=r"broken: .*`gater_args` to be a JSON object.*`\[\]`"):
        gatecli.load(tmp_path / "broken", arch="networks:oneblock")
    step.settings["settings"]["gater_args"] = {"names": {}}
    gatecli.write(network, tmp_path / "lacking")
    with pytest.raises(CheckpointError, match=r"lacking .*args"):
        gatecli.load(tmp_path / "lacking", arch="networks:oneblock")


def test_scores_and_decisions_of_a_gater_against_the_formula() -> None:
    network = gated().copy()
    gater = network.get_submodule("gater")
    assert isinstance(gater, Gater)
    torch.manual_seed(2)
    for parameter in [*gater.fc1.parameters(), *gater.norm.parameters(), *gater.fc2.parameters()]:
        nn.init.normal_(parameter)
    nn.init.uniform_(gater.norm.running_var)  # type: ignore[arg-type]
    x = CASES["own"].images(6)
    with torch.no_grad():
        f = gater.features(x)
        norm = gater.norm
        hidden = (f @ gater.fc1.weight.T + gater.fc1.bias - norm.running_mean) / (
            norm.running_var + norm.eps
        ).sqrt() * norm.weight + norm.bias  # type: ignore[operator]
        scores = hidden.clamp(min=0) @ gater.fc2.weight.T + gater.fc2.bias
    with gatecli.record_gates(network) as record:
        infer(network, x)
    assert torch.equal(torch.cat(list(record.latest().values()), 1), (scores > 0).float())
    assert 0 < (scores > 0).float().mean() < 1


# --- what is computed ---


@contextmanager
def filters_computed(network: Network) -> Iterator[list[int]]:
    """Rows of every convolution's weight that ran, the gater's left out."""
    seen: list[int] = []
    gaters = {id(part) for part in network.get_submodule("gater").modules()}
    true = nn.Conv2d._conv_forward

    def watch(self: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if id(self) not in gaters:
            seen.append(len(weight))
        return true(self, x, weight, bias)

    nn.Conv2d._conv_forward = watch  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        nn.Conv2d._conv_forward = true  # type: ignore[method-assign]


@pytest.mark.parametrize("name", ["bottleneck", "dense", "preactivation"])
def test_one_image_computes_its_open_filters_alone(name: str) -> None:
    network = gated(name)
    z = drawn(network, 1)
    with filters_computed(network) as seen:
        masked(network, CASES[name].images(1))
        every, seen[:] = list(seen), []
        with gatecli.force(network, z):
            infer(network, CASES[name].images(1))
        convs = [
            node.target
            for node in network.graph.nodes
            if node.op == "call_module"
            and isinstance(network.get_submodule(str(node.target)), nn.Conv2d)
        ]
        expected = [
            int(z[f"{path}.filters"].sum()) if f"{path}.filters" in z else rows
            for path, rows in zip(convs, every, strict=True)
        ]
        assert sorted(seen) == sorted(expected) and sum(seen) < sum(every)


def test_a_batch_computes_the_filters_open_for_any_image() -> None:
    network = gated()
    z = {site: torch.zeros(4, gate.units) for site, gate in network.site_gates.items()}
    for site in z:
        z[site][0, 1] = z[site][2, 3] = z[site][3, 3] = 1
    x = CASES["own"].images(4)
    with gatecli.force(network, z), filters_computed(network) as seen:
        mine = infer(network, x)
    assert seen.count(2) == len(z) == 3 and close(masked_with(network, z, x), mine)


def masked_with(network: Network, z: dict[str, Tensor], x: Tensor) -> Tensor:
    with gatecli.force(network, z):
        return masked(network, x)


def test_costs_follow_the_filters() -> None:
    network = gated("bottleneck")
    rates = {site: [0.25] * gate.units for site, gate in network.site_gates.items()}
    gater = network.get_submodule("gater")
    convs = sum(network.sites[site].macs for site in network.gated_by)
    assert expected_macs(network, rates) == pytest.approx(network.macs_dense - 0.75 * convs)
    assert network.costs["gater"].macs > 40e6 and isinstance(
        gater, Gater
    )  # CIFAR ResNet-20 at 32x32: 41 M
    assert (
        network.macs_dense == network.costs["gater"].macs + CASES["bottleneck"].network().macs_dense
    )


# --- stacking ---


def test_layer_gates_around_filters_skip_both_and_count_once() -> None:
    network = gatecli.attach(gated(), "ind-perbatch").network
    assert len(network.gated_by) == 6
    for seed in range(3):
        z, x = drawn(network, seed, 5), CASES["own"].images(5)
        with gatecli.force(network, z):
            assert close(masked(network, x), infer(network, x))
        first = {site: units[:1] for site, units in z.items()}
        assert close(masked_with(network, first, x[:1]), run_with(network, first, x[:1]))
    closed = {site: [0] * gate.units for site, gate in network.site_gates.items()}
    with gatecli.force(network, closed), filters_computed(network) as seen:
        infer(network, CASES["own"].images(1))
    assert len(seen) == 2  # the stem and the projection
    rates = {site: [0.0] * gate.units for site, gate in network.site_gates.items()}
    blocks = [site for site in network.gated_by if network.sites[site].kind == "block"]
    assert expected_macs(network, rates) == network.macs_dense - sum(
        network.sites[site].macs for site in blocks
    )


def run_with(network: Network, z: dict[str, Tensor], x: Tensor) -> Tensor:
    with gatecli.force(network, z):
        return infer(network, x)


def test_filters_inside_gated_layers() -> None:
    """The other way round: layers first, and pruned together."""
    for name in ("own", "dense"):
        case = CASES[name]
        network = gatecli.attach(
            gatecli.attach(case.build(), "ind-perbatch", input_size=case.size).network, "gaternet"
        ).network
        z, x = drawn(network, 3, 4), case.images(4)
        assert close(masked_with(network, z, x), run_with(network, z, x))
        rates = {
            site: [float(unit) for unit in units.tolist()]
            for site, units in drawn(network, 4).items()
        }
        for site, units in rates.items():
            if not network.site_gates[site].data_dependent:
                with torch.no_grad():
                    network.site_gates[site].logits.copy_(
                        torch.tensor([[1 - units[0], units[0]]]) * 8
                    )  # type: ignore[operator]
        result = gatecli.prune(network, rates=rates, static=0.5)
        assert (
            result.max_logit_change <= LIMIT
            and not result.network.gated_by
            and "gater" not in dict(result.network.named_children())
        )


@pytest.mark.parametrize("method", ["aig-pergate", "ind-perbatch"])
def test_a_block_that_loses_its_gate_leaves_no_ghost(method: str, tmp_path: Path) -> None:
    """The filters' gates are kept below the block's, `gates.units.0.c1.filters`: they stay when it
    goes, and must not keep it alive.
    """
    case = CASES["own"]
    network = gatecli.attach(case.build(), method, input_size=case.size, arch=case.arch).network
    network = gatecli.attach(network, "gaternet", where="units.*.c1").network
    with torch.no_grad():
        for site, gate in network.site_gates.items():
            if not gate.data_dependent:
                on = site == "units.0"
                gate.logits.copy_(torch.tensor([[-8.0, 8.0] if on else [8.0, -8.0]]))  # type: ignore[operator]
    rates = {site: [0.5] * gate.units for site, gate in network.site_gates.items()}
    rates["units.0"] = [1.0]
    first = gatecli.prune(network, rates=rates)
    assert "units.0" in first.ungated and "units.0.c1.filters" in first.kept_dynamic
    _has_no_ghosts(first.network, "units.0")
    again = gatecli.prune(first.network, rates=first.rates)
    assert again.kept_dynamic == first.kept_dynamic
    _has_no_ghosts(again.network, "units.0")
    gatecli.write(again.network, tmp_path / "twice.safetensors")
    loaded = gatecli.load(tmp_path / "twice.safetensors", arch=case.arch)
    _has_no_ghosts(loaded, "units.0")
    x = case.images(4)
    assert torch.equal(infer(loaded, x), infer(again.network, x))
    with gatecli.force(network, {"units.0": [1]}):
        before = infer(network, x)
    if method == "aig-pergate":  # else the gates that close have gone too
        assert close(before, infer(again.network, x))


def _has_no_ghosts(network: Network, gone: str) -> None:
    """Its gates are those that its graph calls; of those at `gone` the filters' alone is left."""
    called = {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
    held = {path for path, part in network.root.named_modules() if isinstance(part, Gate)}
    assert held == {f"gates.{site}" for site in network.gated_by} <= called
    assert set(network.site_gates) == set(network.gated_by)
    own = [name for name in network.state_dict() if name.startswith(f"gates.{gone}.")]
    assert own == [f"gates.{gone}.c1.filters.threshold"]


def test_exits_behind_gated_filters() -> None:
    case = CASES["cifar-projection"]
    network = gatecli.attach(gated("cifar-projection"), "dgate", pool=1).network
    x = case.images(6)
    torch.manual_seed(0)
    for exit_ in network.site_exits.values():
        nn.init.normal_(exit_.linear.weight)  # type: ignore[union-attr, arg-type]
        exit_.threshold.fill_(3.0)
    z = {
        site: d for site, d in drawn(network, 2, 6).items() if network.sites[site].kind == "filter"
    }
    with gatecli.force(network, z):
        logits, taken = network(x, return_exits=True)
        assert len(set(taken.tolist())) > 1 and close(masked(network, x), logits.detach())
    for sample in range(6):
        with gatecli.force(network, {site: d[sample : sample + 1] for site, d in z.items()}):
            assert close(
                logits[sample : sample + 1].detach(), infer(network, x[sample : sample + 1])
            )
    assert list(
        gatecli.attach(gated("cifar-projection"), "dgate", after="layer1.1").network.site_exits
    ) == ["exit1"]


# --- prune ---


def test_behind_channels_that_are_gone_readers_save_as_before() -> None:
    """A value that an addition reads among zeros is read by a convolution without them."""
    network = gated("own", where="*")
    site = next(iter(network.gated_by))
    assert len(network.sites[site].savings) == 2  # itself, and what reads it
    rates = {name: [1.0] * gate.units for name, gate in network.site_gates.items()}
    rates[site] = [0.0, 0.0, 0.5, 1.0, 0.5, 0.0, 0.0, 0.5]
    pruned = gatecli.prune(network, rates=rates)
    assert pruned.max_logit_change <= 1e-5 and pruned.kept_dynamic == [site]
    assert len(pruned.network.sites[site].savings) == 2
    decided = {name: [1.0] * gate.units for name, gate in pruned.network.site_gates.items()}
    decided[site] = [1.0, 0.0, 1.0]
    with gatecli.force(pruned.network, decided), counted() as macs:
        infer(pruned.network.eval(), CASES["own"].images(1))
    assert macs.total == expected_macs(pruned.network, decided)


SHARES = st.sampled_from([0.0, 0.0, 0.5, 1.0])
PRUNED = (
    ("own", {}),
    ("cifar-pad-gray", {}),
    ("dense", {}),
    ("plaindense", {}),
    ("readers", {}),
    ("own", {"where": "*"}),
    ("dense", {"where": "*"}),
)


def told(network: Network) -> dict[str, str]:
    """The sites, without the numbers that a graph gives to nodes that prune has put in."""
    return {
        name: re.sub(r"spread_\d+", "spread", str(site)) for name, site in network.sites.items()
    }


@settings(
    max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate]
)  # to shrink takes minutes
@given(which=st.sampled_from(PRUNED), data=st.data(), round_to=st.sampled_from([1, 1, 4]))
def test_prune_keeps_what_was_decided_unit_by_unit(
    which: tuple[str, dict[str, str]], data: st.DataObject, round_to: int
) -> None:
    """Always off, always on and dynamic filters in one site; twice, saved and loaded in between."""
    name, how = which
    case, network = CASES[name], gated(name, **how)
    x = case.images(3)
    for _ in range(2):
        rates = {
            site: data.draw(st.lists(SHARES, min_size=gate.units, max_size=gate.units))
            for site, gate in network.site_gates.items()
        }
        result = gatecli.prune(network, rates=rates, round_to=round_to)
        smaller = result.network
        dynamic = {
            site: [unit for unit, rate in enumerate(rates[site]) if rate == 0.5]
            for site in network.gated_by
        }
        live = {
            site: units
            for site, units in dynamic.items()
            if site in smaller.gated_by and site not in result.stuck
        }
        assert all(
            smaller.site_gates[site].units == len(units) == smaller.sites[site].units
            for site, units in live.items()
        )
        if smaller.gated_by:
            assert smaller.get_submodule("gater.fc2").weight.shape[0] == sum(
                gate.units for gate in smaller.site_gates.values()
            )
        else:
            assert not any(name.startswith(("gater.", "gates.")) for name in smaller.state_dict())
        decided = drawn(smaller, 5, 3)
        decided |= {site: torch.zeros_like(decided[site]) for site in result.stuck}
        whole = {site: torch.tensor(rates[site]).round().repeat(3, 1) for site in network.gated_by}
        for site, units in live.items():
            whole[site][:, units] = decided[site]
        assert close(run_with(network, whole, x), run_with(smaller, decided, x))
        assert close(masked_with(smaller, decided, x), run_with(smaller, decided, x))
        network = reloaded(smaller, case.arch)
        assert close(run_with(smaller, decided, x), run_with(network, decided, x)) and told(
            network
        ) == told(smaller)
        if not network.gated_by:
            return


def reloaded(network: Network, arch: str) -> Network:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        gatecli.write(network, Path(folder) / "net")
        return gatecli.load(Path(folder) / "net", arch=arch)


def test_what_prune_takes_is_gone() -> None:
    """Of units.0 filters 0 and 1 never run, 2 always does.

    The rest stays dynamic, and the sum keeps its width.
    """
    network = gated()
    rates = {site: [0.5] * gate.units for site, gate in network.site_gates.items()}
    rates["units.0.c2.filters"][:3] = [0.0, 0.0, 1.0]
    result = gatecli.prune(network, rates=rates)
    smaller = result.network
    assert (
        result.thinned == {"units.0.c2.filters": [0, 1]}
        and result.freed == {"units.0.c2.filters": [2]}
        and not result.removed
        and not result.ungated
    )
    assert smaller.get_submodule("units.0.c2").weight.shape[0] == 6 and smaller.get_submodule(
        "units.0.n2"
    ).running_mean.shape == (6,)
    assert (
        smaller.get_submodule("gater.fc2").weight.shape[0]
        == network.get_submodule("gater.fc2").weight.shape[0] - 3
    )
    site = smaller.sites["units.0.c2.filters"]
    assert (site.units, site.places, site.macs) == (5, (1, 2, 3, 4, 5), 6 * 8 * 9 * 1024)
    assert unit_macs(smaller, site.name) == pytest.approx(8 * 9 * 1024)
    assert smaller.site_gates["units.0.c2.filters"].threshold.shape == (5,)
    closed = {name: [0.0] * gate.units for name, gate in smaller.site_gates.items()}
    assert expected_macs(smaller, closed) == smaller.macs_dense - sum(
        place.units * unit_macs(smaller, name)
        for name, place in smaller.sites.items()
        if name in closed
    )


def test_readers_of_dense_layers_lose_the_channels_too() -> None:
    network = gated("dense")
    rates = {site: [1.0] * gate.units for site, gate in network.site_gates.items()}
    rates["first.1.conv2.filters"] = [0.0, 1.0, 0.0, 0.5]
    smaller = gatecli.prune(network, rates=rates).network
    assert smaller.get_submodule("first.1.conv2").out_channels == 2
    assert (
        smaller.get_submodule("first.2.norm1").num_features == 16 - 2
        and smaller.get_submodule("first.2.conv1").in_channels == 14
    )
    assert smaller.get_submodule("norm").num_features == 20 - 2 and list(smaller.gated_by) == [
        "first.1.conv2.filters"
    ]


def test_a_way_that_never_runs_leaves_the_other() -> None:
    network = gatecli.attach(shakeshake(), "gaternet").network
    x = torch.randn(3, 3, 8, 8)
    one = {"one.4.filters": [0.0] * 8, "two.4.filters": [1.0] * 8}
    result = gatecli.prune(network, rates=one)
    assert result.removed == ["one.4.filters"] and not any(
        name.startswith("one") for name in result.network.state_dict()
    )
    with gatecli.force(
        network, {site: [int(rate) for rate in units] for site, units in one.items()}
    ):
        assert close(infer(network, x), infer(result.network, x))
    both = gatecli.prune(network, rates={site: [0.0] * 8 for site in one}).network
    assert (
        not any(name.startswith(("one", "two")) for name in both.state_dict()) and not both.gated_by
    )
    with gatecli.force(network, {site: [0] * 8 for site in one}):
        assert close(infer(network, x), infer(both, x))


def test_round_to_keeps_widths_friendly() -> None:
    network = gated("own")
    rates = {site: [1.0] * gate.units for site, gate in network.site_gates.items()}
    rates["units.1.c2.filters"] = [1.0] * 3 + [0.0] * 9
    smaller = gatecli.prune(network, rates=rates, round_to=8).network
    assert smaller.get_submodule("units.1.c2").out_channels == 8
