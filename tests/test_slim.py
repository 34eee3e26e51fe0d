"""gatecli slim: the whole road in one command, stopped anywhere; recipes; weights alone."""

from __future__ import annotations

import random
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import SIDE, call, contents, current, refused, run, same, save_npz, save_source
from kills import Crash, watch

import gatecli
from gatecli import checkpoint
from gatecli.cli.road import Road
from gatecli.cli.slim_steps import Slimming
from gatecli.errors import TrainingError
from gatecli.training.loop import Loop
from gatecli.training.weights import check_no_exits

HOW = ["--epochs", 2, "--batch-size", 32, "--lr", 0.02, "--input-size", SIDE]
# so few steps close gates only where their learning rate is high
LINE = ["slim", "r20.pt", "--data", "npz:data.npz", "--max-gmacs", 0.002, *HOW]
LINE += ["--set", "gate_lr=150", "--set", "loss_weight=20"]
TUNED = "r20.ind-perbatch.tuned"
NAMES = ["r20.ind-perbatch", TUNED, f"{TUNED}.calibrated", f"{TUNED}.calibrated.pruned", "r20.slim"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    save_npz(folder / "data.npz", train=64)
    save_source(folder / "r20.pt")
    return folder


def fill(folder: Path, shelf: Path) -> None:
    """Recipes name the data by its whole path, which has to be one for all."""
    (folder / "data.npz").symlink_to(shelf / "data.npz")
    shutil.copy(shelf / "r20.pt", folder)


@pytest.fixture
def here(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    fill(tmp_path, shelf)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def straight(
    shelf: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], int]:
    """What an undisturbed run leaves: its folder, its JSON, and how many events it had."""
    folder = tmp_path_factory.mktemp("straight")
    fill(folder, shelf)
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        watch(patch, lambda: seen.append(1))
        return folder, call(*LINE), len(seen)


def test_the_road(straight: tuple[Path, dict[str, Any], int]) -> None:
    folder, given, _ = straight
    written = [step["out"] for step in given["steps"] if step["out"]]
    assert written == [f"{name}.safetensors" for name in NAMES]
    assert all((folder / name).is_file() for name in written)
    assert (folder / ".gatecli/current").read_text() == "r20.slim.safetensors\n"
    tensors, recipe = contents(folder / "r20.slim.safetensors")
    ops = ["attach", "finetune", "calibrate", "prune", "finetune"]
    assert [step["op"] for step in recipe["steps"]] == ops
    assert recipe["steps"][-1]["settings"]["method"] == "weights"
    assert not any(name.startswith("gates.") for name in tensors)
    before, after = given["rows"]
    assert given["out"] == "r20.slim.safetensors"
    assert after["macs_expected"] == after["macs_dense"] == given["macs_dense"]
    assert after["macs_dense"] < before["macs_dense"] and after["params"] < before["params"]
    assert before["val_top1"] == recipe["baseline"]["top1"]
    assert after["val_top1"] == recipe["steps"][-1]["results"]["top1"]
    reached = after["macs_expected"] / 1e9
    goal = {"name": "max_gmacs", "asked": 0.002, "reached": reached, "met": reached <= 0.002}
    assert given["goal"] == goal
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        refused("slim --resume", "nothing unfinished")
        refused(LINE, "r20.ind-perbatch.safetensors exists already", "--force")


def test_keys_are_those_of_the_document(straight: tuple[Path, dict[str, Any], int]) -> None:
    text = (Path(__file__).parent.parent / "docs/json.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| `slim` |"))
    named = set(re.findall(r"`(\w+)`", re.sub(r"\{[^}]*\}|\([^)]*\)|\[[^]]*\]", "", row))) - {
        "slim"
    }
    common = {"checkpoint", "out", "arch", "params", "macs_dense", "macs_expected", "seconds"}
    assert set(straight[1]) == named | common


