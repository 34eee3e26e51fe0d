"""The claims laboratory: verdicts by rule, resuming, and a page that is computed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from claims import __main__ as command
from claims.claim import Claim, Column, Comparison, Paper, Variant
from claims.differences import Above, AtEqual, Best, Less, Mean
from claims.laboratory import Laboratory
from claims.measures import decided
from claims.page import page
from claims.papers import PAPERS, channel_gating
from claims.problem import Problem, read_problem
from claims.results import figures_of, lines_of
from claims.store import Store
from claims.tables import comparison_line, judged, table
from claims.training import Run, in_epochs
from claims.verdicts import judge, overall
from glyphs import save_glyphs
from torch import nn

import gatecli
from gatecli.errors import TrainingError

ABOUT = {"classes": "0O", "size": 16, "train": 64, "test": 64}
KEYS = {"epochs": 1, "settings": {"arch": "cifar:resnet20"}, "problem": ABOUT}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_glyphs(tmp_path_factory.mktemp("claims") / "glyphs.npz")


@pytest.fixture(scope="module")
def problem(data: Path) -> Problem:
    return read_problem(str(data), train=64, folds=4, each=16)


# --- verdicts ---


@pytest.mark.parametrize(
    ("differences", "expect", "margin", "word"),
    [
        ({0: [2.0], 1: [2.5], 2: [3.0]}, "more", 1.0, "shown"),  # 2.5, error .29
        ({0: [-2.0], 1: [-2.5], 2: [-3.0]}, "more", 1.0, "contradicted"),
        ({0: [0.1], 1: [-0.1], 2: [0.0]}, "more", 1.0, "a tie"),  # 0, error .06
        ({0: [3.0], 1: [-1.0], 2: [1.0]}, "more", 1.0, "not shown"),  # 1, error 1.15
        ({0: [9.0], 1: [10.0], 2: [-0.1]}, "more", 1.0, "not shown"),  # a seed says the contrary
        ({0: [5.0]}, "more", 1.0, "not shown"),  # once, so nothing says how much is chance
        ({0: [2.0, 3.0, 2.5, 2.5]}, "more", 1.0, "shown"),  # one seed, four parts of the images
        ({0: [9.0, -4.0, 1.0, 4.0]}, "more", 1.0, "not shown"),  # mean 2.5, error 2.7
        ({0: [-2.0], 1: [-2.5], 2: [-3.0]}, "less", 1.0, "shown"),
        ({0: [2.0], 1: [2.5], 2: [3.0]}, "less", 1.0, "contradicted"),
        ({0: [0.1], 1: [-0.1], 2: [0.0]}, "same", 1.0, "shown"),
        ({0: [3.0], 1: [3.1], 2: [2.9]}, "same", 1.0, "contradicted"),
        ({0: [0.9], 1: [1.0], 2: [0.8]}, "same", 1.0, "not shown"),
        ({0: [-0.5], 1: [-0.4], 2: [-0.6]}, "no less", 1.0, "shown"),
        ({0: [-2.0], 1: [-2.1], 2: [-1.9]}, "no less", 1.0, "contradicted"),
        ({0: [-2.0], 1: [0.0], 2: [-1.0]}, "no less", 1.0, "not shown"),
        ({}, "more", 1.0, "not run"),
    ],
)
def test_a_verdict_follows_from_the_difference_and_its_error(
    differences: dict[int, list[float]], expect: str, margin: float, word: str
) -> None:
    assert judge(differences, expect, margin).word == word


def test_the_error_has_a_part_from_seeds_and_one_from_images() -> None:
    found = judge({0: [1.0, 3.0], 1: [2.0, 6.0]}, "more", 1.0)
    # seeds 2 and 4: variance 2, of the mean 1; parts 1.5 and 4.5: variance 4.5, of the mean 2.25
    assert (found.mean, found.seeds) == (3.0, 2)
    assert math.isclose(found.error, math.sqrt(1 + 2.25))


def test_several_comparisons_decide_together() -> None:
    assert overall(["a tie", "a tie"]) == "a tie"
    assert overall(["shown", "a tie", "shown"]) == "shown in part (2 of 3)"
    assert overall(["a tie", "contradicted"]) == "contradicted"
    assert overall(["a tie", "not shown"]) == "not shown"


# --- differences ---


def test_figures_are_compared_seed_by_seed_and_part_by_part() -> None:
    results = {
        "a": {0: {"top1": [80.0, 90.0]}, 1: {"top1": [70.0, 70.0]}},
        "b": {0: {"top1": [79.0, 87.0]}},
    }
    less = Less(one=Mean(variants=["a"], figure="top1"), other=Mean(variants=["b"], figure="top1"))
    assert less.differences(results) == {0: [1.0, 3.0]}
    both = Mean(variants=["a", "b"], figure="top1")
    assert both.by_seed(results) == {0: [79.5, 88.5]}


def test_curves_are_compared_at_equal_cost() -> None:
    curve = {"low": (0.2, 60.0), "high": (0.6, 80.0)}  # at .5: 75
    results = {
        name: {0: {"rate": at, "top1": [top1, top1]}}
        for name, (at, top1) in {**curve, "in": (0.5, 77.0), "out": (0.9, 99.0)}.items()
    }

    def above(*ones: str) -> dict[int, list[float]]:
        of = AtEqual(ones=ones, others=["low", "high"], figure="top1", cost="rate")
        return of.differences(results)

    (found,) = above("in").values()
    assert found == pytest.approx([2.0, 2.0])
    assert above("out") == {}
    assert above("in", "out") == above("in")


def test_one_variant_may_have_several_points() -> None:
    def run(*tops: float) -> dict[int, dict[str, Any]]:
        cheap, dear = tops
        return {0: {"macs a": 1.0, "macs b": 2.0, "top1 a": [cheap], "top1 b": [dear]}}

    results = {"one": run(70.0, 80.0), "other": run(69.0, 77.0)}
    of = AtEqual(ones=["one"], others=["other"], figure="top1", cost="macs", points=(" a", " b"))
    assert of.differences(results) == {0: [2.0]}


def test_the_best_is_chosen_on_val_seed_by_seed() -> None:
    results = {
        "a": {0: {"val_top1": 80.0, "top1": 1.0}, 1: {"val_top1": 70.0, "top1": 2.0}},
        "b": {0: {"val_top1": 79.0, "top1": 3.0}, 1: {"val_top1": 71.0, "top1": 4.0}},
    }
    best = Best(variants=["a", "b"], figure="top1")
    assert best.by_seed(results) == {0: [1.0], 1: [4.0]}
    assert Above(one=best, number=3).differences(results) == {0: [-2.0], 1: [1.0]}


def test_a_figure_that_a_run_lacks_is_not_compared() -> None:
    results = {"a": {0: {"chosen": [90.0]}, 1: {"all": [80.0]}}}
    assert Mean(variants=["a"], figure="chosen").by_seed(results) == {0: [90.0]}


# --- the file ---


def test_half_a_line_is_dropped_and_written_over(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs.jsonl")
    first = {"paper": "p", "variant": "v", "seed": 0, **KEYS}
    store.append(first)
    with store.path.open("a") as file:
        file.write('{"paper": "p", "var')
    assert store.lines() == [first]
    store.append({**first, "seed": 1})
    assert [line["seed"] for line in store.lines()] == [0, 1]
    assert store.path.read_bytes().endswith(b"\n")


def test_a_run_is_found_by_all_that_it_depends_on(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs.jsonl")
    run = {"paper": "p", "variant": "v", "seed": 0, **KEYS}
    assert store.find(run) is None
    store.append({**run, "figures": {}})
    assert store.find(run)
    for name, other in {"seed": 1, "epochs": 2, "settings": {}, "problem": {}}.items():
        assert store.find({**run, name: other}) is None


# --- the laboratory ---


def paper(*settings: dict[str, Any]) -> Paper:
    variants = [
        Variant(name=f"v{number}", epochs=1, settings={"arch": "cifar:resnet20", **each})
        for number, each in enumerate(settings)
    ]
    mean = Mean(variants=["v0"], figure="top1")
    claim = Claim(
        says="It learns.",
        rows=[each.name for each in variants],
        columns=(Column(figure="top1", head="top-1"),),
        comparisons=[Comparison(says="nothing", of=Less(one=mean, other=mean))],
        distance="all the way",
    )
    return Paper(name="p", title="P", variants=variants, claims=[claim], make=decided)


ATTACH = [{"method": "ind-perbatch", "target_rate": 0.5}]


def test_what_is_done_is_not_done_again(tmp_path: Path, problem: Problem) -> None:
    lab = Laboratory(problem=problem, store=Store(tmp_path / "runs.jsonl"), cache=tmp_path)
    assert lab.work([paper({}, {"attach": ATTACH})], [0]) == 0
    lines = lab.store.lines()
    assert [line["variant"] for line in lines] == ["v0", "v1"]
    assert {"gatecli", "commit", "seconds", "settings", "problem"} <= lines[0].keys()
    assert len(lines[1]["figures"]["top1"]) == 4 and lines[1]["figures"]["rate"] <= 1
    lab.work([paper({}, {"attach": ATTACH})], [0, 1])
    assert [line["seed"] for line in lab.store.lines()] == [0, 0, 1, 1]


def test_a_run_that_diverges_is_a_result_and_one_that_fails_is_tried_again(
    tmp_path: Path, problem: Problem
) -> None:
    def make(run: Run) -> dict[str, Any]:
        raise TrainingError("nan") if run.settings.get("attach") else ValueError("a mistake")

    lab = Laboratory(problem=problem, store=Store(tmp_path / "runs.jsonl"), cache=tmp_path)
    asked = replace(paper({}, {"attach": ATTACH}), make=make)
    assert lab.work([asked], [0]) == 1
    lines = lab.store.lines()
    assert [line["variant"] for line in lines] == ["v1"]
    assert figures_of(lines) == {}
    assert "| v1 | 0 of 3, 1 diverged | - |" in table(asked.claims[0], {}, lines, 3)


def test_a_source_is_trained_once(tmp_path: Path, problem: Problem) -> None:
    settings = {"arch": "cifar:resnet20", "start": {"epochs": 1, "train": {"lr": 0.1}}}
    run = Run(problem=problem, settings=settings, epochs=1, seed=0, cache=tmp_path)
    first = run.train()
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    second = run.train()
    assert file.stat().st_mtime_ns == written
    for name, tensor in first.network.state_dict().items():
        assert tensor.equal(second.network.state_dict()[name])


def test_milestones_are_shares_of_whatever_epochs_there_are() -> None:
    assert in_epochs({"lr": 1.0, "milestones": [0.5, 0.75]}, 60)["milestones"] == [30, 45]
    assert in_epochs({"milestones": [0.5, 0.75]}, 1) == {"milestones": None}
    assert in_epochs({"lr": 1.0}, 60) == {"lr": 1.0}
    assert in_epochs({"warmup": 0.1}, 60) == {"warmup": 6.0}


def test_the_images_reported_on_are_those_not_trained_on(data: Path, problem: Problem) -> None:
    splits = problem.data.splits
    assert len(splits["train"]) == 64 and problem.about["test"] == 4 * len(splits["fold0"])
    pixels = {image.numpy().tobytes() for image in splits["train"].images}  # type: ignore[attr-defined]
    for fold in problem.folds:
        mine = {image.numpy().tobytes() for image in splits[fold].images}  # type: ignore[attr-defined]
        assert not mine & pixels
        pixels |= mine


# --- the page ---


def test_figures_of_other_settings_are_not_shown() -> None:
    asked = paper({})
    line = {"paper": "p", "variant": "v0", "seed": 0, "figures": {"top1": 50.0}, **KEYS}
    assert lines_of(asked, [line], None) == [line]
    assert lines_of(asked, [{**line, "settings": {}}], None) == []
    assert lines_of(asked, [{**line, "epochs": 2}], None) == []
    assert lines_of(asked, [{**line, "epochs": 2}], 2)


def test_a_table_says_which_seeds_are_missing_and_what_had_not_converged() -> None:
    claim = paper({}, {}).claims[0]
    results = {
        "v0": {seed: {"top1": [50.0, 52.0 + 2 * seed], "late_gain": 0.0} for seed in range(3)},
        "v1": {0: {"top1": [40.0, 42.0], "late_gain": 0.7}},
    }
    text = table(claim, results, [], 3)
    assert "| v0 | 3 | 52.00 ± 1.00 |" in text
    assert "| v1 * | 1 of 3 | 41.00 |" in text and "had not converged" in text
    results["v1"][0].update(late_gain=0.0)
    assert "*" not in table(claim, results, [], 3).replace("**", "")
    results["v1"][0].update(train_top1=12.0)
    assert "| v1 * | 1 of 3 | 41.00 |" in table(claim, results, [], 3)


def test_a_difference_is_said_with_its_error_and_seeds() -> None:
    less = Less(one=Mean(variants=["a"], figure="f"), other=Mean(variants=["b"], figure="f"))
    comparison = Comparison(says="a less b", of=less)
    results = {"a": {0: {"f": 3.0}, 1: {"f": 5.0}}, "b": {0: {"f": 1.0}, 1: {"f": 1.0}}}
    text = comparison_line(comparison, judged(comparison, results), 3)
    assert text == "- a less b: +3.00 points, standard error 1.00, 2 of 3 seeds: **shown**"
    assert comparison_line(comparison, judged(comparison, {}), 3) == "- a less b: not run yet"
    once = {"a": {0: {"f": 3.0}}, "b": {0: {"f": 1.0}}}
    text = comparison_line(comparison, judged(comparison, once), 3)
    assert text == "- a less b: +2.00 points, no standard error yet, 1 of 3 seeds: **not shown**"


def test_a_verdict_on_few_runs_says_so() -> None:
    asked = paper({})
    line = {"paper": "p", "variant": "v0", "seed": 0, "figures": {"top1": [50.0]}, **KEYS}
    claim = replace(asked.claims[0], comparisons=asked.claims[0].comparisons * 2)
    several = replace(asked, claims=[claim])
    less = Less(one=Mean(variants=["gone"], figure="top1"), other=Mean(variants=["v0"], figure="f"))
    claim.comparisons[1] = replace(claim.comparisons[1], of=less)  # type: ignore[index]
    assert "| not shown so far (1 of 2 comparisons, 1 of 3 seeds) |" in page([line], [several])
    assert "| not run |" in page([], [several])


def test_the_page_is_written_without_any_run() -> None:
    text = page([])
    assert all(claim.says in text for each in PAPERS.values() for claim in each.claims)
    assert "not run" in text


@pytest.mark.parametrize("name", PAPERS)
def test_claims_name_variants_that_are_trained(name: str) -> None:
    known = {each.name for each in PAPERS[name].variants}
    assert len(known) == len(PAPERS[name].variants)
    for claim in PAPERS[name].claims:
        assert set(claim.rows) <= known
        for comparison in claim.comparisons:
            assert comparison.of.differences({}) == {}
    json.dumps([each.settings for each in PAPERS[name].variants])


def test_an_unknown_paper_is_one_clear_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(data), "--paper", "perceptron", "--page", str(tmp_path / "page.md")]
    assert command.main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: expected --paper to be one of") and "`perceptron`" in said
    assert said.count("\n") == 1


def test_a_try_trains_for_an_epoch_and_prints_the_page(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = paper({})
    monkeypatch.setitem(PAPERS, "p", asked)
    monkeypatch.setattr("claims.command.QUICK", {"train": 64, "folds": 2, "each": 8})
    assert command.main(["--data", str(data), "--paper", "p", "--quick"]) == 0
    assert "| p | It learns. |" in capsys.readouterr().out


def test_a_variant_may_be_for_some_seeds_alone(tmp_path: Path, problem: Problem) -> None:
    asked = paper({})
    asked = replace(asked, variants=[replace(asked.variants[0], seeds=(0,))])
    lab = Laboratory(problem=problem, store=Store(tmp_path / "runs.jsonl"), cache=tmp_path)
    lab.work([asked], [0, 1])
    assert [line["seed"] for line in lab.store.lines()] == [0]


# --- what the papers' runs measure ---


@pytest.mark.parametrize("function", channel_gating.FUNCTIONS)
def test_what_channel_gates_compute_themselves(function: str, problem: Problem) -> None:
    """Table 5's columns, layer by layer: c w h additions, and c c' multiplications of fc."""
    network = problem.network("cifar:resnet20", 0, {})
    convs = [each for each in network.modules() if _is_wide(each)]
    wanted = {"gate_additions": 0.0, "gate_multiplications": 0.0}
    for conv, (given, made) in zip(convs, _shapes(network, convs), strict=True):
        reads = {"fine": 0, "coarse": made, "l1": given, "fc": given}[function]
        wanted["gate_additions"] += reads
        if function == "fc":
            wanted["gate_multiplications"] += conv.in_channels * conv.out_channels
    gated = gatecli.attach(network, "cgnet", gate=function, base_path=False).network
    assert channel_gating.overhead(gated, 16) == wanted


def _is_wide(each: nn.Module) -> bool:
    return isinstance(each, nn.Conv2d) and each.kernel_size == (3, 3) and each.in_channels > 3


def _shapes(network: Any, convs: list[nn.Conv2d]) -> list[tuple[int, int]]:
    """Elements of an image that each convolution reads and makes."""
    found: list[tuple[int, int]] = []
    for conv in convs:
        conv.register_forward_hook(lambda _, x, y: found.append((x[0][0].numel(), y[0].numel())))
    network.eval()(torch.zeros(1, 3, 16, 16))
    return found
