"""gateconnect: which branches feed which.

Exact at K = C, learned with K < C, and pruned of what nobody reads.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import SIDE, call, contents, refused, save_npz, save_source
from counting import counted
from hypothesis import given, settings, strategies
from networks import infer
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet

import gatecli
from gatecli.architectures.build import build, build_skeleton
from gatecli.architectures.cifar.resnext import RESNEXTS
from gatecli.errors import ArchitectureError, SettingError
from gatecli.gates.observe import strategy
from gatecli.graph.trace import compile_graph
from gatecli.kinds.branch.modules import FanOut, SharedNorm
from gatecli.kinds.branch.ops import connect, fold_streams, unfold_streams
from gatecli.methods import get, parse_settings, record_settings, recorded_settings
from gatecli.methods.gateconnect import Connections
from gatecli.methods.gateconnect.connections import RealConnections
from gatecli.methods.settings import Length, Settings
from gatecli.network import Network
from gatecli.network.compare import relative_change
from gatecli.training.trained import Trained

LIMIT, SIZE = 1e-5, (16, 16)


def shared() -> nn.Module:
    """A ResNeXt as torchvision's, small.

    2 + 2 + 1 + 1 modules of four branches, one BatchNorm a module.
    """
    return resnet.ResNet(
        resnet.Bottleneck, [2, 2, 1, 1], num_classes=5, groups=4, width_per_group=4
    )


@functools.cache
def source(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = shared() if kind == "shared" else build("cifar:resnext20_8x4d", {})
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor, low, high in (
                (part.running_mean, -0.3, 0.3),
                (part.running_var, 0.5, 1.5),
                (part.weight, 0.5, 1.5),
                (part.bias, -0.3, 0.3),
            ):
                assert isinstance(tensor, Tensor)
                nn.init.uniform_(tensor, low, high)
    return model.eval()


@pytest.fixture(params=["shared", "own"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def images(count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def attached(kind: str, **how: Any) -> Network:
    return gatecli.attach(source(kind), "gateconnect", input_size=SIZE, **how).network


def gates(network: Network) -> dict[str, Connections]:
    return {
        site: gate for site, gate in network.site_gates.items() if isinstance(gate, Connections)
    }


# --- the operations, against slow references ---


def test_connect_is_the_paper_s_sum() -> None:
    """x_j = sum_k g_jk (F_k + x_k / K), branch by branch and sample by sample."""
    torch.manual_seed(0)
    values, streams, one = (
        torch.randn(2, 3 * 4, 2, 2),
        torch.randn(2, 3 * 4, 2, 2),
        torch.randn(2, 4, 2, 2),
    )
    for shortcut in (streams, one):
        for g in (torch.tensor([[1.0, 0, 1], [0, 1, 1]]), torch.randint(0, 2, (2, 5, 3)).float()):
            found = connect(values, shortcut, (g, 2))
            for n in range(2):
                rows = g if g.ndim == 2 else g[n]
                for j in range(len(rows)):
                    total = torch.zeros(4, 2, 2)
                    for k in range(3):
                        carried = (
                            shortcut[n, 4 * k : 4 * k + 4] if shortcut is streams else shortcut[n]
                        )
                        total += rows[j, k] * (values[n, 4 * k : 4 * k + 4] + carried / 2)
                    torch.testing.assert_close(found[n, 4 * j : 4 * j + 4], total)


def test_parts_of_a_convolution_and_of_a_batchnorm_add_up() -> None:
    torch.manual_seed(0)
    conv, norm, x = nn.Conv2d(12, 5, 1, bias=False), nn.BatchNorm2d(5), torch.randn(6, 12, 3, 3)
    nn.init.uniform_(norm.bias), nn.init.uniform_(norm.weight)
    fan, part = FanOut(conv, 4), SharedNorm(norm, 4)
    twin = nn.BatchNorm2d(5)
    twin.load_state_dict({key: value.clone() for key, value in norm.state_dict().items()})
    for training in (True, False):
        part.train(training), twin.train(training)
        torch.testing.assert_close(part(fan(x)).reshape(6, 4, 5, 3, 3).sum(1), twin(conv(x)))
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(part.state_dict()[key], value)
    y = torch.randn(2, 6, 3, 3)
    assert fold_streams(y, 3).shape == (6, 2, 3, 3) and torch.equal(
        unfold_streams(fold_streams(y, 3), 3), y
    )


# --- attach ---


def test_all_connections_change_nothing_and_cost_nothing(kind: str) -> None:
    count = 4 if kind == "shared" else 8
    result = gatecli.attach(source(kind), "gateconnect", input_size=SIZE, fan_in=count)
    assert (result.gates, result.units) == (5, 5 * count) and result.max_logit_change <= LIMIT
    assert relative_change(infer(source(kind), images()), infer(result.network, images())) <= LIMIT
    assert result.network.macs_dense == result.network.recipe.source.macs


def test_streams_with_all_connections_change_nothing_either(kind: str) -> None:
    """The way that K < C takes, with every connection on.

    In double precision, to its last digits.
    """
    network = attached(kind, fan_in=2).double()
    with strategy(network, "always-on"):
        assert (
            relative_change(
                infer(source(kind).double(), images().double()), infer(network, images().double())
            )
            <= 1e-13
        )
    source(kind).float()


def test_half_is_the_default_and_attach_says_how_far_the_logits_move(kind: str) -> None:
    result = gatecli.attach(source(kind), "gateconnect", input_size=SIZE)
    assert result.max_logit_change > 1e-3
    for gate in gates(result.network).values():
        assert (gate.connections().sum(1) == gate.units // 2).all() and (
            gate.connections().sum(0) > 0
        ).all()
    state = source(kind).state_dict()
    assert all(
        torch.equal(tensor, state[key])
        for key, tensor in result.network.state_dict().items()
        if key in state
    ) and set(state) <= set(result.network.state_dict())


def test_sites_and_what_is_refused(kind: str) -> None:
    network = attached(kind, fan_in=2)
    assert all(site.endswith(".branches") for site in network.gated_by)
    with pytest.raises(SettingError, match=r"fan_in` to be at most the \d branches"):
        attached(kind, fan_in=9)
    with pytest.raises(SettingError, match="fan_in` to be between 1"):
        attached(kind, fan_in=0)
    with pytest.raises(ArchitectureError, match="all 5 sites carry gates already"):
        gatecli.attach(network, "gateconnect")
    taken = gatecli.attach(source(kind), "ind-perbatch", input_size=SIZE).network
    with pytest.raises(SettingError, match="to carry no gate, but ind-perbatch gates it"):
        gatecli.attach(taken, "gateconnect")


@pytest.mark.parametrize("arch", ["resnet50", "mobilenet_v2", "regnet_y_400mf"])
def test_networks_without_such_modules_are_refused(arch: str) -> None:
    source = build_skeleton(f"torchvision:{arch}", {}).to_empty(device="cpu")
    for tensor in (*source.parameters(), *source.buffers()):
        tensor.data.zero_()
    with pytest.raises(
        ArchitectureError, match=r"gateconnect found nothing to gate .*squeeze-and-excitation"
    ):
        gatecli.attach(source, "gateconnect", input_size=(32, 32))


def test_regnet_is_gated_between_modules_of_equal_count() -> None:
    network = Network(
        build_skeleton("torchvision:regnet_x_400mf", {}),
        gatecli.traced.recipe.Recipe(
            gatecli.traced.recipe.Source("x", {}), gatecli.traced.recipe.InputSpec((32, 32))
        ),
    )  # type: ignore[attr-defined]
    counts = [site.units for site in network.sites.values() if site.kind == "branch"]
    assert (
        counts
        and len(set(counts)) > 1
        and len(counts) < sum(site.kind == "block" for site in network.sites.values()) - 1
    )


@pytest.mark.parametrize(
    ("name", "params"),
    [("resnext20_8x4d", 283_572), ("resnext29_8x8d", 858_292), ("resnext29_8x64d", 34_594_212)],
)
def test_the_paper_s_networks_have_its_parameters(name: str, params: int) -> None:
    assert (
        sum(p.numel() for p in build_skeleton(f"cifar:{name}", {"num_classes": 100}).parameters())
        == params
    )


# --- the gates ---


def test_draws_are_distinct_and_follow_the_real_gates() -> None:
    gate = Connections("a", 6, 2, None)
    with torch.no_grad():
        gate.real.copy_(torch.tensor([1.0, 0.5, 0.5, 0, 0, 0]).repeat(6, 1))
    torch.manual_seed(0)
    seen = torch.stack([gate.drawn().detach() for _ in range(2000)])
    assert bool((seen.sum(2) == 2).all()) and set(seen.unique().tolist()) == {0.0, 1.0}
    # P(first is drawn) = 1/2 + 1/2 * (1/2) / (1 - 1/4) = 5/6 with two draws without replacement of
    # 1/2, 1/4, 1/4
    assert (
        seen[:, :, 0].mean().item() == pytest.approx(5 / 6, abs=0.01) and seen[:, :, 3:].sum() < 5
    )
    assert torch.allclose(
        gate.real[0], torch.tensor([0.5, 0.25, 0.25, 0, 0, 0])
    )  # kept as the chances that they were
    with torch.no_grad():
        gate.real.zero_()
    assert bool((gate.drawn().sum(1) == 2).all())


def test_real_gates_start_alike_or_apart() -> None:
    own: Any = {"shared": "no"}
    alike, apart, again = (attached("own", fan_in=2, **how).site_gates for how in ({}, own, own))
    for site, gate in alike.items():
        assert bool((gate.real == 1 / 8).all())
        assert (
            torch.equal(apart[site].real, again[site].real)
            and bool((apart[site].real >= 1 / 16).all())
            and bool((apart[site].real <= 3 / 16).all())
        )
    assert len({gate.real[0, 0].item() for gate in apart.values()}) == len(apart)


def test_the_gradient_of_the_binary_gates_reaches_all_real_ones() -> None:
    """d loss / d real_jk = d loss / d g_jk = <d loss / d x_j, y_k>, also where k was not drawn."""
    gate = Connections("a", 3, 1, None).train()
    values, shortcut, weights = (
        torch.randn(2, 3 * 4, 2, 2),
        torch.randn(2, 4, 2, 2),
        torch.randn(2, 3 * 4, 2, 2),
    )
    total: Any = (connect(values, shortcut, gate(values)) * weights).sum()
    total.backward()
    y = values.reshape(2, 3, -1) + shortcut.reshape(2, 1, -1)
    assert gate.real.grad is not None
    for j in range(3):
        for k in range(3):
            assert gate.real.grad[j, k].item() == pytest.approx(
                (weights.reshape(2, 3, -1)[:, j] * y[:, k]).sum().item(), rel=1e-4
            )


def test_the_largest_stay_and_ties_are_spread() -> None:
    gate = Connections("a", 4, 2, None)
    assert torch.equal(
        gate.largest(), torch.tensor([[1.0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]])
    )
    with torch.no_grad():
        gate.real[0] = torch.tensor([0.1, 0.9, 0.2, 0.8])
    assert gate.largest()[0].tolist() == [0, 1, 0, 1]


def test_phases_and_clipping(kind: str) -> None:
    network, objective = attached(kind, fan_in=1), get("gateconnect").objective
    chosen = get("gateconnect").about.settings()
    rates = [
        objective.learning_rate("step", 0.1, done, chosen)
        for done in (0.0, 219 / 320, 221 / 320, 269 / 320, 271 / 320)
    ]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])
    sites = list(network.gated_by)
    objective.begin_epoch(network, sites, chosen, 119 / 320)
    assert not any(bool(gate.frozen) for gate in gates(network).values())
    with torch.no_grad():
        for gate in gates(network).values():
            gate.real[:, 2] = 7
            gate.real[:, 1] = -7
    objective.after_step(network, sites)
    assert {gate.real.max().item() for gate in gates(network).values()} == {1.0} and {
        gate.real.min().item() for gate in gates(network).values()
    } == {0.0}
    objective.begin_epoch(network, sites, chosen, 120 / 320)
    for gate in gates(network).values():
        assert bool(gate.frozen) and gate.connections()[:, 2].min() == 1
        before = gate.connections().clone()
        gate.real.data.uniform_()
        assert torch.equal(gate.train()(images())[0], before)


def test_every_parameter_learns(kind: str) -> None:
    network = attached(kind, fan_in=2).train()
    torch.manual_seed(0)
    loss = F.cross_entropy(network(images(6)), torch.arange(6) % network.num_classes)
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in network.named_parameters():
        assert (
            parameter.grad is not None
            and bool(parameter.grad.isfinite().all())
            and float(parameter.grad.abs().sum()) > 0
        ), name


# --- settings of the paper's, and its control ---


def slow_connected(gate: Connections, values: Tensor, shortcut: Tensor) -> Tensor:
    """x_j = sum_k g_jk (F_k + x_k / divisor), g as the gate says in evaluation."""
    parts = values.reshape(len(values), gate.units, -1, *values.shape[2:])
    carried = shortcut[:, None] / gate.divisor
    return torch.einsum("jk,nkchw->njchw", gate.connections().detach(), parts + carried).flatten(
        1, 2
    )


@pytest.mark.parametrize(("carry", "divisor"), [("mean", 2), ("sum", 1)])
def test_the_identity_is_carried_as_a_mean_or_a_sum(kind: str, carry: str, divisor: int) -> None:
    network = attached(kind, fan_in=2, carry=carry, connectivity="random")
    for gate in gates(network).values():
        values, shortcut = torch.randn(2, gate.units * 4, 3, 3), torch.randn(2, 4, 3, 3)
        found = connect(values, shortcut, gate.eval()(values))
        torch.testing.assert_close(found, slow_connected(gate, values, shortcut))
        assert gate.divisor == divisor
    for each in (network, gatecli.prune(network).network):
        expected = compile_graph(each.graph)(each, images())
        assert relative_change(expected.detach(), infer(each, images())) <= LIMIT
    with strategy(network, "always-on"):
        assert relative_change(infer(source(kind), images()), infer(network, images())) <= LIMIT


def test_a_sum_of_all_connections_is_no_resnext() -> None:
    assert attached("own", fan_in=8).recipe.steps[-1].results["max_logit_change"] <= LIMIT
    every = gatecli.attach(source("own"), "gateconnect", input_size=SIZE, fan_in=8, carry="sum")
    assert every.max_logit_change > LIMIT


def test_real_gates_are_what_drawn_ones_are_on_average() -> None:
    """K times the normalised gates; the gradient reaches them by that product."""
    torch.manual_seed(0)
    real, drawn = (kind("a", 5, 1, None).train() for kind in (RealConnections, Connections))
    start = torch.rand(5, 5)
    for gate in (real, drawn):
        gate.real.data.copy_(start)
    mean = torch.stack([drawn.drawn().detach() for _ in range(4000)]).mean(0)
    torch.testing.assert_close(real.drawn().detach(), mean, atol=0.04, rtol=0)
    wide = RealConnections("a", 5, 2, None)
    assert torch.allclose(wide.connections(), torch.full((5, 5), 2 / 5))
    (wide.train()(torch.zeros(1))[0] * torch.eye(5)).sum().backward()
    assert wide.real.grad is not None and torch.equal(wide.real.grad, 2 * torch.eye(5))


def test_real_gates_are_exact_pruned_and_replayed(kind: str, tmp_path: Path) -> None:
    how: dict[str, Any] = {"connectivity": "real", "shared": "no"}
    arch = "test_gateconnect:shared" if kind == "shared" else "cifar:resnext20_8x4d"
    network = attached(kind, fan_in=2, arch=arch, **how)
    gate = next(iter(gates(network).values()))
    gate.real.data[:, 1] = 0
    pruned = gatecli.prune(network)
    assert pruned.thinned[next(iter(gates(network)))] == [1] and pruned.max_logit_change <= LIMIT
    for number, each in enumerate((network, pruned.network)):
        expected = compile_graph(each.graph)(each, images())
        assert relative_change(expected.detach(), infer(each, images())) <= LIMIT
        gatecli.write(each, tmp_path / f"{number}.safetensors")
        named = arch if kind == "shared" else None
        loaded = gatecli.load(tmp_path / f"{number}.safetensors", arch=named)
        assert torch.equal(infer(each, images()), infer(loaded, images()))


def test_all_real_gates_alike_are_the_source(kind: str) -> None:
    count = 4 if kind == "shared" else 8
    result = gatecli.attach(
        source(kind), "gateconnect", input_size=SIZE, fan_in=count, connectivity="real"
    )
    assert result.max_logit_change <= LIMIT


def test_real_gates_stay_as_they_are_after_the_joint_phase(kind: str) -> None:
    network, objective = attached(kind, fan_in=2, connectivity="real"), get("gateconnect").objective
    chosen = get("gateconnect").about.settings()
    objective.begin_epoch(network, list(network.gated_by), chosen, 0.5)
    for gate in gates(network).values():
        before = gate.connections().clone()
        gate.real.data.uniform_()
        assert bool(gate.frozen) and torch.equal(gate.train()(images())[0], before)


def test_the_seed_of_the_command_is_the_wiring_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_source(Path("x.pt"), "cifar:resnext20_8x4d")
    line = ["attach", "x.pt", "--method", "gateconnect", "--set", "connectivity=random"]
    wirings = []
    for more in ([], ["--seed", 0], ["--seed", 3], ["--set", "seed=3"]):
        found = call(*line, "--input-size", SIDE, *more, "--out", "y.safetensors", "--force")
        wirings.append(contents(found["out"])[0]["gates.layer1.0.branches.chosen"])
        recorded = contents(found["out"])[1]["steps"][-1]["settings"]["settings"]
        assert recorded["seed"] == (3 if "3" in str(more) else 0)
    plain, first, third, told = wirings
    assert torch.equal(plain, first) and torch.equal(third, told) and not torch.equal(first, third)


def test_residuals_of_a_network_from_scratch_start_with_the_same_variance() -> None:
    for fan_in, wanted in ((None, 8), (1, 1), (4, 4)):
        model = RESNEXTS["resnext20_8x4d"](fan_in=fan_in)
        weight = model.get_submodule("layer1.0.bn3").weight
        assert isinstance(weight, Tensor)
        torch.testing.assert_close(weight, torch.full_like(weight, wanted**-0.5))


# --- the phases, and the gates' step ---


def test_phases_of_any_length() -> None:
    """48, 40, 20 and 20 of 128 epochs; the same as shares."""
    objective, about = get("gateconnect").objective, get("gateconnect").about
    shares = "0.375,0.3125,0.15625,0.15625"
    for words, epochs in (("48,40,20,20", 128), (shares, 128), (shares, 7)):
        chosen = parse_settings(get("gateconnect"), {"phases": words})
        chosen.check(epochs)
        rates = [objective.learning_rate("step", 0.1, done / 128, chosen) for done in range(128)]
        assert rates == pytest.approx([0.1] * 88 + [0.01] * 20 + [0.001] * 20)
    network = attached("own", fan_in=2)
    for words, last in (("3,1,0,6", 2), ("0.3,0.4,0.2,0.1", 2), ("10,0,0,0", 9)):
        network = attached("own", fan_in=2)
        chosen = parse_settings(get("gateconnect"), {"phases": words})
        for epoch in range(10):
            objective.begin_epoch(network, list(network.gated_by), chosen, epoch / 10)
            frozen = all(bool(gate.frozen) for gate in gates(network).values())
            assert frozen == (epoch > last)
    assert about.settings().phases == "cifar"


def test_recorded_phases_are_read_again() -> None:
    method = get("gateconnect")
    for words in ("48,40,20,20", "imagenet"):
        chosen = parse_settings(method, {"phases": words})
        again = recorded_settings(method, json.loads(json.dumps(record_settings(chosen))))
        assert again == chosen


@pytest.mark.parametrize(
    "words", ["a,b,c,d", "1,2,3", "1,2,3,4,5", "-1,2,3,4", "0,0,0,0", "1.5,2,3,4", "nan,1,1,1", ""]
)
def test_phases_that_are_none_are_refused(words: str) -> None:
    with pytest.raises(SettingError, match="`phases` to be cifar, imagenet, or four lengths"):
        parse_settings(get("gateconnect"), {"phases": words})


def test_phases_that_do_not_fit_the_epochs_are_refused_before_anything_is_read() -> None:
    chosen = parse_settings(get("gateconnect"), {"phases": "4,2,1,1"})
    chosen.check(8)
    with pytest.raises(SettingError, match="add up to the 9 epochs, but got 4,2,1,1, which are 8"):
        chosen.check(9)


def group_of(chosen: Settings, **options: Any) -> dict[str, Any]:
    """The optimizer's group of the real gates."""
    trained = Trained(get("gateconnect"), chosen)
    (group,) = trained.groups(attached("own", fan_in=2), gatecli.TrainOptions(**options))
    return group