@pytest.mark.slow
def test_steps_are_commands_to_be_typed(
    straight: tuple[Path, dict[str, Any], int], here: Path
) -> None:
    """Typed one by one, the commands that slim names make the same files."""
    folder, given, _ = straight
    for step in given["steps"]:
        if step["out"]:
            call(*step["command"].split()[1:])
    for name in NAMES:
        assert same(f"{name}.safetensors", folder / f"{name}.safetensors")


def test_killed_again_and_again(
    straight: tuple[Path, dict[str, Any], int], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kill some random events behind the one before; then typed again, or --resume."""
    folder, given, events = straight
    chance = random.Random(7)
    left = [0]

    def told() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Crash

    watch(monkeypatch, told)
    resumed = 0
    for _ in range(4):
        left[0] = chance.randint(2, events // 3)
        can_resume = any(Path(".gatecli/slim").glob("*.json"))
        resumed += can_resume
        line = ["slim", "--resume"] if can_resume and chance.random() < 0.5 else LINE
        try:
            run(*line)
        except Crash:
            continue
        break
    left[0] = 0
    if '"finished": true' not in Path(".gatecli/slim/r20.slim.json").read_text():
        assert call("slim", "--resume")["out"] == given["out"]
    assert resumed >= 2
    for name in NAMES:
        assert same(f"{name}.safetensors", folder / f"{name}.safetensors")
    assert current() == "r20.slim.safetensors"


def test_sigterm_says_how_to_go_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Loop._step

    def stopping(self: Loop, *args: Any) -> None:
        original(self, *args)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Loop, "_step", stopping)
    done = run(*LINE)
    assert done.code == 130 and done.err.count("error: ") == 1
    assert "gatecli finetune r20.ind-perbatch.safetensors" in done.last
    assert done.last.endswith("go on with: gatecli slim --resume")
    refused("slim --resume --max-gmacs 0.001", "--max-gmacs was 0.002, not 0.001")


def test_sigterm_where_nothing_can_wait(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "write", lambda *args: signal.raise_signal(signal.SIGTERM))
    done = run(*LINE)
    assert (done.code, done.err.count("error: ")) == (130, 1)
    assert "stopped at: gatecli attach r20.pt" in done.last
    assert done.last.endswith("go on with: gatecli slim --resume")


@pytest.mark.slow
def test_gates_that_look_at_images_get_thresholds(here: Path) -> None:
    more = ["--method", "aig-perbatch", "--last-epochs", 1, "--out", "small.safetensors"]
    given = call("slim", "r20.pt", "--data", "npz:data.npz", "--max-drop", 5, *HOW, *more)
    ran = [step["command"].split()[1] for step in given["steps"]]
    assert ran[:4] == ["inspect", "attach", "finetune", "calibrate"]
    before, after = given["rows"]
    drop = before["val_top1"] - after["val_top1"]
    assert given["goal"] == {"name": "max_drop", "asked": 5, "reached": drop, "met": drop <= 5}
    assert Path("small.safetensors").is_file() and current() == "small.safetensors"


GATED = "a.aig-perbatch"
PLAIN = "a.ind-perbatch"
WHERE = "--runtime native --precision fp32"
TRAIN = "--data D --epochs 20 --lr 0.05 --batch-size 64 --schedule cosine"
LAST = "--data D --epochs 5 --lr 0.005 --batch-size 64 --schedule cosine"
PLANS = {
    "--max-ms 3": [
        "inspect a.pt",
        f"profile a.pt --no-sites --repeats 30 {WHERE}",
        "attach a.pt --method aig-perbatch",
        f"price {GATED}.safetensors {WHERE}",
        f"finetune {GATED}.priced.safetensors {TRAIN} --max-ms 3",
        f"calibrate {GATED}.priced.tuned.safetensors --data D --max-ms 3 {WHERE}",
        f"prune {GATED}.priced.tuned.calibrated.safetensors --data D --decide measured {WHERE}",
        f"finetune {GATED}.priced.tuned.calibrated.pruned.safetensors --train weights {LAST}",
        f"calibrate {GATED}.priced.tuned.calibrated.pruned.tuned.safetensors --data D --max-ms 3"
        f" {WHERE} --out a.slim.safetensors",
    ],
    "--max-drop 2 --last-epochs 0": [
        "inspect a.pt",
        "attach a.pt --method aig-perbatch",
        f"finetune {GATED}.safetensors {TRAIN} --max-drop 2",
        f"calibrate {GATED}.tuned.safetensors --data D --target-acc 88",
        f"prune {GATED}.tuned.calibrated.safetensors --data D --out a.slim.safetensors",
    ],
    "--max-drop 0.5": [  # the training has fallen short: nothing for thresholds to reach
        "inspect a.pt",
        "attach a.pt --method aig-perbatch",
        f"finetune {GATED}.safetensors {TRAIN} --max-drop 0.5",
        f"prune {GATED}.tuned.safetensors --data D",
        f"finetune {GATED}.tuned.pruned.safetensors --train weights {LAST} --out"
        " a.slim.safetensors",
    ],
    "--max-gmacs .5 --method ind-perbatch": [  # no training is sure to meet a budget
        "inspect a.pt",
        "attach a.pt --method ind-perbatch",
        f"finetune {PLAIN}.safetensors {TRAIN} --max-gmacs 0.5",
        f"calibrate {PLAIN}.tuned.safetensors --data D --max-gmacs 0.5",
        f"prune {PLAIN}.tuned.calibrated.safetensors",
        f"finetune {PLAIN}.tuned.calibrated.pruned.safetensors --train weights {LAST} --out"
        " a.slim.safetensors",
    ],
}


def commands(monkeypatch: pytest.MonkeyPatch, words: str, finished: float = 90.0) -> list[str]:
    """The commands of a slim, none of which is run; the last training ends with this top-1."""
    taken: list[str] = []

    def take(self: Road, line: str, *, out: Path | None = None, **given: Any) -> dict[str, Any]:
        if line.startswith("profile a.slim"):
            raise Crash
        taken.append(line)
        row = {"latency_ms": {"1": {"median": 9.0}}}
        top1 = finished if "--train weights" in line else 89.0
        facts = {"macs_dense": 1e9, "sites": [], "baseline_top1": 90.0, "top1": top1}
        kept = ["x"] if "aig" in words else []
        return {**facts, "kept_dynamic": kept, "out": str(out), "rows": [row, row]}

    monkeypatch.setattr(Road, "take", take)
    monkeypatch.setattr(Slimming, "_asks_images", lambda self, path: "aig" in words)
    save_source(Path("a.pt"))
    with pytest.raises(Crash):
        run(*f"slim a.pt --data D {words}".split())
    return taken


@pytest.mark.parametrize("goal", PLANS)
def test_commands(here: Path, monkeypatch: pytest.MonkeyPatch, goal: str) -> None:
    """Thresholds are chosen before prune, and again behind the last training if gates stay."""
    method = "" if "--method" in goal else "--method aig-perbatch "
    assert commands(monkeypatch, f"{method}{goal}") == PLANS[goal]


@pytest.mark.parametrize("finished", [88.9, 89.0])
def test_a_last_training_that_harms_is_left_out(
    here: Path, monkeypatch: pytest.MonkeyPatch, finished: float
) -> None:
    *_, last = commands(monkeypatch, "--max-gmacs .5", finished)
    again = last.startswith("prune") and last.endswith("--out a.slim.safetensors --force")
    assert again == (finished < 89)


def test_stopped_behind_a_last_training_that_harms(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is written twice: by the training, and by prune once more."""
    line = [*LINE, "--last-epochs", 1]
    finish = Slimming._finish

    def harming(self: Slimming, pruned: Path, *, last: bool = True) -> dict[str, Any]:
        return {**finish(self, pruned, last=last), "top1": -1.0}

    def crash(self: Road) -> None:
        raise Crash

    monkeypatch.setattr(Slimming, "_finish", harming)
    with monkeypatch.context() as patch:
        patch.setattr(Road, "finish", crash)
        with pytest.raises(Crash):
            run(*line)
    written = Path("r20.slim.safetensors").read_bytes()
    done = run(*line)
    assert done.code == 0 and "so the result is what prune had left" in done.err
    assert done.err.count("(done before)") >= 6
    assert Path("r20.slim.safetensors").read_bytes() == written


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "expected one of --max-drop, --max-gmacs and --max-ms, but got none of them"),
        ("--max-gmacs 1 --max-ms 3", "but got --max-gmacs 1 and --max-ms 3"),
        ("--max-drop 1 --max-ms 3", "but got --max-drop 1 and --max-ms 3"),
        ("--max-drop -1", "expected --max-drop to be between 0 and 100"),
        ("--max-gmacs nan", "--max-gmacs"),
        ("--max-gmacs 1", "the source meets --max-gmacs 1 as it is, with 0.002551 GMACs"),
        ("--max-ms 100000", "the source meets --max-ms 100000 as it is"),
        ("--max-drop 1 --method dgate", "whose rate follows from a goal, but dgate has none"),
        ("--max-drop 1 --method nosuch", "nosuch"),
        ("--max-drop 1 --kind nosuch", "nosuch"),
        ("--max-drop 1 --set nosuch=1", "nosuch"),
        ("--max-drop 1 --runtime nosuch", "nosuch"),
        ("--max-drop 1 --lr -1", "--lr"),
        ("--max-drop 1 --out r20.pt", "r20.pt is the input"),
        ("--max-drop 1 --recipe none.yaml", "cannot read none.yaml"),
        ("--resume", "nothing unfinished to resume"),
    ],
)
def test_bad_input(here: Path, words: str, said: str) -> None:
    line = f"slim r20.pt --data npz:data.npz --input-size {SIDE} {words}"
    refused("slim --resume" if words == "--resume" else line, said)
    assert not list(Path(".gatecli").glob("slim/*.json"))


