"""Early exits: where they stand, who leaves, what that saves, how they are trained, calibrated and
pruned.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import SIDE, call, contents, refused, run, same, save_npz, save_source
from networks import CASES, infer, lively, traced
from torch import Tensor, nn

import gatecli
from gatecli.architectures.build import build, build_skeleton
from gatecli.calibration.exits.gather import gather
from gatecli.calibration.exits.samples import Samples, measure
from gatecli.errors import CheckpointError, SettingError, TrainingError
from gatecli.gates.estimators import log_odds_of_likeliest
from gatecli.graph.trace import compile_graph
from gatecli.methods.dgate import DGate, hinge
from gatecli.network import Network
from gatecli.network.compare import relative_change
from gatecli.network.costs import exits_before, expected_macs, leaving_costs, reach
from gatecli.progress import silent
from gatecli.stages.predict import predict
from gatecli.traced.recipe import Recipe
from gatecli.training.exits import ExitLoop
from gatecli.training.features import Seen

LIMIT = 1e-5


# --- where ---

STAGES = {
    "resnet50": [(256, 16), (512, 8), (1024, 4)],
    "densenet121": [(256, 16), (512, 8), (1024, 4)],
    "mobilenet_v2": [(24, 16), (32, 8), (96, 4)],
    "efficientnet_b0": [(24, 16), (40, 8), (112, 4)],
    "convnext_tiny": [(96, 16), (192, 8), (384, 4)],
    "regnet_y_400mf": [(48, 16), (104, 8), (208, 4)],
    "vgg11": [(64, 64), (128, 32), (256, 16), (512, 8)],
    "googlenet": [(192, 16), (480, 8), (832, 4)],
    "squeezenet1_1": [(128, 15), (256, 7)],
}


@pytest.mark.parametrize("name", STAGES)
def test_exits_stand_at_the_ends_of_stages(name: str) -> None:
    network = traced(build_skeleton(f"torchvision:{name}", {}), (64, 64))
    exits = [site for site in network.sites.values() if site.kind == "exit"]
    assert [site.name for site in exits] == [f"exit{number}" for number in range(1, len(exits) + 1)]
    shapes = [network.costs[site.entry].shape for site in exits]
    assert [(shape[1], shape[2]) for shape in shapes if shape is not None] == STAGES[name]
    assert sorted((site.macs for site in exits), reverse=True) == [site.macs for site in exits]


def test_exits_after_sites_that_the_user_names() -> None:
    network = CASES["tokens"].network()
    assert not any(
        site.kind == "exit" for site in network.sites.values()
    )  # one size from beginning to end
    first, second, *_ = network.sites
    gated = gatecli.attach(network, "dgate", after=f"{second}").network
    assert list(gated.site_exits) == ["exit1"] and gated.sites["exit1"].channels == 16
    assert (
        relative_change(
            infer(network, CASES["tokens"].images(2)), infer(gated, CASES["tokens"].images(2))
        )
        <= LIMIT
    )
    with pytest.raises(
        SettingError,
        match=r"expected setting `after` to name sites .*but got `nowhere`; there are: ",
    ):
        gatecli.attach(network, "dgate", after="nowhere")
    with pytest.raises(gatecli.GatecliError, match=r"dgate found nothing to gate .*after=SITE"):
        gatecli.attach(network, "dgate")
    with pytest.raises(SettingError, match="exits already"):
        gatecli.attach(gated, "dgate", after=f"{first}")


def test_exits_after_any_module_where_there_are_no_blocks() -> None:
    source = build_skeleton("torchvision:vgg11_bn", {"num_classes": 7}).to_empty(device="cpu")
    for tensor in (*source.parameters(), *source.buffers()):
        tensor.data.zero_()
    network = traced(source, (64, 64))
    gated = gatecli.attach(network, "dgate", after="features.13,features.5").network
    assert [gated.sites[site].channels for site in gated.site_exits] == [128, 256]
    with pytest.raises(SettingError, match=r"but got `classifier.0`; there are: features.0, "):
        gatecli.attach(network, "dgate", after="classifier.0")


def test_an_exit_before_anything_with_weights_is_refused() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.conv, self.fc = (
                nn.AvgPool2d(2),
                nn.Conv2d(3, 8, 3, padding=1),
                nn.Linear(8, 4),
            )

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(self.conv(self.pool(x)).mean((2, 3)))
            return out

    network = traced(Pooled(), (16, 16))
    with pytest.raises(SettingError, match="nothing has been computed at `pool`"):
        gatecli.attach(network, "dgate", after="pool")
    assert list(gatecli.attach(network, "dgate", after="conv").network.site_exits) == ["exit1"]


def test_a_file_knows_where_its_exits_stand(tmp_path: Path) -> None:
    case = CASES["cifar-projection"]
    network = gatecli.attach(
        case.build(),
        "dgate",
        input_size=case.size,
        arch="cifar:resnet20",
        after="layer1.1,layer2.0,layer3.0,layer3.1",
    ).network
    with torch.no_grad():
        for exit_ in network.site_exits.values():
            nn.init.normal_(exit_.get_submodule("linear").weight)  # type: ignore[arg-type]
            exit_.threshold.fill_(1.0)
    gatecli.write(network, tmp_path / "n.safetensors")
    loaded = gatecli.load(tmp_path / "n.safetensors")
    assert loaded.sites == network.sites and torch.equal(
        infer(loaded, case.images(4)), infer(network, case.images(4))
    )


class Shrinking(nn.Module):
    """Two residual blocks at 8 x 8, one at 4 x 4, and plain layers at 2 x 2 behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.down, self.last = nn.Conv2d(3, 3, 2, 2), nn.Conv2d(3, 3, 2, 2)
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x + self.first(x).relu())
        x = self.last(x + self.second(x).relu())
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


