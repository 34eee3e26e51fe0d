"""Decision gates: pooled features, how they are trained, thresholds by hand, classes they know."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import SIDE, call, contents, refused, run, same, save_npz, save_source
from torch import Tensor, nn

import gatecli
from gatecli.architectures.build import build
from gatecli.cli.parsing import parse_thresholds
from gatecli.errors import SettingError
from gatecli.methods.dgate import pool_of
from gatecli.methods.dgate.gate import pooled
from gatecli.network import Network
from gatecli.stages.analyse import analyse
from gatecli.training.exits import ExitLoop
from gatecli.training.standard import NORM, Standard

LIMIT = 1e-5
OLD = {"pool", "over_classes", "standardise", "decay_bias"}  # what older files do not know


def attached(size: tuple[int, int] = (16, 16), **settings: Any) -> Network:
    source = build("cifar:resnet20", {})
    return gatecli.attach(
        source, "dgate", input_size=size, arch="cifar:resnet20", **settings
    ).network


def shake(network: Network) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for exit_ in network.site_exits.values():
            for each in exit_.parameters():
                each.copy_(torch.randn(each.shape, generator=generator))


# --- pooling ---


def slowly(x: Tensor, pool: int) -> Tensor:
    """(N, C, H, W): averages over parts that overlap where the sides do not divide."""
    height, width = x.shape[2:]
    parts = []
    for row in range(pool):
        top, bottom = row * height // pool, -(-(row + 1) * height // pool)
        for column in range(pool):
            left, right = column * width // pool, -(-(column + 1) * width // pool)
            parts.append(x[:, :, top:bottom, left:right].mean((2, 3)))
    return torch.stack(parts, 2).flatten(1)


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (7, 5), (9, 14)])
@pytest.mark.parametrize("pool", [1, 2, 4])
def test_features_are_averages_over_parts_of_the_map(pool: int, size: tuple[int, int]) -> None:
    x = torch.randn(3, 5, *size)
    torch.testing.assert_close(pooled(x, (2, 3), pool), slowly(x, pool))
    torch.testing.assert_close(pooled(x.permute(0, 2, 3, 1), (1, 2), pool), slowly(x, pool))


def test_the_default_is_as_fine_as_the_map_and_the_number_of_features_allow() -> None:
    network = attached()  # maps of 16 and 8
    exits: Any = network.site_exits
    assert [exit_.pool for exit_ in exits.values()] == [4, 4]
    assert [exit_.linear.in_features for exit_ in exits.values()] == [256, 512]
    small: Any = attached((4, 6)).site_exits  # maps of 4x6 and 2x3
    assert [exit_.pool for exit_ in small.values()] == [4, 2]
    wide: Any = gatecli.attach(
        build("torchvision:resnet50", {"num_classes": 3}),
        "dgate",
        input_size=(64, 64),
        arch="torchvision:resnet50",
    ).network.site_exits  # 256, 512 and 1024 channels
    assert [exit_.pool for exit_ in wide.values()] == [4, 2, 2]


def test_what_a_classifier_of_pooled_features_multiplies_is_counted() -> None:
    one, four = attached(pool=1), attached(pool=4)
    classes = one.num_classes
    assert four.macs_dense - one.macs_dense == 15 * (16 + 32) * classes


def test_a_map_that_is_too_small_and_no_map_are_refused() -> None:
    with pytest.raises(SettingError, match=r"but got 4 for `exit2` with 2x3: take 2, none"):
        attached((4, 6), pool=4)
    for wrong in (0, 17, "x"):
        with pytest.raises(SettingError, match="setting `pool`"):
            attached(pool=wrong)


@pytest.mark.parametrize("pool", [None, 1, 2])
def test_tokens_in_maps_are_pooled_as_maps_and_a_line_of_them_is_not(pool: int | None) -> None:
    swin = build("torchvision:swin_t", {"num_classes": 3})
    network = gatecli.attach(
        swin, "dgate", input_size=(64, 64), arch="torchvision:swin_t", pool=pool
    ).network
    exits: Any = network.site_exits
    assert [exit_.pool for exit_ in exits.values()] == [pool or 4, pool or 4, pool or 2][
        : len(exits)
    ]


def test_a_line_of_tokens_has_one_feature_a_channel() -> None:
    site = attached().sites["exit1"]
    assert pool_of(site, [49], None) == pool_of(site, [49], 1) == 1
    with pytest.raises(SettingError, match=r"to be 1 for what is no map.*`exit1`, but got 2"):
        pool_of(site, [49], 2)


@pytest.mark.parametrize("size", [(16, 16), (14, 22)])
@pytest.mark.parametrize("format", ["onnx", "pt2", "weights"])
def test_pooled_exits_are_exported(format: str, size: tuple[int, int], tmp_path: Path) -> None:
    """In sizes that divide and that do not; what is left of an exit that all take, too."""
    network = attached(size, pool=4)
    shake(network)
    for exit_ in network.site_exits.values():
        exit_.threshold.fill_(2.0)
    if format != "weights":  # for static networks
        done = gatecli.export(network, tmp_path / f"net.{format}", format)
        assert done.max_difference <= LIMIT and done.dynamic
    network.site_exits["exit1"].threshold.fill_(math.inf)
    network.site_exits["exit2"].threshold.fill_(-1e30)
    whole = gatecli.prune(network, rates={"exit1": [0.0], "exit2": [1.0]}).network
    assert gatecli.export(whole, tmp_path / f"whole.{format}", format).max_difference <= LIMIT


# --- training ---


def test_a_classifier_says_the_same_of_features_and_of_standardised_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 12, generator=generator) * torch.logspace(-2, 2, 12) + 5
    features[:, 3] = 7.0
    standard = Standard.of(features)
    seen = standard(features)
    torch.testing.assert_close(seen.mean(0), torch.zeros(12), atol=1e-3, rtol=0)
    assert seen[:, 11].std(correction=0).item() == pytest.approx(math.sqrt(NORM / 12), rel=1e-3)
    assert bool((seen[:, 3].abs() < 1e-3).all())
    linear = nn.Linear(12, 4)
    wanted = linear(features)
    standard.unfold(linear)
    held = [each.detach().clone() for each in linear.parameters()]
    torch.testing.assert_close(linear(standard(features)), wanted, rtol=1e-4, atol=1e-3)
    with standard.folded(linear):
        torch.testing.assert_close(linear(features), wanted, rtol=1e-4, atol=1e-3)
    assert all(torch.equal(*pair) for pair in zip(linear.parameters(), held, strict=True))
    alike = Standard.of(torch.full((5, 2), 3.0))
    assert alike(torch.full((1, 2), 3.0)).tolist() == [[0.0, 0.0]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_source(tmp_path / "r20.pt")
    save_npz(tmp_path / "data.npz", val=80)
    call("attach", "r20.pt", "--method", "dgate", "--input-size", SIDE)
    return tmp_path


TUNE = ["--data", "npz:data.npz", "--batch-size", 32, "--cache-features", "--schedule", "cosine"]


def test_val_of_the_file_is_val_of_the_training(here: Path) -> None:
    """What was trained on standardised features is folded, in the best tensors of the run too."""
    done = call("finetune", *TUNE, "--epochs", 3, "--out", "t.safetensors")
    best = max(done["history"], key=lambda row: sum(row["exits"].values()))
    found = call("eval", "t.safetensors", "--split", "val")["exits"]
    for site, top1 in best["exits"].items():
        assert found[site]["top1_all"] == pytest.approx(top1)
    again = call(
        "finetune", "t.safetensors", *TUNE, "--epochs", 1, "--lr", 0, "--out", "u.safetensors"
    )
    for site, top1 in again["history"][0]["exits"].items():
        assert found[site]["top1_all"] == pytest.approx(top1)
    first, second = contents("t.safetensors")[0], contents("u.safetensors")[0]
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("crash_at", [1, 4])
def test_a_second_training_stopped_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    """Before its first step too, when the weights are already those of standardised features."""
    call("finetune", *TUNE, "--epochs", 1, "--out", "t.safetensors")
    line = ["finetune", "t.safetensors", *TUNE, "--epochs", 2, "--save-every", 0]
    call(*line, "--out", "straight.safetensors")
    fit, steps = ExitLoop._fit, [0]

    def crash(self: ExitLoop, *args: Any) -> None:
        steps[0] += 1
        if steps[0] == crash_at:
            raise KeyboardInterrupt
        fit(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ExitLoop, "_fit", crash)
        assert run(*line).code == 130
    assert same(call("finetune", "--resume")["out"], "straight.safetensors")


def test_older_files_mean_and_train_as_they_did(tmp_path: Path) -> None:
    old = {"pool": 1, "over_classes": "mean", "standardise": False, "decay_bias": True}
    network = attached(**old)
    step = network.recipe.steps[-1]
    recorded = step.settings["settings"]
    assert recorded.keys() >= OLD
    without = {name: value for name, value in recorded.items() if name not in OLD}
    stale = replace(step, settings={**step.settings, "settings": without})
    network.recipe = replace(network.recipe, steps=(stale,))
    gatecli.write(network, tmp_path / "old.safetensors")
    exits: Any = gatecli.load(tmp_path / "old.safetensors").site_exits
    fresh: Any = attached().site_exits
    mine: Any = network.site_exits
    for site, exit_ in exits.items():
        assert (exit_.pool, exit_.lesson, exit_.undecayed) == (1, mine[site].lesson, ())
        assert exit_.lesson != fresh[site].lesson
        assert fresh[site].undecayed == ("linear.bias",)


# --- thresholds by hand ---


@pytest.fixture
def trained(here: Path) -> Path:
    call("finetune", *TUNE, "--epochs", 5, "--out", "t.safetensors")
    return here


def test_thresholds_by_hand_are_taken_and_measured(trained: Path) -> None:
    command = ["calibrate", "t.safetensors", "--force", "--out", "c.safetensors"]
    both = call(*command, "--thresholds", "exit1=-0.3,exit2=0.25")
    held = gatecli.load("c.safetensors").site_exits
    assert {site: gate.threshold.item() for site, gate in held.items()} == {
        "exit1": pytest.approx(-0.3),
        "exit2": 0.25,
    }
    measured = call("eval", "c.safetensors", "--split", "val")
    assert measured["top1"] == pytest.approx(both["top1"])
    assert measured["macs_expected"] == pytest.approx(both["macs_expected"])
    assert both["target_top1"] is None and both["gap"] is None
    assert both["thresholds"] in [point["thresholds"] for point in both["frontier"]]
    # one that is not named keeps its own; infinite ones say all, or nobody
    some = ["calibrate", "c.safetensors", "--force", "--out", "d.safetensors", "--thresholds"]
    assert call(*some, "exit1=inf")["thresholds"] == {"exit1": None, "exit2": 0.25}
    assert call(*some, "exit1=-inf")["shares"] == [1.0, 0.0, 0.0]
    assert call(*some, "exit1=1e300,exit2=inf")["shares"] == [0.0, 0.0, 1.0]
    step = gatecli.load("d.safetensors").recipe.steps[-1]
    assert step.settings["thresholds"] == {"exit1": 1e300, "exit2": None}  # as said


def test_bad_thresholds(trained: Path) -> None:
    command = "calibrate t.safetensors --out x.safetensors --thresholds"
    refused(f"{command} exit3=0", "exits of the network (exit1, exit2), but got `exit3`")
    refused(f"{command} exit1=x", "threshold of exit1 to be a number, inf", "but got `x`")
    refused(f"{command} exit1=nan", "threshold of exit1 to be a number", "but got nan")
    refused(f"{command} exit1", "expected --thresholds to be exits, each once")
    refused(f"{command} exit1=0,exit1=1", "each once")
    refused(f"{command} exit1=0 --target-acc 10", "but got --target-acc and --thresholds")
    refused(f"{command} exit1=0 --max-drop 1", "but got --max-drop and --thresholds")
    refused(f"{command} exit1=0 --confidence .9", "is about an accuracy")
    refused(f"{command} exit1=0 --reuse", "--reuse moves along what is recorded")
    call("attach", "r20.pt", "--method", "ind-perbatch", "--input-size", SIDE)
    refused(
        "calibrate r20.ind-perbatch.safetensors --data npz:data.npz --thresholds exit1=0",
        "--thresholds",
        "are for exits",
    )
    assert parse_thresholds(" a = 1 , b=-inf") == {"a": 1.0, "b": -math.inf}
    assert not Path("x.safetensors").exists()


# --- classes ---


def test_how_many_of_each_class_an_exit_is_right_and_sure_of() -> None:
    network = attached()
    shake(network)
    x, labels = torch.randn(24, 3, 16, 16), torch.arange(24) % 4
    found = analyse(network, [(x[:10], labels[:10]), (x[10:], labels[10:])])
    assert found.sites == [] and sum(found.histogram) == 0
    values, _ = network.at_exits(x)
    for site, exit_ in network.site_exits.items():
        logits = exit_.classify(values[site])
        for label in range(network.num_classes):
            mine = [logits[i] for i in range(24) if labels[i] == label]
            right = [each for each in mine if each.argmax() == label]
            assert found.exits[site].images[label] == len(mine)
            assert found.exits[site].right[label] == len(right)
            sure = sum(bool(each.max() >= 1) for each in right)
            assert found.exits[site].sure[label] == sure
    assert sum(found.exits["exit1"].sure) > 0


def test_gates_shows_the_classes(trained: Path) -> None:
    found = call("gates", "t.safetensors", "--images", 50)
    assert found["sites"] == [] and list(found["exits"]) == ["exit1", "exit2"]
    rows = found["exits"]["exit1"]
    assert sum(row["images"] for row in rows) == 50
    assert all(row["sure"] <= row["right"] <= row["images"] for row in rows)
    shown = run("gates", "t.safetensors", "--images", 50).out
    assert "score of at least 1" in shown and "exit2" in shown
    refused("gates r20.dgate.safetensors", "expected a data set")
