"""The command line end to end: the whole road, its JSON, its files."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commandline import SIDE, call, contents, current, refused, run, same, save_npz, save_source

import gatecli

TRAIN = ["--epochs", 2, "--batch-size", 32, "--lr", 0.05]
PUSH = ["--set", "target_rate=0.4", "--set", "gate_lr=20", "--set", "loss_weight=4"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_source(Path("r20.pt"))
    save_npz(Path("d.npz"))
    return tmp_path


@pytest.mark.parametrize("method", ["ind-perbatch", "aig-perbatch"])
def test_the_whole_road(here: Path, method: str) -> None:
    source = Path("r20.pt").read_bytes()
    seen = call("inspect", "r20.pt", "--input-size", SIDE)
    assert (seen["arch"], seen["num_classes"], seen["input_size"], len(seen["sites"])) == ("cifar:resnet20", 10, [SIDE, SIDE], 9)
    assert all(set(site) >= {"name", "kind", "units", "macs", "method"} for site in seen["sites"])

    attached = call("attach", "r20.pt", "--method", method, *PUSH, "--input-size", SIDE)
    assert attached["out"] == f"r20.{method}.safetensors" == current()
    assert (attached["gates"], attached["units"], attached["method"]) == (9, 9, method)
    assert attached["max_logit_change"] <= 1e-5 and attached["params"] > seen["params"]

    tuned = call("finetune", "--data", "npz:d.npz", *TRAIN)
    assert tuned["out"] == f"r20.{method}.tuned.safetensors" and tuned["checkpoint"] == attached["out"]
    assert set(tuned["rates"]) == {site["name"] for site in seen["sites"]} and len(tuned["history"]) == tuned["epochs"] == 2
    assert tuned["achieved_rate"] == pytest.approx(sum(tuned["rates"].values()) / 9) and tuned["target_rate"] == 0.4
    assert tuned["macs_expected"] < tuned["macs_dense"] and tuned["achieved_rate"] < 1

    scores = {s: call("eval", "--strategy", s) for s in ("threshold", "stochastic", "always-on", "ensemble")}  # data remembered
    assert scores["threshold"]["top1"] == pytest.approx(tuned["top1"]) and scores["threshold"]["split"] == "val"
    assert "top1_std" in scores["stochastic"] and "top1_std" not in scores["threshold"]
    assert set(scores["always-on"]["rates"].values()) == {1.0}
    assert call("eval", "--split", "test")["split"] == "test"

    pruned = call("prune", "--threshold", 0.5, "--static", 0.5) if method.startswith("aig") else call("prune", "--threshold", 0.5)
    assert pruned["out"] == f"r20.{method}.tuned.pruned.safetensors" and pruned["removed"] and not pruned["kept_dynamic"]
    assert pruned["params"] < pruned["params_before"] and pruned["macs_dense"] < pruned["macs_before"] and pruned["max_logit_change"] <= 1e-5
    assert Path(pruned["out"]).stat().st_size < Path(tuned["out"]).stat().st_size
    assert not [name for name in contents(pruned["out"])[0] if name.startswith("gates.")]
    refused(["finetune", *TRAIN], "no gates")

    profiled = call("profile", tuned["out"], pruned["out"], "--batch", "1,4", "--repeats", 3)
    assert [row["name"] for row in profiled["rows"]] == ["r20.pt", tuned["out"], pruned["out"]]
    first, last = profiled["rows"][0], profiled["rows"][-1]
    assert (first["params"], first["macs_dense"], first["file_bytes"]) == (seen["params"], seen["macs_dense"], len(source))
    assert first["speedup"] == first["ideal_speedup"] == first["realised"] == 1
    assert set(last["latency_ms"]) == {"1", "4"} and set(last["latency_ms"]["1"]) == {"median", "p95", "min"}
    assert last["ideal_speedup"] == pytest.approx(seen["macs_dense"] / pruned["macs_dense"]) and last["realised"] == pytest.approx(last["speedup"] / last["ideal_speedup"])
    assert call("profile", tuned["out"], "--data", "npz:d.npz", "--repeats", 3)["decisions"] == "measured"

    steps = call("log")["steps"]
    assert [step["op"] for step in steps] == ["attach", "finetune", "prune"]
    assert Path("r20.pt").read_bytes() == source


def test_pruned_and_gated_again(here: Path) -> None:
    call("attach", "r20.pt", "--method", "ind-perbatch", *PUSH, "--input-size", SIDE)
    call("finetune", "--data", "npz:d.npz", *TRAIN)
    once = call("prune")
    again = call("attach", "--method", "aig-perbatch", *PUSH)
    assert again["gates"] == 9 - len(once["removed"]) and again["max_logit_change"] <= 1e-5
    call("finetune", *TRAIN)
    half = call("prune", "--collapse", 0)
    twice = call("prune", "--static", 0.5) if half["kept_dynamic"] else half
    assert not twice["kept_dynamic"] and gatecli.load(twice["out"])(torch.randn(2, 3, SIDE, SIDE)).shape == (2, 10)


def test_same_seed_same_file(here: Path) -> None:
    call("attach", "r20.pt", "--method", "aig-perbatch", *PUSH, "--input-size", SIDE, "--out", "g.safetensors")
    for name in ("a", "b"):
        call("finetune", "g.safetensors", "--data", "npz:d.npz", *TRAIN, "--out", f"{name}.safetensors", "--seed", 3)
    call("finetune", "g.safetensors", "--data", "npz:d.npz", *TRAIN, "--out", "c.safetensors", "--seed", 4)
    assert same("a.safetensors", "b.safetensors")
    assert not same("a.safetensors", "c.safetensors")


def test_use_and_log_and_force(here: Path) -> None:
    call("attach", "r20.pt", "--method", "ind-perbatch", "--input-size", SIDE, "--out", "one.safetensors")
    call("attach", "r20.pt", "--method", "ind-perbatch", "--input-size", SIDE, "--out", "two.safetensors")
    assert current() == "two.safetensors"
    assert call("use", "one.safetensors")["checkpoint"] == "one.safetensors" == current()
    refused(["attach", "r20.pt", "--method", "ind-perbatch", "--input-size", SIDE, "--out", "two.safetensors"], "two.safetensors", "--force")
    call("attach", "r20.pt", "--method", "ind-perbatch", "--input-size", SIDE, "--out", "two.safetensors", "--force")
    refused(["attach", "two.safetensors", "--method", "ind-perbatch", "--out", "two.safetensors", "--force"], "input")


def test_a_network_of_ones_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mynets.py").write_text(
        "from torch import nn\n"
        "class Block(nn.Module):\n"
        "    def __init__(self, c):\n"
        "        super().__init__()\n"
        "        self.body = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, c, 1))\n"
        "    def forward(self, x):\n"
        "        return x + self.body(x)\n"
        "def small(width=8, num_classes=10):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3), Block(width), Block(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))\n"
    )
    monkeypatch.syspath_prepend(str(here))
    import mynets  # type: ignore[import-not-found]

    torch.save(mynets.small(12).state_dict(), "mine.pt")
    names = ["--arch", "mynets:small", "--arch-arg", "width=12", "--input-size", SIDE]
    made = call("attach", "mine.pt", "--method", "ind-perbatch", *names, "--out", "g.safetensors")
    assert (made["gates"], made["arch"]) == (2, "mynets:small")
    refused(["inspect", "g.safetensors"], "mynets:small", "--arch")
    assert call("inspect", "g.safetensors", "--arch", "mynets:small")["params"] == made["params"]


def test_people_read_tables_scripts_read_json(here: Path) -> None:
    done = run("inspect", "r20.pt", "--input-size", SIDE)
    assert done.code == 0 and "layer1.0" in done.out and "FLOPs = 2 x MACs" in done.out
    listed = call("methods")["methods"]
    assert [m["name"] for m in listed] == ["aig-perbatch", "ind-perbatch"] and all(s["help"] for m in listed for s in m["settings"])
    assert "target_rate" in run("methods", "aig-perbatch").out
    assert run("--version").out.strip() == gatecli.__version__
    assert run("--help").code == 0


def test_python_dash_m_and_no_torch_for_help() -> None:
    code = "import sys; sys.argv = ['gatecli', '--help']\nimport runpy\ntry:\n    runpy.run_module('gatecli', run_name='__main__')\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "attach" in done.stdout, done.stderr