@pytest.mark.parametrize(("rules", "exits"), [(1, ["exit1"]), (2, ["exit1", "exit2"])])
def test_exits_stand_where_they_stood_when_the_file_was_written(
    rules: int, exits: list[str]
) -> None:
    plain = gatecli.attach(Shrinking(), "dgate", input_size=(8, 8)).network.recipe
    facts = json.loads(plain.to_json())
    assert facts["rules"] == 4
    facts["rules"] = rules
    if rules == 1:  # as the first release wrote it
        del facts["rules"]
    recipe = Recipe.from_json(json.dumps(facts), "net")
    network = Network(Shrinking().eval(), recipe)
    sites = [name for name, site in network.sites.items() if site.kind == "exit"]
    assert sites == exits
    again = Recipe.from_json(network.copy().recipe.to_json(), "net")
    assert again.rules == network.traced.rules == network.copy().traced.rules == rules


@pytest.mark.parametrize("rules", [5, 0, "2", True])
def test_rules_that_are_not_known_are_refused(rules: Any) -> None:
    facts = json.loads(CASES["dense"].network().recipe.to_json()) | {"rules": rules}
    expected = "rules version 5.*upgrade" if rules == 5 else "damaged"
    with pytest.raises(CheckpointError, match=expected):
        Recipe.from_json(json.dumps(facts), "net")


# --- who leaves ---


@pytest.fixture(
    scope="module", params=["cifar-projection", "bottleneck", "dense", "own-gray-oblong"]
)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def stacked(name: str) -> Network:
    """Exits with random weights, and layer gates beside them."""
    torch.manual_seed(0)
    network = gatecli.attach(
        gatecli.attach(CASES[name].network(), "dgate").network, "aig-perbatch"
    ).network
    for exit_ in network.site_exits.values():
        nn.init.normal_(exit_.get_submodule("linear").weight)  # type: ignore[arg-type]
    return network


def draw(network: Network, count: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        site: torch.randint(0, 2, (count, 1), generator=generator).float()
        for site in network.gated_by
    }


def test_nobody_leaves_at_first(name: str, stacked: Network) -> None:
    x = CASES[name].images(5)
    found, taken = stacked(x, return_exits=True)
    assert (
        relative_change(infer(CASES[name].build(), x), found.detach()) <= LIMIT
        and taken.tolist() == [len(stacked.site_exits)] * 5
    )
    assert stacked.params > CASES[name].network().params


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_leaving_means_what_the_graph_means(
    name: str, stacked: Network, count: int, seed: int
) -> None:
    x, decisions = CASES[name].images(count), draw(stacked, count, seed)
    with gatecli.force(stacked, decisions), torch.no_grad():
        wanted = compile_graph(stacked.graph)(stacked, x)
        found, taken = stacked(x, return_exits=True)
        layout = stacked(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layout, wanted, rtol=1e-4, atol=1e-4)
    exits = [decisions[site].reshape(-1).tolist() for site in stacked.site_exits]
    assert taken.tolist() == [
        next((e for e, z in enumerate(exits) if z[i]), len(exits)) for i in range(count)
    ]
    assert all(gate.rows is None for gate in stacked.site_gates.values())


def test_what_lies_behind_is_computed_only_for_those_who_stay() -> None:
    network = gatecli.attach(CASES["cifar-projection"].network(), "dgate").network
    seen: list[int] = []
    network.get_submodule("layer3.2.conv2").register_forward_hook(
        lambda m, args, out: seen.append(len(args[0]))
    )
    network.get_submodule("layer2.2.conv2").register_forward_hook(
        lambda m, args, out: seen.append(len(args[0]))
    )
    x = CASES["cifar-projection"].images(4)
    for first, second, calls in (
        ([0, 0, 0, 0], [0, 0, 0, 0], [4, 4]),
        ([1, 0, 0, 0], [0, 1, 0, 0], [3, 2]),
        ([1, 1, 0, 0], [1, 1, 1, 1], [2]),
        ([1, 1, 1, 1], [0, 0, 0, 0], []),
    ):
        seen.clear()
        with gatecli.force(
            network,
            {
                "exit1": torch.tensor(first)[:, None].float(),
                "exit2": torch.tensor(second)[:, None].float(),
            },
        ):
            infer(network, x)
        assert seen == calls


