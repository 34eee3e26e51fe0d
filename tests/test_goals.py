"""A training that is told a price, not a rate.

Which target it asks for next, and which epoch it keeps.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from commandline import SIDE, call, refused, run, save_npz, save_source
from networks import CASES

import gatecli
from gatecli import methods
from gatecli.errors import SettingError
from gatecli.training import TrainOptions
from gatecli.training.goals import Price, TargetRate, goal_of
from gatecli.training.trained import Trained


def goal_for(epochs: int = 20, **asked: Any) -> TargetRate:
    network = gatecli.attach(CASES["cifar-projection"].network(), "ind-perbatch").network
    method = methods.get("ind-perbatch")
    trained = [Trained(method, method.about.settings())]
    return goal_of(network, trained, TrainOptions(epochs=epochs, **asked))


def price(epochs: int = 20, **asked: float) -> Price:
    goal = goal_for(epochs, **asked)
    assert isinstance(goal, Price)
    goal.begin(90.0)
    return goal


def simulate(goal: Price, epochs: int, holds: float) -> list[dict[str, Any]]:
    """Epochs of a network that does as it is told, and whose accuracy falls below 89.5 where its
    rate falls below `holds`.
    """
    dense, rows = goal.network.macs_dense, []
    for epoch in range(epochs):
        rate = goal.targets(epoch)[next(iter(goal.units))]
        row = {
            "epoch": epoch + 1,
            "val_top1": 90.0 if rate >= holds else 89.0,
            "achieved_rate": rate,
            "macs_expected": goal.fixed + rate * (dense - goal.fixed),
            "target_rate": rate,
        }
        rows.append(row)
        goal.learn(row)
    return rows


def best_of(goal: Price, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return max(rows, key=goal.rank)


@pytest.mark.parametrize("holds", [0.15, 0.4, 0.62, 0.9])
def test_the_target_closes_in_on_what_the_accuracy_allows(holds: float) -> None:
    goal = price(max_drop=0.5)
    rows = simulate(goal, 20, holds)
    best = best_of(goal, rows)
    assert goal.meets(best) and holds <= best["achieved_rate"] <= holds + 0.06
    assert all(not goal.meets(row) or row["macs_expected"] >= best["macs_expected"] for row in rows)
    assert (
        goal.chosen(best)
        == f"best: epoch {best['epoch']}, the cheapest that was at most 0.5 points below the"
        " baseline"
    )
    assert goal.reported(best) == best["achieved_rate"]


@pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
def test_a_budget_of_macs_is_met_and_not_undercut_by_much(share: float) -> None:
    limit = price(max_gmacs=1).fixed + share * (
        price(max_gmacs=1).network.macs_dense - price(max_gmacs=1).fixed
    )
    goal = price(max_gmacs=limit / 1e9)
    rows = simulate(goal, 20, 0.0)
    assert goal.meets(rows[-1]) and rows[-1]["achieved_rate"] >= share - 0.03
    assert rows[-1]["target_rate"] == rows[-2]["target_rate"]  # it stays there


def test_of_those_within_a_budget_the_most_accurate_is_kept() -> None:
    goal = price(max_gmacs=0.008)
    rows = [
        {
            "epoch": i + 1,
            "val_top1": top1,
            "macs_expected": macs,
            "achieved_rate": 0.5,
            "target_rate": 0.5,
        }
        for i, (top1, macs) in enumerate([(95, 9e6), (90, 7e6), (91, 7.9e6), (91, 7.5e6)])
    ]
    assert best_of(goal, rows)["epoch"] == 4
    assert (
        best_of(goal, rows[:1]) is rows[0]
        and goal.chosen(rows[0]) == "nearest: epoch 1; no epoch was at most 0.008 GMACs"
    )


def test_both_prices_at_once() -> None:
    goal = price(max_gmacs=0.008, max_drop=1.0)
    rows = [
        {
            "epoch": i,
            "val_top1": top1,
            "macs_expected": macs,
            "achieved_rate": 0.5,
            "target_rate": 0.5,
        }
        for i, (top1, macs) in enumerate([(95, 9e6), (88, 5e6), (89.5, 7.9e6), (91, 7.95e6)])
    ]
    assert best_of(goal, rows)["epoch"] == 2
    assert best_of(goal, rows[:2])["epoch"] == 0  # accurate, but too dear, before cheap and wrong


def test_ranks_are_an_order() -> None:
    """The best of a history is the same whether one looks at all of it at the end or keeps the
    better of two each time.
    """
    goal, draw = price(max_drop=1.0), random.Random(0)
    rows = [
        {
            "epoch": i,
            "val_top1": draw.choice([88.0, 89.0, 90.0]),
            "macs_expected": draw.choice([5e6, 6e6]),
            "achieved_rate": 0.5,
            "target_rate": 0.5,
        }
        for i in range(30)
    ]
    kept = rows[0]
    for row in rows[1:]:
        kept = row if goal.rank(row) > goal.rank(kept) else kept
    assert kept is best_of(goal, rows)
    assert goal.meets(kept) and kept["macs_expected"] == 5e6 and kept["val_top1"] == 90.0


def test_out_of_reach() -> None:
    with pytest.raises(
        SettingError,
        match=(
            r"--max-gmacs 1e-05 is out of reach: with all 9 gated branches off, 0.0\d+ GMACs are"
            r" left"
        ),
    ):
        price(max_gmacs=1e-5)


# --- on the command line ---


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_source(tmp_path / "r20.pt")
    save_npz(tmp_path / "data.npz")
    return tmp_path


LINE = [
    "--data",
    "npz:data.npz",
    "--epochs",
    3,
    "--batch-size",
    32,
    "--lr",
    0.02,
    "--bn-batches",
    2,
    "--set",
    "gate_lr=5",
]


@pytest.mark.parametrize("asked", [["--max-drop", 40], ["--max-gmacs", 0.002]])
def test_finetune_with_a_price(here: Path, asked: list[object]) -> None:
    call("attach", "r20.pt", "--method", "ind-pergate", "--input-size", SIDE)
    found = call("finetune", *LINE, *asked, "--out", "a.safetensors")
    assert found["chosen"].startswith(("best", "nearest")) and found["history"][0][
        "target_rate"
    ] == pytest.approx(0.75)
    if asked[0] == "--max-gmacs":
        assert found["macs_expected"] <= 0.002e9 or found["chosen"].startswith("nearest")
    else:
        assert found["top1"] >= found["baseline_top1"] - 40
        met = [
            row["macs_expected"]
            for row in found["history"]
            if row["val_top1"] >= found["baseline_top1"] - 40
        ]
        assert found["macs_expected"] <= min(met) * 1.001 or found["batchnorm"]["kept"] == "after"
    log = [json.loads(line) for line in Path(".gatecli/runs/a/log.jsonl").read_text().splitlines()]
    assert [row["target_rate"] for row in log if "val_top1" in row] == [
        row["target_rate"] for row in found["history"]
    ]


def test_bad_prices(here: Path) -> None:
    run("attach", "r20.pt", "--method", "ind-perbatch", "--input-size", SIDE)
    for words, expected in (
        ("--max-drop -1", "--max-drop to be between 0 and 100"),
        ("--max-drop nan", "--max-drop"),
        ("--max-gmacs 1e-6", "out of reach"),
        ("--max-gmacs inf", "--max-gmacs"),
    ):
        refused(f"finetune --data npz:data.npz {words}", expected)
    assert not Path("r20.ind-perbatch.tuned.safetensors").exists()


def test_the_last_epoch_is_kept_where_asked_for() -> None:
    goal = goal_for(keep="last")
    row = {"epoch": 1, "val_top1": 90.0, "achieved": {"ind-perbatch": 0.0}}
    assert goal.rank(row) is None
    assert goal.chosen(None) == f"last: epoch {goal.options.epochs}, as asked"


def test_a_much_better_last_epoch_is_said() -> None:
    goal = goal_for()
    best = {"val_top1": 12.0}
    said = goal.passed_over(best, {"val_top1": 17.0, "achieved_rate": 0.37})
    assert "17.00 % on val at rate 0.37" in said
    assert goal.passed_over(best, {"val_top1": 16.9, "achieved_rate": 0.37}) == ""
    assert goal.passed_over(None, {"val_top1": 90.0, "achieved_rate": 0.37}) == ""


def test_the_last_epoch_does_not_go_with_a_price() -> None:
    with pytest.raises(SettingError, match="--keep last"):
        TrainOptions(keep="last", max_drop=1)
    with pytest.raises(SettingError, match="--keep to be one of best, last"):
        TrainOptions(keep="first")
