"""early-exit: Gumbel gates and MSDNet classifiers, trained end to end, also with layer gates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commandline import SIDE, call, contents, refused, run, save_npz, save_source
from networks import CASES, infer
from torch import Tensor, nn
from torch.nn import functional as F

import gatecli
from gatecli.errors import SettingError
from gatecli.graph.trace import compile_graph
from gatecli.methods.early_exit import GumbelExit
from gatecli.network import Network
from gatecli.network.compare import relative_change
from gatecli.stages.predict import score_exits

TUNE = ["--data", "npz:data.npz", "--batch-size", 32, "--lr", 0.02, "--bn-batches", 2]


@pytest.fixture(params=["cifar-projection", "dense", "own-gray-oblong"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def network(name: str) -> Network:
    return gatecli.attach(CASES[name].network(), "early-exit", width=8).network


def lively(network: Network) -> Network:
    """Gates that look at the image, and BatchNorm statistics of their own."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for exit_ in network.site_exits.values():
            for parameter in exit_.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return network


# --- the modules ---


def test_the_gate_and_the_classifier_are_the_papers() -> None:
    """By hand, with torch's functions alone: 3x3 to 128, BN, 3x3, BN, 4x4 average, linear.

    And two strided conv-BN-ReLU, 2x2 average, linear.
    """
    torch.manual_seed(0)
    exit_ = GumbelExit("exit1", 24, (8, 12), 10, 128).eval()
    for part in exit_.modules():
        if isinstance(part, nn.BatchNorm2d):
            (
                nn.init.uniform_(part.running_mean),
                nn.init.uniform_(part.running_var, 0.5, 2.0),
                nn.init.normal_(part.weight),
            )  # type: ignore[arg-type]
    nn.init.normal_(exit_.decide.weight)
    s, x = exit_.state_dict(), torch.randn(3, 24, 8, 12)

    def norm(y: Tensor, at: str) -> Tensor:
        return F.batch_norm(
            y, s[f"{at}.running_mean"], s[f"{at}.running_var"], s[f"{at}.weight"], s[f"{at}.bias"]
        )

    y = norm(
        F.conv2d(
            norm(F.conv2d(x, s["gate.0.weight"], padding=1), "gate.1"),
            s["gate.2.weight"],
            padding=1,
        ),
        "gate.3",
    )
    assert s["decide.weight"].shape == (2, 128 * 2 * 3)
    pair = F.linear(F.avg_pool2d(y, 4).flatten(1), s["decide.weight"], s["decide.bias"])
    y = F.relu(norm(F.conv2d(x, s["classifier.0.weight"], stride=2, padding=1), "classifier.1"))
    y = F.relu(norm(F.conv2d(y, s["classifier.3.weight"], stride=2, padding=1), "classifier.4"))
    assert s["classifier.8.weight"].shape == (10, 128 * 1 * 1)  # 8x12 -> 4x6 -> 2x3 -> 1x1
    found, _ = exit_(x)
    torch.testing.assert_close(
        found,
        F.linear(F.avg_pool2d(y, 2).flatten(1), s["classifier.8.weight"], s["classifier.8.bias"]),
    )
    torch.testing.assert_close(exit_.score(x, found).sigmoid(), pair.softmax(1)[:, 1:])
    exit_.scored = "probability"
    torch.testing.assert_close(exit_.score(x, found), pair.softmax(1)[:, 1:])


def test_small_maps_are_pooled_whole() -> None:
    exit_ = GumbelExit("exit1", 3, (2, 1), 4, 8).eval()
    found, z = exit_(torch.randn(5, 3, 2, 1))
    assert found.shape == (5, 4) and z.tolist() == [[0.0]] * 5


def test_attach_changes_nothing_and_nobody_leaves(name: str, network: Network) -> None:
    x = CASES[name].images(5)
    found, taken = network(x, return_exits=True)
    assert (
        relative_change(infer(CASES[name].build(), x), found.detach()) <= 1e-5
        and taken.tolist() == [len(network.site_exits)] * 5
    )
    for strategy in ("stochastic", "always-on"):
        with gatecli.gates.observe.strategy(network, strategy):  # type: ignore[attr-defined]
            assert network(x, return_exits=True)[1].tolist() == [len(network.site_exits)] * 5