def test_rates_are_shares_of_all_and_macs_add_up(name: str, stacked: Network) -> None:
    """Against each image's own cost.

    Everything up to where it leaves, less the branches that were closed on the way.
    """
    count, decisions = 11, draw(stacked, 11, 5)
    with gatecli.force(stacked, decisions):
        seen = predict(stacked, [(CASES[name].images(count), torch.zeros(count))])
        _, taken = stacked(CASES[name].images(count), return_exits=True)
    layers = {site: z for site, z in decisions.items() if site not in stacked.site_exits}
    costs = leaving_costs(stacked, layers).gather(1, taken[:, None]).mean().item()
    assert expected_macs(stacked, seen.rates, seen.busy) == pytest.approx(costs)
    exits = list(stacked.site_exits)
    for number, site in enumerate(exits):
        assert seen.rates[site] == [pytest.approx((taken == number).double().mean().item())]
    for site, z in layers.items():
        before = exits_before(stacked.traced, site)
        here = torch.tensor(
            [not any(taken[i] == exits.index(each) for each in before) for i in range(count)]
        )
        assert seen.rates[site] == [pytest.approx((z.reshape(-1) * here).double().mean().item())]
        assert reach(stacked, site, seen.rates) == pytest.approx(here.double().mean().item())


def test_nan_scores_never_leave() -> None:
    exit_ = DGate("exit1", 4, (2, 3), 3).eval()
    exit_.threshold.fill_(-1e30)
    assert exit_(torch.full((2, 4, 3, 3), torch.nan))[1].tolist() == [[0.0], [0.0]]
    assert exit_(torch.zeros(2, 4, 3, 3))[1].tolist() == [[1.0], [1.0]]


# --- training ---