def test_real_gates_take_plain_steps_and_those_of_older_files_have_momentum() -> None:
    method = get("gateconnect")
    older = recorded_settings(method, {"fan_in": 2, "seed": 0, "phases": "imagenet"})
    for chosen, momentum in ((method.about.settings(), 0.0), (older, 0.7)):
        group = group_of(chosen, momentum=0.7)
        assert (group["momentum"], group["base_lr"], group["weight_decay"]) == (momentum, 0.2, 0.0)
    assert older.phases == "imagenet" and older.carry == "mean"


def test_a_short_joint_phase_has_a_higher_rate() -> None:
    method = get("gateconnect")
    for steps, wanted in ((320_000, None), (2_000, 1.3), (100, 3.0)):
        length = Length(epochs=10, steps=steps, lr=0.1, weight_decay=0.0)
        found = method.about.settings().suited(length)
        assert found == ({} if wanted is None else {"gate_lr": wanted})
        for told in ({"gate_lr": 0.1}, {"short_run": 0}):
            assert not parse_settings(method, told).suited(length)
        older = recorded_settings(method, {"fan_in": 2, "gate_lr": None})
        assert not older.suited(length)


# --- prune ---


def used(network: Network) -> dict[str, list[int]]:
    """Brute force: a branch counts if silencing it moves the logits."""
    network, x = network.copy().double(), images(2).double()
    before, found = infer(network, x), dict[str, list[int]]()
    for site, gate in network.site_gates.items():
        found[site] = []
        for unit in range(gate.units):
            with gatecli.force(
                network, {site: [int(other != unit) for other in range(gate.units)]}
            ):
                if relative_change(before, infer(network, x)) > 1e-11:
                    found[site].append(unit)
    return found


