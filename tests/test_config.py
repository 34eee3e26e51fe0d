"""finetune --config, and gatecli log --config, which prints such a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import SIDE, call, refused, run, save_npz, save_source

from gatecli.cli import finetune as command
from gatecli.cli.begun import Begun


class Taken(BaseException):
    """Ends a command where the training would begin."""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    save_npz(folder / "data.npz", train=32, val=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_source(folder / "r20.pt")
        attach = ["attach", "r20.pt", "--method", "ind-perbatch", "--input-size", SIDE]
        call(*attach, "--out", "gated.safetensors")
    return folder


@pytest.fixture
def here(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "gated.safetensors").write_bytes((shelf / "gated.safetensors").read_bytes())
    (tmp_path / "data.npz").write_bytes((shelf / "data.npz").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def begun_by(monkeypatch: pytest.MonkeyPatch, *line: object) -> Begun:
    """What a run would be begun with."""
    taken: list[Begun] = []

    def take(session: Any, begun: Begun, **given: Any) -> None:
        taken.append(begun)
        raise Taken

    with monkeypatch.context() as patch, pytest.raises(Taken):
        patch.setattr(command, "_opened", take)
        run("finetune", *line)
    return taken[0]


WRITTEN = """
checkpoint: gated.safetensors
data: npz:data.npz
out: small.safetensors
set: {target_rate: 0.3, gate_lr: 2}
epochs: 3
batch_size: 16
lr: 1e-2
optimizer: adamw
accumulate: 2
ema: 0.5
clip-grad: 1
milestones: [1, 2]
sync-norms: true
nesterov: no
seed: 5
input-size: 8
"""


def test_what_is_typed_comes_first(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("c.yaml").write_text(WRITTEN)
    typed = ["--lr", 0.5, "--set", "gate_lr=9", "--seed", 6]
    begun = begun_by(monkeypatch, "--config", "c.yaml", *typed)
    assert begun.checkpoint == "gated.safetensors" and begun.out == "small.safetensors"
    assert begun.data == f"npz:{here / 'data.npz'}"
    assert begun.settings == {"target_rate": "0.3", "gate_lr": "9"}
    said = {"epochs": 3, "batch_size": 16, "accumulate": 2, "ema": 0.5, "clip_grad": 1.0}
    said |= {"optimizer": "adamw", "milestones": "1,2", "sync_norms": True, "nesterov": False}
    said |= {"lr": 0.5, "seed": 6, "momentum": 0.9}
    assert {name: begun.options[name] for name in said} == said
    assert begun.reading["input_size"] == "8"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr: [1, 2]", "c.yaml: `lr`: "),
        ("epochs: 2.5", "`epochs`"),
        ("set: 3", "expected --set name=value, but got `3`"),
        ("- 1", "expected c.yaml to hold options, a line each"),
        ("optimiser: adamw", "did you mean `optimizer`?"),
        ("processes: 2", "`processes`, which is no option that a recipe can say"),
        ("lr: 1\nepochs: 2\nlr: 2", "say each option once, but it says `lr` and then `lr`"),
        ("batch-size: 8\nbatch_size: 9", "it says `batch-size` and then `batch_size`"),
        ("set: {gate_lr: 1, gate_lr: 2}", "it says `gate_lr` and then `gate_lr`"),
        ("seed: -1", "expected --seed to be between 0 and"),
        ("threads: 0", "expected --threads to be between 1 and"),
        ("ema: 2", "expected --ema to be between 0 and 1"),
        ("data: my.module:function", "names code, `my.module:function`"),
        ("data: {1: [2]}", "expected `data` in c.yaml"),
    ],
)
def test_files_that_are_refused(here: Path, text: str, said: str) -> None:
    Path("c.yaml").write_text(text)
    refused("finetune gated.safetensors --config c.yaml", said)


def test_a_resumed_run_has_options_of_its_own(here: Path) -> None:
    Path("c.yaml").write_text("lr: 1")
    refused("finetune --resume --config c.yaml", "leave --config out")


def test_a_run_as_a_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Printed, and given back, it begins the same training."""
    refused("log gated.safetensors --config", "has not been trained by gatecli finetune")
    line = ["gated.safetensors", "--data", "npz:data.npz", "--epochs", 2, "--batch-size", 16]
    line += ["--bn-batches", 0, "--optimizer", "adamw", "--lr", 1e-5, "--milestones", "1"]
    line += ["--set", "loss_form=const-quad", "--set", "gate_lr=0.02", "--ema", 0.5, "--seed", 3]
    first = begun_by(monkeypatch, *line)
    out = call("finetune", *line)["out"]
    done = run("log", out, "--config")
    assert done.code == 0
    Path("c.yaml").write_text(done.out)
    again = begun_by(monkeypatch, "gated.safetensors", "--config", "c.yaml", "--out", "x")
    assert again.settings == {"loss_form": "const-quad", "gate_lr": "0.02"} == first.settings
    assert (again.options, again.data) == (first.options, first.data)
    assert call("log", out, "--config")["config"] == yaml.safe_load(done.out)


@pytest.mark.parametrize("number", range(2))
def test_the_recipes_of_the_documentation_train(here: Path, number: int) -> None:
    text = (Path(__file__).parent.parent / "docs/recipes.md").read_text(encoding="utf-8")
    Path("c.yaml").write_text(text.split("```yaml")[1 + number].split("```")[0])
    assert text.count("```yaml") == 2
    short = ["--epochs", 1, "--warmup", 0, "--batch-size", 8, "--bn-batches", 0]
    done = call(
        "finetune", "gated.safetensors", "--data", "npz:data.npz", *short, "--config", "c.yaml"
    )
    options = call("log", done["out"], "--config")["config"]
    written = yaml.safe_load(Path("c.yaml").read_text())
    told = {"epochs": 1, "warmup": 0, "batch-size": 8, "bn-batches": 0}
    for name, value in {**written, **told}.items():
        assert options[name] == value or options[name] == float(value), name


def test_what_a_file_must_not_say_is_a_comment(here: Path) -> None:
    from gatecli.cli.config import config_text

    text = config_text({"data": "my.module:function", "lr": 0.1, "distill": 1.0})
    assert "# names code, so it is to be typed: --data my.module:function\n" in text
    assert "--teacher FILE" in text and yaml.safe_load(text) == {"lr": 0.1, "distill": 1.0}