def test_what_is_not_named(here: Path) -> None:
    refused("slim r20.pt --max-drop 1", "expected a data set: --data DATA, but none is named")
    refused("slim --data npz:data.npz --max-drop 1", "expected a checkpoint, but none is named")
    refused("slim none.pt --data npz:data.npz --max-drop 1", "none.pt does not exist")
    Path("r20.ind-perbatch.tuned.safetensors").write_text("mine")
    refused(LINE, "r20.ind-perbatch.tuned.safetensors exists already")


RECIPE = """
checkpoint: r20.pt
data: npz:data.npz
max-gmacs: 0.9
set: {gate_lr: 150, short_run: 0}
kind: [block]
epochs: 2
batch_size: 32
input-size: 8
mean: [0.5, 0.5, 0.5]
std: 0.5,0.5,0.5
seed: 3
"""


def test_a_recipe_says_the_same(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All options, in their usual spelling; what is typed comes first."""
    Path("r.yaml").write_text(RECIPE)
    refused("slim --recipe r.yaml", "the source meets --max-gmacs 0.9")
    taken: list[str] = []

    def take(self: Road, line: str, **given: Any) -> dict[str, Any]:
        taken.append(f"{line} [{self.session.seed}]")
        if line.startswith("inspect"):
            return {"macs_dense": 2_551_424, "sites": []}
        raise Crash

    monkeypatch.setattr(Road, "take", take)
    with pytest.raises(Crash):
        run("slim", "--recipe", "r.yaml", "--max-gmacs", 0.002, "--seed", 5)
    reading = "--input-size 8 --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5"
    assert taken == [
        f"inspect r20.pt {reading} [5]",
        "attach r20.pt --method ind-perbatch --kind block --set gate_lr=150 --set short_run=0"
        f" {reading} [5]",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max-dorp: 1", "key `max-dorp`, which is no option that a recipe can say: did you mean"),
        ("trust-pickle: true", "key `trust-pickle`, which is no option that a recipe can say"),
        ("epochs: many", "r.yaml: `epochs`: "),
        ("epochs: 2.5", "`epochs`"),
        ("epochs:", "expected `epochs` in r.yaml to be a text, a number"),
        ("epochs: [[1]]", "expected `epochs` in r.yaml to be a text, a number"),
        ("- 1", "expected r.yaml to hold options, a line each"),
        ("", "expected r.yaml to hold options, a line each"),
        ("a: [1", "expected r.yaml to be YAML"),
        ("!!python/object/apply:os.system ['touch hacked']", "expected r.yaml to be YAML"),
        ("data: my.module:function", "names code, `my.module:function`"),
        ("arch: my.module:function", "names code, `my.module:function`"),
    ],
)
def test_bad_recipes(here: Path, text: str, said: str) -> None:
    Path("r.yaml").write_text(text)
    refused("slim r20.pt --max-drop 1 --recipe r.yaml", said)


def test_a_damaged_state_is_named(here: Path) -> None:
    Path(".gatecli/slim").mkdir(parents=True)
    state = Path(".gatecli/slim/r20.slim.json")
    for text in ("", "[]", '{"format": 9}', '{"format": 1, "done": [{}]}'):
        state.write_text(text)
        refused("slim --resume", ".gatecli/slim/r20.slim.json is damaged")
        refused(LINE, ".gatecli/slim/r20.slim.json is damaged")


def test_a_state_s_word_is_not_enough(here: Path) -> None:
    """For code, for files elsewhere; and what it says is read as a recipe is."""
    state = '{"format": 1, "done": [], "threads": 1, "begun": "", "out": "", "finished": false,'
    Path(".gatecli/slim").mkdir(parents=True)
    for told, said in (
        ('"data": "os:getcwd"', "names code, `os:getcwd`"),
        ('"arch": "os:getcwd"', "type --arch os:getcwd"),
        ('"out": "/tmp/x.safetensors"', "say it again with --out /tmp/x.safetensors"),
        ('"epochs": "many"', "`epochs`"),
        ('"trust-pickle": "yes"', "no option that a recipe can say"),
    ):
        Path(".gatecli/slim/r20.slim.json").write_text(f'{state} "about": {{{told}}}}}')
        refused("slim --resume", "r20.slim.json", said)


def test_weights_alone(here: Path) -> None:
    """Any network is trained so: a plain one, and one whose gates then decide as they do."""
    train = ["--train", "weights", "--data", "npz:data.npz", "--epochs", 1, "--batch-size", 32]
    plain = call("finetune", "r20.pt", *train, "--lr", 0.05, "--input-size", SIDE)
    assert (plain["target_rate"], plain["achieved_rate"], plain["rates"]) == (None, 1.0, {})
    assert plain["chosen"] == "best: epoch 1, the highest val top-1"
    old = torch.load("r20.pt", weights_only=True)
    new, recipe = contents(plain["out"])
    assert not torch.equal(old["conv1.weight"], new["conv1.weight"])
    assert recipe["steps"][0]["settings"]["method"] == "weights"
    gated = call("attach", "r20.pt", "--method", "aig-perbatch", "--input-size", SIDE)["out"]
    tuned = call("finetune", gated, *train)["out"]
    before, after = contents(gated)[0], contents(tuned)[0]
    for name in before:
        is_gate = name.startswith("gates.")
        assert torch.equal(before[name], after[name]) or not is_gate
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])


def test_weights_alone_bad_input(here: Path) -> None:
    line = "finetune r20.pt --data npz:data.npz --epochs 1 --input-size 8 --train weights"
    refused(f"{line} --set target_rate=.5", "--train weights has no settings")
    refused(f"{line} --max-drop 1", "find the rate of layer gates alone, but weights are trained")
    refused(f"{line},dgate", "expected one of them, but got `weights,dgate`")
    source = gatecli.load("r20.pt", input_size=(SIDE, SIDE))
    with pytest.raises(TrainingError, match="for networks without exits, but this one has exit1"):
        check_no_exits(gatecli.attach(source, "dgate").network)