# --- training ---


def test_training_gives_each_image_its_own_exit_s_answer() -> None:
    case = CASES["cifar-projection"]
    network = gatecli.attach(case.network(), "early-exit", width=8).network.train()
    torch.manual_seed(1)
    with gatecli.record_gates(network) as record:
        found = network(case.images(6))
    decisions = record.latest()
    assert any(0 < z.sum() < 6 for z in decisions.values()), "a draw that shows nothing"
    with gatecli.force(network, {site: z.detach() for site, z in decisions.items()}):
        torch.testing.assert_close(found, network(case.images(6)), rtol=1e-4, atol=1e-4)


def test_the_gradient_reaches_gates_and_classifiers(network: Network, name: str) -> None:
    lively(network.train())
    with torch.no_grad():
        for exit_ in network.site_exits.values():
            exit_.get_parameter("decide.bias").copy_(torch.tensor([0.0, 0.0]))
    for seed in range(4):
        torch.manual_seed(seed)
        loss = F.cross_entropy(
            network(CASES[name].images(6)), torch.arange(6) % network.num_classes
        )
        loss.backward()  # type: ignore[no-untyped-call]
    for exit_ in network.site_exits.values():
        for part, parameter in exit_.named_parameters():
            assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, part


@pytest.mark.parametrize("count", [1, 5])
def test_evaluation_skips_and_means_what_the_graph_means(
    name: str, network: Network, count: int
) -> None:
    x = CASES[name].images(count)
    lively(network)
    with torch.no_grad():
        values, _ = network.at_exits(x)
        for site, exit_ in network.site_exits.items():
            exit_.threshold.fill_(exit_.score(values[site], torch.empty(0)).median().item())
        found, taken = network(x, return_exits=True)
        torch.testing.assert_close(
            found, compile_graph(network.graph)(network, x), rtol=1e-4, atol=1e-4
        )
    assert int(taken.min()) == 0


def test_what_exits_say_of_all_and_of_those_they_chose(network: Network, name: str) -> None:
    x, y = CASES[name].images(9), torch.arange(9) % network.num_classes
    lively(network)
    for exit_ in network.site_exits.values():
        exit_.threshold.fill_(0.2)
    found = score_exits(network, [(x[:4], y[:4]), (x[4:], y[4:])])
    with torch.no_grad():
        _, taken = network(x, return_exits=True)
        values, _ = network.at_exits(x)
    for number, (site, exit_) in enumerate(network.site_exits.items()):
        right = [
            int(exit_.classify(values[site][i : i + 1]).argmax()) == int(y[i]) for i in range(9)
        ]
        chosen = [right[i] for i in range(9) if int(taken[i]) == number]
        assert found[site].share == pytest.approx(len(chosen) / 9) and found[
            site
        ].top1_all == pytest.approx(100 * sum(right) / 9)
        assert found[site].top1_chosen == (
            pytest.approx(100 * sum(chosen) / len(chosen)) if chosen else None
        )


# --- the road ---


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_source(tmp_path / "r20.pt")
    save_npz(tmp_path / "data.npz", val=80)
    return tmp_path