@pytest.mark.parametrize(("over_classes", "count"), [("sum", 5), ("mean", 20)])
def test_hinge_against_a_loop(over_classes: str, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    margins, labels = torch.randn(5, 4, generator=generator) * 2, torch.tensor([0, 3, 1, 1, 2])
    wanted = (
        sum(
            max(0.0, 1 - (1 if k == labels[i] else -1) * margins[i, k].item())
            for i in range(5)
            for k in range(4)
        )
        / count
    )
    assert hinge(margins, labels, over_classes).item() == pytest.approx(wanted)
    free = margins.clone().requires_grad_()
    hinge(free, labels, over_classes).backward()  # type: ignore[no-untyped-call]
    for i in range(5):
        for k in range(4):
            sign = 1 if k == labels[i] else -1
            assert free.grad is not None and free.grad[i, k].item() == pytest.approx(
                -sign / count if sign * margins[i, k] < 1 else 0.0
            )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_source(tmp_path / "r20.pt")
    save_npz(tmp_path / "data.npz", val=80)
    return tmp_path


TUNE = ["--data", "npz:data.npz", "--batch-size", 32, "--lr", 0.3, "--schedule", "cosine"]


OLD = [
    "--set",
    "pool=1",
    "--set",
    "standardise=no",
    "--set",
    "over_classes=mean",
    "--set",
    "decay_bias=yes",
]


def attach(*more: object) -> dict[str, Any]:
    return call("attach", "r20.pt", "--method", "dgate", "--input-size", SIDE, *more)


def test_the_network_stays_to_the_bit_and_each_exit_is_trained_alone(here: Path) -> None:
    attach()
    both = call("finetune", *TUNE, "--epochs", 3, "--cache-features")
    before, after = contents("r20.dgate.safetensors")[0], contents(both["out"])[0]
    assert all(
        torch.equal(after[name], before[name])
        == (not name.endswith(("linear.weight", "linear.bias")))
        for name in before
    )
    attach("--include", "exit2", "--out", "one.safetensors")
    call("finetune", *TUNE, "--epochs", 3, "--cache-features", "--out", "alone.safetensors")
    assert torch.equal(
        contents("alone.safetensors")[0]["exits.exit2.linear.weight"],
        after["exits.exit2.linear.weight"],
    )
    assert (
        both["top1"] == both["baseline_top1"]
        and both["rates"] == {"exit1": 0.0, "exit2": 0.0}
        and both["target_rate"] is None
    )
    assert (
        set(both["history"][0]["exits"]) == {"exit1", "exit2"}
        # it starts at 1 a class and exit
        and both["history"][-1]["train_loss"] < both["history"][0]["train_loss"] < 20
    )


def test_a_cache_changes_nothing_but_the_time(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attach()
    passes: list[int] = []
    seen = ExitLoop._seen

    def counted(self: ExitLoop, x: Tensor, y: Tensor) -> Seen:
        passes.append(len(x))
        return seen(self, x, y)

    monkeypatch.setattr(ExitLoop, "_seen", counted)
    call("finetune", *TUNE, "--epochs", 2, "--augment", "none", "--out", "slow.safetensors")
    slow = sum(passes)
    passes.clear()
    call(
        "finetune",
        "r20.dgate.safetensors",
        *TUNE,
        "--epochs",
        2,
        "--cache-features",
        "--out",
        "fast.safetensors",
    )
    assert sum(passes) == 96 + 80 and slow == 96 + 2 * (96 + 80)  # once more for the statistics
    one, other = contents("slow.safetensors")[0], contents("fast.safetensors")[0]
    for name in one:
        torch.testing.assert_close(one[name], other[name])


@pytest.mark.parametrize("cached", [True, False])
def test_a_stopped_run_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    attach()
    line = [
        "finetune",
        "r20.dgate.safetensors",
        *TUNE,
        "--epochs",
        3,
        "--save-every",
        0,
        *(["--cache-features"] if cached else []),
    ]
    call(*line, "--out", "straight.safetensors")
    fit, steps = ExitLoop._fit, [0]

    def crash(self: ExitLoop, *args: Any) -> None:
        steps[0] += 1
        if steps[0] == 6:
            raise KeyboardInterrupt
        fit(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ExitLoop, "_fit", crash)
        assert run(*line).code == 130
    resumed = call("finetune", "--resume")
    assert same(resumed["out"], "straight.safetensors")


# --- calibrating ---


@pytest.fixture
def trained(here: Path) -> Path:
    """Exits trained as in older files: with today's defaults they are right about all of this."""
    attach(*OLD)
    call("finetune", *TUNE, "--epochs", 20, "--cache-features", "--out", "trained.safetensors")
    return here


def test_what_calibrate_promises_is_what_the_network_does(trained: Path) -> None:
    for asked in (
        ["--target-acc", 12],
        ["--max-drop", 2],
        ["--max-gmacs", 0.0018],
        ["--target-acc", 20],
    ):
        done = run("calibrate", "trained.safetensors", *asked, "--out", "c.safetensors", "--force")
        if done.code:
            assert "out of reach" in done.last
            continue
        found = call(
            "calibrate", "trained.safetensors", *asked, "--out", "c.safetensors", "--force"
        )
        measured = call("eval", "c.safetensors", "--split", "val")
        assert measured["top1"] == pytest.approx(found["top1"]) and measured[
            "macs_expected"
        ] == pytest.approx(found["macs_expected"])
        assert [measured["rates"][site] for site in found["thresholds"]] == pytest.approx(
            found["shares"][:-1]
        )
        front = [(point["macs"], point["top1"]) for point in found["frontier"]]
        assert front == sorted(front) and all(a[1] < b[1] for a, b in itertools.pairwise(front))
        assert found["target_top1"] is None or found["top1"] >= found["target_top1"] - 1e-9
        assert asked[0] != "--max-gmacs" or found["macs_expected"] <= 0.0018e9
    assert gatecli.load("c.safetensors").recipe.steps[-1].op == "calibrate"


def test_moving_along_the_frontier_needs_no_data(trained: Path) -> None:
    found = call("calibrate", "trained.safetensors", "--target-acc", 5, "--out", "c.safetensors")
    middle = found["frontier"][len(found["frontier"]) // 2]
    (trained / "data.npz").unlink()
    again = call("calibrate", "c.safetensors", "--reuse", "--target-acc", middle["top1"])
    assert (
        again["out"] == "c.calibrated.safetensors"
        and again["macs_expected"] == middle["macs"]
        and again["thresholds"] == middle["thresholds"]
    )
    third = call("calibrate", "--reuse", "--max-gmacs", middle["macs"] / 1e9)
    assert third["top1"] == middle["top1"]
    network = gatecli.load("c.safetensors")
    point = network.set_operating_point(max_gmacs=middle["macs"] / 1e9)
    limits = {site: exit_.threshold.item() for site, exit_ in network.site_exits.items()}
    assert limits == pytest.approx(point["thresholds"]) and point["top1"] == middle["top1"]
    refused(
        "calibrate c.safetensors --reuse --target-acc 99.99 --out x.safetensors",
        "no recorded point reaches 99.99",
    )
    refused(
        "calibrate c.safetensors --reuse --max-gmacs 1e-9 --out x.safetensors",
        "no recorded point costs at most",
    )
    refused(
        "calibrate c.safetensors --reuse --max-drop 1 --out x.safetensors",
        "--target-acc, --max-gmacs or --max-ms alone",
    )
    refused(
        "calibrate c.safetensors --reuse --max-ms 1 --out x.safetensors", "holds no milliseconds"
    )
    refused(
        "calibrate trained.safetensors --reuse --target-acc 5 --out x.safetensors",
        "no frontier is recorded",
    )


def test_milliseconds_as_the_price(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, data = gatecli.load("trained.safetensors"), gatecli.load_data("npz:data.npz")
    clock = iter(
        itertools.cycle([3.0, 5.0, 4.0])
    )  # a disturbed clock: to leave nowhere cannot be quicker than at the last exit
    monkeypatch.setattr(
        "gatecli.calibration.exits.latency.milliseconds",
        lambda module, image: [float(image.shape[0]), module(image) * 0, next(clock)][2],
    )
    seen, _ = gather(network, data, 256, 0, silent)
    found = gatecli.calibrate_exits(network, data, max_ms=4.5, cost="latency")
    assert found.times == [3.0, 5.0, 5.0]
    limits = [
        [-math.inf, *sorted(set(column.tolist())), math.inf] for column in seen.margins.unbind(1)
    ]
    every = [
        measure(Samples.of(seen.margins, seen.correct, torch.tensor(found.times)), pair)
        for pair in itertools.product(*limits)
    ]
    assert found.point.top1 == max(point.top1 for point in every if point.cost <= 4.5)
    assert found.point.cost == pytest.approx(
        measure(seen, found.point.thresholds).cost
    )  # MACs, as everywhere
    assert all(0 < point.cost <= network.macs_dense for point in found.frontier)


def test_latency_is_measured_kept_and_reused(trained: Path) -> None:
    found = call(
        "calibrate",
        "trained.safetensors",
        "--target-acc",
        5,
        "--cost",
        "latency",
        "--out",
        "c.safetensors",
    )
    assert (
        len(found["leaving_ms"]) == 3
        and found["leaving_ms"] == sorted(found["leaving_ms"])
        and found["leaving_ms"][0] > 0
    )
    for point in found["frontier"]:
        assert point["ms"] == pytest.approx(
            sum(share * ms for share, ms in zip(point["shares"], found["leaving_ms"], strict=True))
        )
    middle = found["frontier"][len(found["frontier"]) // 2]
    again = call("calibrate", "c.safetensors", "--reuse", "--max-ms", middle["ms"])
    assert again["ms"] == middle["ms"] and again["top1"] == middle["top1"]
    done = run(
        "calibrate",
        "trained.safetensors",
        "--target-acc",
        5,
        "--cost",
        "latency",
        "--out",
        "d.safetensors",
    )
    assert (
        "of single images, on this machine" in " ".join(done.out.split()) and " ms of " in done.err
    )


def test_the_library_has_both(here: Path) -> None:
    attach()
    network, data = gatecli.load("r20.dgate.safetensors"), gatecli.load_data("npz:data.npz")
    gatecli.fit(network, data)
    with pytest.raises(SettingError, match="calibrate_exits"):
        gatecli.calibrate(network, data, target_acc=5)
    with torch.no_grad():
        for exit_ in network.site_exits.values():
            nn.init.normal_(exit_.get_submodule("linear").weight)  # type: ignore[arg-type]
    found = gatecli.calibrate_exits(network, data, max_drop=100)
    assert found.point == found.frontier[0] and found.target_top1 == 0 and found.gap == 0


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_drop_is_counted_from_the_source_or_from_nobody_leaving(
    trained: Path, elsewhere: bool
) -> None:
    network, data = gatecli.load("trained.safetensors"), gatecli.load_data("npz:data.npz")
    gatecli.fit(network, data)
    spec = "npz:other.npz" if elsewhere else data.spec
    source = {"top1": 90.0, "split": "val", "data": spec, "images": network.input.key()}
    network.recipe = replace(network.recipe, baseline=source)
    gatecli.write(network, "known.safetensors")
    if elsewhere:
        found = call("calibrate", "known.safetensors", "--max-drop", 1)
        stay = found["baseline_top1"]
        assert found["counted_from"] == {"top1": stay, "of": "nobody leaving early"}
        assert found["target_top1"] == stay - 1
        return
    done = run("calibrate", "known.safetensors", "--max-drop", 88, "--out", "c.safetensors")
    assert "(2.00 asked, counted from 90.00 of the source)" in done.err
    step = gatecli.load("c.safetensors").recipe.steps[-1]
    assert step.results["counted_from"] == {"top1": 90.0, "of": "the source"}
    refused(
        "calibrate known.safetensors --max-drop 1", "89.00 (--max-drop 1 below 90.00, of the source"
    )


def test_val_may_lack_a_class_and_calibrate_may_come_twice(trained: Path) -> None:
    arrays = dict(np.load("data.npz"))
    kept = arrays["val_labels"].reshape(-1) != 3
    np.savez(
        "less.npz",
        **{
            **arrays,
            "val_images": arrays["val_images"][kept],
            "val_labels": arrays["val_labels"][kept],
        },
    )
    first = call(
        "calibrate",
        "trained.safetensors",
        "--data",
        "npz:less.npz",
        "--target-acc",
        5,
        "--out",
        "a.safetensors",
    )
    second = call(
        "calibrate",
        "a.safetensors",
        "--data",
        "npz:less.npz",
        "--target-acc",
        5,
        "--out",
        "b.safetensors",
    )
    assert (
        second["thresholds"] == first["thresholds"]
        and second["frontier"] == first["frontier"]
        and second["top1"] >= 5
    )


def test_confidence_costs(trained: Path) -> None:
    done = run(
        "calibrate",
        "trained.safetensors",
        "--target-acc",
        3,
        "--confidence",
        0.9,
        "--out",
        "c.safetensors",
    )
    assert (
        done.code == 0
        and "certified: top-1 of at least 3.00 on unseen data with probability 0.9" in done.err
    )
    refused(
        "calibrate trained.safetensors --target-acc 99 --confidence 0.9 --out x.safetensors",
        "no thresholds can be certified to reach 99 percent",
    )
    refused(
        "calibrate trained.safetensors --max-gmacs 1 --confidence 0.9 --out x.safetensors",
        "--confidence is about an accuracy",
    )


def test_bad_calibrations(here: Path) -> None:
    attach()
    untrained = "calibrate r20.dgate.safetensors --data npz:data.npz --out x.safetensors"
    refused(f"{untrained} --target-acc 10", "have not been trained yet")
    refused(
        untrained,
        "expected one of --target-acc, --max-drop, --max-gmacs, --max-ms, --thresholds, but got"
        " none",
    )
    refused(f"{untrained} --max-ms 5", "add --cost latency")
    refused(f"{untrained} --max-gmacs 1 --cost latency", "expected --max-ms")
    refused(f"{untrained} --target-acc 10 --cost joules", "one of macs, latency, but got `joules`")
    refused(f"{untrained} --target-acc 10 --max-drop 1", "expected one of")
    refused(f"{untrained} --target-acc 101", "between 0 and 100")
    refused(f"{untrained} --target-acc .947", "in percent, but got 0.947: was 94.7 meant?")
    refused(f"{untrained} --max-drop nan", "--max-drop to be between 0 and 100")
    refused(
        "finetune r20.dgate.safetensors --data npz:data.npz --max-drop 1",
        "exits are set to an accuracy or a cost with gatecli calibrate",
    )
    refused(
        "finetune r20.dgate.safetensors --data npz:data.npz --cache-features --augment shift",
        "goes without augmentation",
    )
    call("attach", "r20.pt", "--method", "ind-perbatch", "--input-size", SIDE)
    refused(
        "finetune r20.ind-perbatch.safetensors --data npz:data.npz --cache-features",
        "--cache-features is for exits",
    )
    refused(
        "calibrate r20.ind-perbatch.safetensors --data npz:data.npz --max-gmacs 1 --reuse",
        "are for exits",
    )
    with pytest.raises(TrainingError, match="no exits"):
        from gatecli.calibration.exits.calibrate import calibrate_exits
        from gatecli.data import load_data

        calibrate_exits(
            gatecli.load("r20.ind-perbatch.safetensors"), load_data("npz:data.npz"), target_acc=5
        )


# --- pruning, profiling ---


def test_prune_takes_out_exits_that_nobody_takes_and_what_nobody_comes_to() -> None:
    case = CASES["bottleneck"]
    torch.manual_seed(1)
    network = gatecli.attach(
        gatecli.attach(case.network(), "dgate").network, "ind-perbatch"
    ).network
    for exit_ in network.site_exits.values():
        nn.init.normal_(exit_.get_submodule("linear").weight)  # type: ignore[arg-type]
    network.site_exits["exit2"].threshold.fill_(-1e30)
    x = case.images(5)
    rates = {site: [1.0] for site in network.gated_by} | {
        "exit1": [0.0],
        "exit2": [1.0],
        "exit3": [0.0],
    }
    result = gatecli.prune(network, rates=rates)
    assert relative_change(infer(network, x), infer(result.network, x)) <= LIMIT
    assert (
        "exit1" in result.removed
        and list(result.network.site_exits) == []
        and not result.network.gated_by
    )
    assert not any(
        name.startswith(("layer3", "layer4", "fc", "exits.exit1", "exits.exit3"))
        for name in result.network.state_dict()
    )
    assert (
        result.network.num_classes == network.num_classes
        and result.network.macs_dense < network.macs_dense / 1.2
    )
    network.site_exits["exit2"].threshold.fill_(math.inf)
    network.site_exits["exit3"].threshold.fill_(0.5)
    kept = gatecli.prune(network, rates=rates | {"exit2": [0.0], "exit3": [0.4]})
    assert kept.kept_dynamic == ["exit3"] and list(kept.network.site_exits) == ["exit3"]
    assert relative_change(infer(network, x), infer(kept.network, x)) <= LIMIT
    with pytest.raises(SettingError, match="how many leave at `exit3`"):
        gatecli.prune(network)


def test_prune_refuses_a_rate_that_an_exit_cannot_have() -> None:
    network = gatecli.attach(CASES["bottleneck"].network(), "dgate").network
    rates = {site: [0.0] for site in network.site_exits}
    network.site_exits["exit1"].threshold.fill_(math.inf)
    with pytest.raises(SettingError, match=r"the exit at `exit1`, where nobody .* but got 1: "):
        gatecli.prune(network, rates=rates | {"exit1": [1.0]})
    assert gatecli.prune(network, rates=rates).removed == list(rates)


def test_what_lies_behind_an_exit_that_all_take_keeps_no_layer() -> None:
    """Here the next layer would pad the first one's constant, but nobody comes to it."""
    case = CASES["plaindense"]
    network = gatecli.attach(case.network(), "ind-perbatch").network
    gated = gatecli.attach(network, "dgate", after="convs.0").network
    perturb_exits(gated)
    gated.site_exits["exit1"].threshold.fill_(-1e30)
    gate: Any = gated.site_gates["convs.0"]
    with torch.no_grad():
        gate.logits.copy_(torch.tensor([[9.0, -9.0]]))
    result = gatecli.prune(gated, rates={"exit1": [1.0]})
    assert (result.removed, result.stuck) == (["convs.0"], {})
    x = case.images(6)
    assert relative_change(infer(gated, x), infer(result.network, x)) <= LIMIT


def test_the_road_with_exits_on_a_pruned_network(here: Path) -> None:
    call("attach", "r20.pt", "--method", "ind-perbatch", "--input-size", SIDE)
    call(
        "finetune",
        "--data",
        "npz:data.npz",
        "--epochs",
        1,
        "--batch-size",
        32,
        "--lr",
        0.05,
        "--set",
        "gate_lr=20",
        "--set",
        "loss_weight=9",
        "--set",
        "target_rate=.3",
        "--bn-batches",
        0,
    )
    pruned = call("prune")
    stacked = call("attach", "--method", "dgate")
    assert (
        stacked["gates"] == 2
        and stacked["max_logit_change"] <= LIMIT
        and stacked["params"] > pruned["params"]
    )
    call("finetune", *TUNE, "--epochs", 10, "--cache-features")
    calibrated = call("calibrate", "--target-acc", 0)
    assert calibrated["macs_expected"] == pytest.approx(
        min(point["macs"] for point in calibrated["frontier"])
    )
    for data in ([], ["--data", "npz:data.npz"]):
        profiled = call("profile", "--batch", "1,4", "--repeats", 3, *data)
        assert (
            profiled["rows"][1]["macs_expected"] == pytest.approx(calibrated["macs_expected"])
            and profiled["rows"][1]["ideal_speedup"] > 1
        )
    final = call("prune", "--data", "npz:data.npz")
    assert final["params"] < stacked["params"] and final["max_logit_change"] <= LIMIT
    sites = {site["name"]: site for site in call("inspect")["sites"]}
    assert all(site["kind"] in ("block", "filter", "exit", "conv") for site in sites.values())


def test_a_checkpoint_keeps_infinite_thresholds(here: Path) -> None:
    attach()
    loaded = gatecli.load("r20.dgate.safetensors")
    assert all(math.isinf(exit_.threshold.item()) for exit_ in loaded.site_exits.values())
    x = torch.randn(2, 3, SIDE, SIDE)
    assert torch.equal(infer(loaded, x), infer(gatecli.load("r20.pt", input_size=(SIDE, SIDE)), x))


def test_cross_entropy_for_comparison(here: Path) -> None:
    attach("--set", "loss=cross-entropy")
    found = call("finetune", *TUNE, "--epochs", 5, "--cache-features")
    limits = call("calibrate", "--target-acc", 1)["thresholds"].values()
    assert found["history"][-1]["exits"]["exit2"] > 10 and all(
        value is None or value <= 1 for value in limits
    )


def test_exits_in_a_dense_block_lose_the_channels_that_go() -> None:
    torch.manual_seed(2)
    network = traced(lively(CASES["dense"].make(), CASES["dense"].images(8)), (8, 12))
    gated = gatecli.attach(gatecli.attach(network, "dgate").network, "ind-perbatch").network
    exit_ = gated.site_exits["exit1"]
    nn.init.normal_(exit_.get_submodule("linear").weight)  # type: ignore[arg-type]
    exit_.threshold.fill_(0.0)
    first = next(site for site, place in gated.sites.items() if place.kind == "layer")
    gate: Any = gated.site_gates[first]
    with torch.no_grad():
        gate.logits.copy_(torch.tensor([[9.0, -9.0]]))
    result = gatecli.prune(gated, rates={"exit1": [0.5]})
    x = CASES["dense"].images(6)
    assert (
        result.removed == [first]
        and relative_change(infer(gated, x), infer(result.network, x)) <= LIMIT
    )


@pytest.mark.parametrize("leave", [0.5, 1.0])
@pytest.mark.parametrize("after", [None, "first.1", "first.1,second.0"])
@pytest.mark.parametrize(("method", "settings"), [("dgate", {}), ("early-exit", {"width": 4})])
def test_what_is_left_of_an_exit_loses_the_channels_that_go(
    method: str, settings: dict[str, Any], after: str | None, leave: float, tmp_path: Path
) -> None:
    """Where everybody leaves, the exit's classifier reads the concatenation in its place."""
    case = CASES["dense"]
    network = gatecli.attach(
        case.build(), "ind-perbatch", input_size=case.size, arch=case.arch
    ).network
    where = {} if after is None else {"after": after}
    gated = gatecli.attach(network, method, **settings, **where).network
    perturb_exits(gated)
    *earlier, last = gated.site_exits
    gated.site_exits[last].threshold.fill_(-1e30 if leave == 1 else 0.0)
    for site in earlier:
        gated.site_exits[site].threshold.fill_(0.0)
    for site in ("first.0", "first.1"):
        gate: Any = gated.site_gates[site]
        with torch.no_grad():
            gate.logits.copy_(torch.tensor([[9.0, -9.0]]))
    rates = {site: [0.2] for site in earlier} | {last: [leave - 0.2 * len(earlier)]}
    result = gatecli.prune(gated, rates=rates)
    x = case.images(6)
    assert {"first.0", "first.1"} <= set(result.removed) and not result.stuck
    assert (last in result.network.site_exits) == (leave < 1)
    assert relative_change(infer(gated, x), infer(result.network, x)) <= LIMIT
    reader = f"exits.{last}." + ("linear" if method == "dgate" else "classifier.0")
    lost = 0 if after == "first.1,second.0" else 8
    was, now = (each.get_submodule(reader).weight.shape[1] for each in (gated, result.network))  # type: ignore[union-attr]
    cells = 16 if method == "dgate" else 1  # features a channel
    assert now == was - lost * cells
    gatecli.write(result.network, tmp_path / "pruned.safetensors")
    loaded = gatecli.load(tmp_path / "pruned.safetensors", arch=case.arch)
    assert torch.equal(infer(loaded, x), infer(result.network, x))


def perturb_exits(network: Network) -> None:
    """Leave the neutral start, in which linear layers are zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for exit_ in network.site_exits.values():
            for parameter in exit_.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)


def test_a_layer_stays_where_an_exit_would_pad_its_constant(tmp_path: Path) -> None:
    """What a closed layer leaves behind a BatchNorm is no zero, and early-exit pads with zeros."""
    case = CASES["dense"]
    network = gatecli.attach(
        case.build(), "ind-perbatch", input_size=case.size, arch=case.arch
    ).network
    gated = gatecli.attach(network, "early-exit", width=4, after="norm").network
    perturb_exits(gated)
    (exit_,) = gated.site_exits.values()
    exit_.threshold.fill_(-1e30)
    gate: Any = gated.site_gates["first.0"]
    with torch.no_grad():
        gate.logits.copy_(torch.tensor([[9.0, -9.0]]))
    result = gatecli.prune(gated, rates={"exit1": [1.0]})
    x = case.images(6)
    assert result.stuck == {"first.0": "the exit `exit1` reads it and pads it with zeros"}
    assert relative_change(infer(gated, x), infer(result.network, x)) <= LIMIT
    gatecli.write(result.network, tmp_path / "pruned.safetensors")
    loaded = gatecli.load(tmp_path / "pruned.safetensors", arch=case.arch)
    assert torch.equal(infer(loaded, x), infer(result.network, x))


# --- scores, and who took which exit ---


def test_who_took_which_exit_is_not_made_up_in_training() -> None:
    source = CASES["own"].build()
    network = gatecli.attach(source, "dgate", input_size=CASES["own"].size).network
    images = torch.randn(3, CASES["own"].channels, *CASES["own"].size)
    taken = network.eval()(images, return_exits=True)[1]
    assert taken.tolist() == [len(network.site_exits)] * 3
    with pytest.raises(SettingError, match=r"call \.eval"):
        network.train()(images, return_exits=True)
    plain = traced(source, CASES["own"].size).train()
    assert plain(images, return_exits=True)[1].tolist() == [
        0,
        0,
        0,
    ]  # there are none, and nobody took one


def test_log_odds_of_the_likeliest_class() -> None:
    logits = torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    best = logits.softmax(1).amax(1, keepdim=True)
    torch.testing.assert_close(log_odds_of_likeliest(logits), best.log() - (1 - best).log())
    tied = log_odds_of_likeliest(torch.tensor([[2.0, 2.0]]))
    torch.testing.assert_close(tied, torch.zeros(1, 1))


@pytest.mark.parametrize(
    ("method", "settings"), [("dgate", {"loss": "cross-entropy"}), ("early-exit", {"width": 4})]
)
def test_the_surest_images_do_not_tie(method: str, settings: dict[str, Any]) -> None:
    """From about 17 nats on a probability is 1 in float32."""
    network = gatecli.attach(
        CASES["cifar-projection"].build(), method, input_size=(16, 16), **settings
    ).network
    exit_ = next(iter(network.site_exits.values()))
    sure = torch.tensor([[20.0, 0.0, 0.0], [25.0, 0.0, 0.0], [30.0, 0.0, 0.0]])
    if method == "dgate":
        scores = exit_.score(torch.empty(0), sure)
    else:
        pair = torch.stack([torch.zeros(3, 1), sure[:, :1]], -1)
        exit_.scores = lambda x: pair  # type: ignore[method-assign]
        scores = exit_.score(torch.empty(0), sure)
    assert scores.shape == (3, 1) and bool((scores.diff(dim=0) > 4).all())


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("dgate", {"loss": "cross-entropy"}),
        ("early-exit", {"width": 4}),
        ("dgate", {"loss": "hinge"}),
    ],
)
def test_exits_of_older_files_go_by_what_they_went_by(
    method: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """A file without the setting `score` has thresholds that are probabilities, or margins with the
    hinge loss.
    """
    network = gatecli.attach(
        build("cifar:resnet20", {}), method, input_size=(16, 16), arch="cifar:resnet20", **settings
    ).network
    step = network.recipe.steps[-1]
    old = {name: value for name, value in step.settings["settings"].items() if name != "score"}
    network.recipe = replace(
        network.recipe, steps=(replace(step, settings={**step.settings, "settings": old}),)
    )
    gatecli.write(network, tmp_path / "old.safetensors")
    exit_ = next(iter(gatecli.load(tmp_path / "old.safetensors").site_exits.values()))
    hinge = settings.get("loss") == "hinge"
    assert getattr(exit_, "scored") == ("margin" if hinge else "probability")  # noqa: B009
    fresh = next(iter(network.site_exits.values()))
    assert getattr(fresh, "scored") == ("margin" if hinge else "log-odds")  # noqa: B009
