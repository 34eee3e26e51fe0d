"""The comparison laboratory: every way meets its budget, and the page is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from budget import __main__ as command
from budget import cost, networks, outside, ways
from budget.cost import Budget, macs_of, network_like
from budget.page import page
from budget.parts import LRS, PARTS, SOURCE, parts
from budget.results import compared, narrowed, outcome
from claims.claim import Variant
from claims.problem import Problem, read_problem
from claims.training import Run
from glyphs import save_glyphs
from torch import nn

from gatecli.architectures.build import build
from gatecli.errors import SettingError

TINY = {"arch": "cifar:resnet20", "narrow": "budget.networks:resnet20"}
SETTINGS = {**TINY, "goal": "macs", "cut_epochs": 1}
HOW = {"lr": 0.01, "batch_size": 32}
ABOUT = {"classes": "0O", "size": 16, "train": 64, "test": 64}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_glyphs(tmp_path_factory.mktemp("budget") / "glyphs.npz")


@pytest.fixture(scope="module")
def problem(data: Path) -> Problem:
    return read_problem(str(data), train=64, folds=4, each=16)


@pytest.fixture
def run(problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run without its way; nothing is timed, as an export takes longer than all the rest."""
    monkeypatch.setattr(ways, "milliseconds_of", lambda networks: [2.0, 1.0])
    settings = {**SETTINGS, "share": 0.5, "start": {"epochs": 1, "train": HOW}, "train": HOW}
    return Run(problem=problem, settings=settings, epochs=2, seed=0, cache=tmp_path)


def made(run: Run, **settings: Any) -> dict[str, Any]:
    return ways.make(replace(run, settings={**run.settings, **settings}))


# --- networks ---


def test_at_full_width_it_is_the_source_s_own_network() -> None:
    size = (16, 16)
    plain = build("cifar:resnet20", {"num_classes": 10})
    assert macs_of(networks.resnet20(), size) == macs_of(plain, size)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet", "vit"])
def test_the_networks_scale_by_their_width(name: str) -> None:
    size = (16, 16)
    whole, half = (getattr(networks, name)(width) for width in (1.0, 0.5))
    assert whole(torch.zeros(2, 3, *size)).shape == (2, 10)
    assert 0.2 < macs_of(half, size) / macs_of(whole, size) < 0.35


def test_macs_are_those_of_a_count_by_hand() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.fc = nn.Linear(4, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.conv(x).mean((2, 3)))

    assert macs_of(Two().train(), (8, 8)) == 8 * 8 * 4 * 3 * 9 + 4 * 10


# --- ways ---


def test_from_scratch_it_is_the_widest_network_within_the_budget(run: Run) -> None:
    found = made(run, way="scratch")
    whole = macs_of(networks.resnet20(), (16, 16))
    fitting = [width for width in range(60, 80) if _macs(width / 100) <= 0.5 * whole]
    assert found["macs"] == _macs(max(fitting) / 100)
    assert len(found["top1"]) == 4 and found["ms_share"] == 0.5


def _macs(width: float) -> int:
    return macs_of(networks.resnet20(width), (16, 16))


def test_gates_close_blocks_and_what_is_left_is_trained(run: Run) -> None:
    attach = [{"method": "ind-perbatch", "kinds": ["block"], "gate_lr": 0.0}]
    found = made(run, way="gates", attach=attach)
    assert found["macs_share"] <= 0.5  # whatever the gates have learnt: here nothing
    assert found["macs"] == found["macs_dense"]


def test_gates_that_cannot_come_down_so_far_come_down_as_far_as_they_can(run: Run) -> None:
    attach = [{"method": "ind-perbatch", "kinds": ["block"]}]
    found = made(run, way="gates", attach=attach, share=0.01)
    without_blocks = found["macs_share"]
    assert 0.01 < without_blocks < 0.1
    assert found["macs"] == found["macs_dense"]


@pytest.mark.parametrize(
    ("shares", "chosen", "limits"),
    [((0.4,), 0, [4.0]), ((1.0, 0.5), 1, [4.0, 2.0]), ((0.8, 0.6, 0.7), 1, [4.0, 2.5, 25 / 12])],
)
def test_of_tries_by_the_clock_the_first_within_the_budget_counts_or_else_the_cheapest(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    shares: Sequence[float],
    chosen: int,
    limits: Sequence[float],
) -> None:
    made: list[float] = []

    def calibrate(tuned: Any, data: Any, max_ms: float) -> Any:
        made.append(max_ms)
        return SimpleNamespace(network=len(made) - 1)

    monkeypatch.setattr(ways.gatecli, "calibrate", calibrate)
    monkeypatch.setattr(ways.gatecli, "prune", lambda network: SimpleNamespace(network=network))
    budget = SimpleNamespace(share=0.5, share_of=lambda network: shares[network])
    assert ways._cut(-1, run, budget, ("max_ms", 4.0)) == chosen  # type: ignore[arg-type, comparison-overlap]
    assert made == pytest.approx(limits)