@settings(max_examples=12, deadline=None)
@given(
    strategies.integers(0, 10_000),
    strategies.integers(1, 3),
    strategies.sampled_from(["shared", "own"]),
)
def test_prune_takes_out_what_nobody_reads_and_changes_nothing(
    seed: int, fan_in: int, kind: str
) -> None:
    network = attached(kind, fan_in=fan_in, connectivity="random", seed=seed)
    expected = used(network)
    result = gatecli.prune(network)
    assert (
        result.max_logit_change <= LIMIT
        and relative_change(infer(network, images(5)), infer(result.network, images(5))) <= LIMIT
    )
    gone = {
        site: [unit for unit in range(network.sites[site].units) if unit not in kept]
        for site, kept in expected.items()
    }
    assert {site: list(units) for site, units in result.thinned.items()} == {
        site: units for site, units in gone.items() if units
    }
    assert result.network.params < network.params and not result.network.gated_by
    saved = sum(len(units) for units in gone.values())
    same = sum(
        network.sites[site].units - len({tuple(row) for row in gate.connections().tolist()})
        for site, gate in gates(network).items()
    )  # share a stream
    assert (result.network.macs_dense < network.macs_dense) == (saved > 0 or same > 0)


@pytest.mark.parametrize("exclude", [[], ["layer1.0.branches"], ["*.0.branches"]])
def test_the_file_replays(kind: str, exclude: list[str], tmp_path: Path) -> None:
    if kind == "shared":
        network = gatecli.attach(
            shared(),
            "gateconnect",
            input_size=SIZE,
            arch="test_gateconnect:shared",
            fan_in=1,
            connectivity="random",
            shared="no",
            exclude=exclude,
        ).network
    else:
        network = gatecli.attach(
            source(kind),
            "gateconnect",
            input_size=SIZE,
            arch="cifar:resnext20_8x4d",
            fan_in=1,
            connectivity="random",
            exclude=exclude,
        ).network
    pruned = gatecli.prune(network).network
    for number, each in enumerate((network, pruned)):
        gatecli.write(each, tmp_path / f"{number}.safetensors")
        loaded = gatecli.load(
            tmp_path / f"{number}.safetensors",
            arch="test_gateconnect:shared" if kind == "shared" else None,
        )
        assert (
            torch.equal(infer(each, images()), infer(loaded, images()))
            and loaded.macs_dense == each.macs_dense
            and loaded.sites == each.sites
        )
    assert pruned.params < network.params