def test_the_road_alone(here: Path) -> None:
    attached = call(
        "attach", "r20.pt", "--method", "early-exit", "--set", "width=8", "--input-size", SIDE
    )
    assert attached["gates"] == 2 and attached["max_logit_change"] <= 1e-5
    refused("calibrate --data npz:data.npz --target-acc 5", "have not been trained yet")
    tuned = call(
        "finetune",
        *TUNE,
        "--epochs",
        2,
        "--set",
        "target_rate=.4",
        "--set",
        "loss_weight=20",
        "--set",
        "gate_lr=.5",
    )
    assert tuned["target_rate"] == pytest.approx(0.4) and set(tuned["exits"]) == {"exit1", "exit2"}
    assert all(
        torch.isfinite(contents(tuned["out"])[0][f"exits.{site}.threshold"])
        for site in ("exit1", "exit2")
    )
    first, second = (each["share"] for each in tuned["exits"].values())
    assert [tuned["rates"][site] for site in ("exit1", "exit2")] == pytest.approx([first, second])
    of_comers = second / (1 - first)  # the target is one for those that come to an exit
    assert tuned["achieved_rate"] == pytest.approx((first + of_comers) / 2)
    evaluated = call("eval")
    assert evaluated["exits"] == tuned["exits"] and evaluated["top1"] == tuned["top1"]
    assert "top-1 on all images" in run("eval").out
    calibrated = call("calibrate", "--target-acc", 0)
    assert calibrated["macs_expected"] < attached["macs_dense"]
    again = call("calibrate", "--target-acc", 0)
    assert again["thresholds"] == calibrated["thresholds"]
    profiled = call("profile", "--batch", "1", "--repeats", 3)
    assert {site["name"] for site in profiled["sites"] if site["gate_macs"] > 0} == {
        "exit1",
        "exit2",
    }
    pruned = call("prune", "--data", "npz:data.npz")
    assert pruned["max_logit_change"] <= 1e-5 and pruned["params"] < calibrated["params"]


def test_with_layer_gates_at_once(here: Path) -> None:
    call(
        "attach",
        "r20.pt",
        "--method",
        "ind-perbatch",
        "--set",
        "target_rate=.9",
        "--input-size",
        SIDE,
    )
    call("attach", "--method", "early-exit", "--set", "width=8", "--out", "both.safetensors")
    before = contents("both.safetensors")[0]
    tuned = call(
        "finetune",
        "both.safetensors",
        *TUNE,
        "--epochs",
        1,
        "--train",
        "early-exit,ind-perbatch",
        "--out",
        "a.safetensors",
    )
    assert set(tuned["history"][0]["achieved"]) == {"early-exit", "ind-perbatch"} and tuned[
        "target_rate"
    ] == pytest.approx(0.3)
    after = contents("a.safetensors")[0]
    assert not torch.equal(after["gates.layer1.0.logits"], before["gates.layer1.0.logits"])
    alone = call(
        "finetune", "both.safetensors", *TUNE, "--epochs", 1, "--out", "b.safetensors"
    )  # the latest method
    kept = contents(alone["out"])[0]
    assert all(
        torch.equal(kept[name], before[name]) for name in before if name.startswith("gates.")
    )
    assert not torch.equal(kept["exits.exit1.decide.weight"], before["exits.exit1.decide.weight"])
    refused(
        "finetune both.safetensors --data npz:data.npz --train early-exit,dgate --out"
        " c.safetensors",
        "expected --train to name attached methods",
    )
    refused(
        "finetune both.safetensors --data npz:data.npz --train early-exit,early-exit --out"
        " c.safetensors",
        "each once",
    )
    refused(
        "finetune both.safetensors --data npz:data.npz --max-drop 1 --out c.safetensors",
        "layer gates alone",
    )
    call("attach", "r20.pt", "--method", "ind-perbatch", "--out", "i.safetensors")
    call("attach", "i.safetensors", "--method", "dgate", "--out", "d.safetensors")
    refused(
        "finetune d.safetensors --data npz:data.npz --train dgate,ind-perbatch --out c.safetensors",
        "dgate trains its exits alone",
    )


def test_save_and_load_are_exact_and_replay(network: Network, name: str, tmp_path: Path) -> None:
    case = CASES[name]
    network = gatecli.attach(
        case.build(), "early-exit", width=8, input_size=case.size, arch=case.arch
    ).network
    lively(network)
    gatecli.write(network, tmp_path / "n.safetensors")
    loaded = gatecli.load(tmp_path / "n.safetensors", arch=case.arch)
    assert (
        torch.equal(infer(network, case.images(3)), infer(loaded, case.images(3)))
        and loaded.sites == network.sites
    )


def test_what_has_no_maps_is_refused() -> None:
    network = CASES["tokens"].network()
    block = next(iter(network.sites))
    with pytest.raises(SettingError, match="needs maps"):
        gatecli.attach(network, "early-exit", after=block)