def test_the_source_has_as_many_epochs_more_as_the_others(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    trained = ways.plain

    def plain(network: Any, problem: Any, options: Any) -> Any:
        asked.append(options.epochs)
        return trained(network, problem, replace(options, epochs=1))

    monkeypatch.setattr(ways, "plain", plain)
    longer = replace(run, epochs=6)
    made(longer, way="source")
    made(longer, way="gates", cut_epochs=2, attach=[{"method": "ind-perbatch", "kinds": ["block"]}])
    made(longer, way="scratch")
    assert asked == [5, 3, 6]  # 1 of the source's; 2 more of the gates are finetune's


@pytest.mark.parametrize("importance", outside.IMPORTANCES)
def test_torch_pruning_meets_the_budget(run: Run, importance: str) -> None:
    pytest.importorskip("torch_pruning")
    found = made(run, way="torch-pruning", importance=importance)
    assert 0.4 < found["macs_share"] <= 0.5
    assert found["macs"] == found["macs_dense"]  # what is counted is what the network has


def test_torch_pruning_takes_a_vision_transformer(run: Run) -> None:
    pytest.importorskip("torch_pruning")
    found = made(run, way="torch-pruning", importance="magnitude", arch="budget.networks:vit")
    assert found["macs_share"] <= 0.5


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "is_installed", lambda: False)
    assert "pip install" in ways.lacking({"way": "torch-pruning"})
    for attach, text in (
        ({"kinds": ["block"]}, ""),
        ({"kinds": ["block", "no-such"]}, "needs sites of kind `no-such`"),
        ({"kinds": ["block"], "no_such": 1}, "needs a setting `no_such` of ind-perbatch"),
    ):
        asked = {"way": "gates", "attach": [{"method": "ind-perbatch", **attach}]}
        assert ways.lacking(asked) == text