def test_the_road(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_source(Path("x.pt"), "cifar:resnext20_8x4d")
    save_npz(Path("data.npz"))
    refused("attach x.pt --method gateconnect --set fan_in=9", "at most the 8 branches")
    found = call(
        "attach", "x.pt", "--method", "gateconnect", "--set", "fan_in=1", "--input-size", SIDE
    )
    assert (found["gates"], found["units"]) == (5, 40) and found["max_logit_change"] > 0
    assert {site["kind"] for site in call("inspect")["sites"] if site["method"]} == {"branch"}
    tuned = call(
        "finetune", "--data", "npz:data.npz", "--epochs", 4, "--batch-size", 32, "--bn-batches", 2
    )
    after = contents(tuned["out"])[0]
    assert not torch.equal(after["gates.layer1.0.branches.real"], torch.full((8, 8), 1 / 8))
    pruned = call("prune")
    assert pruned["max_logit_change"] <= LIMIT and pruned["params"] < pruned["params_before"]
    assert call("eval")["top1"] == tuned["top1"]
    assert call("profile", "--repeats", 3)["rows"][1]["params"] == pruned["params"]
    refused("attach --method gateconnect --out y.safetensors", "found nothing to gate")


# --- together with others ---


def closed(network: Network, site: str, unit: int | None = None) -> Network:
    """The network pruned of a block, or of one unit in each: their gates say so."""
    for name, gate in network.site_gates.items():
        table = gate.get_parameter("logits").detach()
        table.copy_(torch.tensor([0.0, 8.0]).expand_as(table))
        if unit is not None or name == site:
            table[unit or 0] = torch.tensor([8.0, -8.0])
    return gatecli.prune(network).network


def test_sites_of_modules_that_are_gone_go() -> None:
    pruned = closed(
        gatecli.attach(source("shared"), "ind-perbatch", input_size=SIZE).network, "layer2.0"
    )
    names = [name for name, site in pruned.sites.items() if site.kind == "branch"]
    before = attached("shared", fan_in=2)
    assert (
        names
        == [
            name
            for name in before.gated_by
            if name not in ("layer1.1.branches", "layer2.0.branches")
        ]
        and len(names) >= 2
    )


def test_modules_whose_channels_are_gone_are_no_sites() -> None:
    pruned = closed(
        gatecli.attach(source("shared"), "ind-perbatch", input_size=SIZE, granularity=4).network,
        "",
        1,
    )
    with pytest.raises(ArchitectureError, match="gateconnect found nothing to gate"):
        gatecli.attach(pruned, "gateconnect", fan_in=2)


def test_an_empty_batch(kind: str) -> None:
    network = attached(kind, fan_in=2)
    for each in (network, gatecli.prune(network).network):
        assert infer(each, images(0)).shape == (0, network.num_classes)


def test_streams_and_exits_do_not_meet() -> None:
    early = gatecli.attach(source("shared"), "dgate", input_size=SIZE).network
    with pytest.raises(
        SettingError, match="expected `exit1` to have no exit, but dgate has put one there"
    ):
        gatecli.attach(early, "gateconnect", fan_in=2)
    assert gatecli.attach(early, "gateconnect", fan_in=4).max_logit_change <= LIMIT
    network = attached("shared", fan_in=2)
    for each in (network, gatecli.prune(network).network):
        assert not any(site.kind == "exit" for site in each.sites.values())
        with pytest.raises(ArchitectureError, match="dgate found nothing to gate"):
            gatecli.attach(each, "dgate")


def test_channels_of_streams_are_no_sites() -> None:
    network = attached("shared", fan_in=2)
    names = {name for name, site in network.sites.items() if site.kind in ("filter", "conv")}
    assert names == {
        "conv1.filters",
        "layer1.0.conv1.filters",
        "layer1.0.conv1.channels",
        "layer1.0.downsample.0.filters",
        "layer1.0.downsample.0.channels",
        "layer4.0.conv3.filters",
        "layer4.0.conv3.channels",
    }
    pruned = gatecli.prune(network).network
    gated = gatecli.attach(pruned, "cgnet", include=["*.channels"]).network
    assert (
        set(gated.gated_by) <= names
        and relative_change(infer(pruned, images()), infer(gated, images())) <= LIMIT
    )
    taken = gatecli.attach(
        source("shared"), "cgnet", input_size=SIZE, include=["layer2.0.downsample.0.channels"]
    ).network
    assert "layer1.1.branches" not in taken.sites


def test_networks_whose_last_batchnorm_has_no_statistics_are_refused() -> None:
    model = resnet.ResNet(
        resnet.Bottleneck,
        [2, 2, 1, 1],
        num_classes=5,
        groups=4,
        width_per_group=4,
        norm_layer=lambda width: nn.BatchNorm2d(width, track_running_stats=False),
    )
    with pytest.raises(ArchitectureError, match="gateconnect found nothing to gate"):
        gatecli.attach(model.eval(), "gateconnect", input_size=(64, 64))


def test_evaluation_computes_what_the_graph_means(kind: str) -> None:
    """With gradients, the graph's own operations run.

    Without, products over several branches, and streams that are shared.
    """
    for fan_in in (1, 2, 3):
        network = attached(kind, fan_in=fan_in, connectivity="random")
        for each in (network, gatecli.prune(network).network):
            for count in (1, 3):
                expected = compile_graph(each.graph)(each, images(count))
                assert relative_change(expected.detach(), infer(each, images(count))) <= LIMIT
                assert relative_change(expected.detach(), each(images(count)).detach()) <= LIMIT
            assert any(str(name).startswith("_lowered") for name, _ in each.named_modules())


def test_what_evaluation_multiplies_is_what_is_counted(kind: str) -> None:
    """Counted in a run.

    Shared weights' extra row for the shift and what is left of the stem's formula aside.
    """
    for fan_in in (1, 2):
        network = attached(kind, fan_in=fan_in, connectivity="random")
        for each in (network, gatecli.prune(network).network):
            with counted() as macs:
                infer(each, images(1))
            assert macs.total == pytest.approx(each.macs_dense, rel=0.12)