def test_milliseconds_are_shares_of_the_source_s(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = problem.network("cifar:resnet20", 0, {})
    monkeypatch.setattr(cost, "ready", lambda network: network)
    monkeypatch.setattr(cost, "fastest", lambda found: [float(each.params) for each in found])
    half = network_like(source, networks.resnet20(0.5))
    budget = Budget(goal="ms", share=0.5, source=source)
    assert budget.share_of(networks.resnet20(0.5)) == half.params / source.params


# --- what came of it ---


def line(name: str, seed: int = 0, **figures: Any) -> dict[str, Any]:
    """A run of ResNet-20, with the settings that its variant has today."""
    (variant,) = [each for each in PARTS["resnet20"].variants if each.name == name]
    shares = {"macs_share": variant.settings["share"], "ms_share": 0.6}
    own = {"epochs": variant.epochs, "settings": variant.settings, "problem": ABOUT}
    figures = {**shares, **figures}
    return {"paper": "resnet20", "variant": name, "seed": seed, **own, "figures": figures}


def test_val_chooses_the_learning_rate_at_the_first_seed() -> None:
    results = {
        "a, lr 0.1": {0: {"val_top1": 70.0, "top1": 1.0}},
        "a, lr 0.03": {0: {"val_top1": 71.0, "top1": 2.0}, 1: {"val_top1": 60.0, "top1": 4.0}},
        "a, lr 0.01": {0: {"val_top1": 69.0, "top1": 9.0}, 1: {"val_top1": 99.0, "top1": 9.0}},
    }
    found = outcome(results, "a")
    assert (found.lr, found.tried, found.mean("top1")) == (0.03, 3, 3.0)
    assert outcome(results, "b").runs == {}


def test_further_seeds_are_run_at_the_rate_chosen() -> None:
    lines = []
    for lr, val in zip(LRS, (70.0, 71.0, 69.0), strict=True):
        lines.append(line(f"{SOURCE}, lr {lr:g}", val_top1=val))
    asked = [each.name for each in narrowed(PARTS["resnet20"], lines).variants]
    assert [name for name in asked if name.startswith(SOURCE)] == [f"{SOURCE}, lr {LRS[1]:g}"]
    assert len(asked) == len(PARTS["resnet20"].variants) - 2


def test_ways_are_compared_seed_by_seed_and_part_by_part() -> None:
    results = {
        "a, lr 0.1": {0: {"val_top1": 1.0, "top1": [80.0, 90.0]}},
        "b, lr 0.1": {
            0: {"val_top1": 1.0, "top1": [79.0, 87.0]},
            1: {"val_top1": 1.0, "top1": [0.0, 0.0]},
        },
    }
    found = compared(outcome(results, "a"), outcome(results, "b"))
    assert (found.mean, found.error, found.seeds, found.word) == (2.0, 1.0, 1, "shown")


@pytest.mark.parametrize(
    ("difference", "word"), [(5.0, "ahead"), (-5.0, "behind"), (0.01, "a tie")]
)
def test_the_page_says_who_is_ahead(difference: float, word: str) -> None:
    theirs = [50.0 + each for each in range(4)]
    ours = [each + difference + 0.01 * (-1) ** number for number, each in enumerate(theirs)]
    lines = [
        line("Torch-Pruning, Taylor, 0.5 of macs, lr 0.1", top1=theirs, val_top1=60.0),
        line("Torch-Pruning, magnitude, 0.5 of macs, lr 0.1", top1=[99.0] * 4, val_top1=59.0),
        line("filters, 0.5 of macs, lr 0.1", top1=ours, val_top1=60.0),
        line("blocks, 0.5 of macs, lr 0.1", top1=[99.0] * 4, val_top1=61.0, macs_share=0.52),
    ]
    text = page(lines)
    assert (
        f"- At 0.5, against Torch-Pruning: **{word}** (filters, less Torch-Pruning, Taylor" in text
    )
    assert "- At 0.35, against Torch-Pruning: not run" in text
    assert (
        "| blocks | 0 of 3 | 99.00 | 0.1 (1 tried) | 0.520 | 0.600 | not run | - | - | - |" in text
    )


@pytest.mark.parametrize(("seeds", "chosen"), [((0,), "filters"), ((0, 1), "blocks")])
def test_val_chooses_a_way_by_its_mean_over_the_seeds(seeds: Sequence[int], chosen: str) -> None:
    vals = {"filters": (61.0, 60.0, 60.0), "blocks": (60.0, 62.0, 50.0)}
    lines = [line("from scratch, narrower, 0.5 of macs, lr 0.1", top1=[50.0] * 4, val_top1=60.0)]
    for seed in seeds:
        for name, val in vals.items():
            known = {"top1": [60.0, 60.01] * 2, "val_top1": val[seed]}
            lines.append(line(f"{name}, 0.5 of macs, lr 0.1", seed, **known))
    lines.append(line("blocks, 0.5 of macs, lr 0.1", 2, top1=[60.0] * 4, val_top1=0.0))
    against = "against a smaller network from scratch"
    assert f"- At 0.5, {against}: **ahead** ({chosen}, less" in page(lines)


def test_the_page_is_written_without_any_run() -> None:
    text = page([])
    assert all(part.title in text for part in PARTS.values()) and "not run" in text


@pytest.mark.parametrize("name", PARTS)
def test_every_run_has_a_name_of_its_own(name: str) -> None:
    names = [each.name for each in PARTS[name].variants]
    assert len(names) == len(set(names))


def test_an_unknown_part_is_one_clear_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(data), "--part", "perceptron", "--page", str(tmp_path / "page.md")]
    assert command.main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: expected --part to be one of") and "`perceptron`" in said
    with pytest.raises(SettingError, match="perceptron"):
        parts(["perceptron"])


def test_a_try_prints_the_page_and_says_what_it_leaves_out(
    run: Run, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**run.settings, "way": "source", "share": 1.0}
    settings["train"] = {**HOW, "lr": LRS[0]}
    missing = {**settings, "way": "gates", "attach": [{"method": "ind-perbatch", "kinds": ["no"]}]}
    variants = [
        Variant(name=f"{SOURCE}, lr {LRS[0]:g}", epochs=2, settings=settings),
        Variant(name="no", epochs=2, settings=missing),
    ]
    monkeypatch.setitem(PARTS, "resnet20", replace(PARTS["resnet20"], variants=variants))
    monkeypatch.setattr("claims.command.QUICK", {"train": 64, "folds": 2, "each": 8})
    assert command.main(["--data", str(data), "--part", "resnet20", "--quick"]) == 0
    said = capsys.readouterr()
    assert f"| {SOURCE} | 1 of 3 | " in said.out
    assert "not run: no, and others: needs sites of kind `no`" in said.err
