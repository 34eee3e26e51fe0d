"""GaterNet's last layer: neutral as attached, drawn when training begins; and what its noise is."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import SIDE, call, contents, refused, save_npz, save_source
from golden import facts
from networks import CASES, infer
from torch import Tensor
from torch.nn import functional as F

import gatecli
from gatecli import methods
from gatecli.errors import SettingError
from gatecli.gates.observe import strategy
from gatecli.methods.gaternet import FilterGate, GaterNetSettings
from gatecli.methods.gaternet.gater import OPENING, Gater
from gatecli.network import Network
from gatecli.training import Run, TrainOptions
from gatecli.training.loop import Loop
from gatecli.training.trained import trained_methods

CASE = CASES["own"]


@functools.cache
def attached() -> Network:
    return gatecli.attach(CASE.build(), "gaternet", input_size=CASE.size, arch=CASE.arch).network


def gater_of(network: Network) -> Gater:
    gater = network.get_submodule("gater")
    assert isinstance(gater, Gater)
    return gater


def begun(network: Network, seed: int = 0, **changes: Any) -> Network:
    """A copy whose training has begun."""
    copy = network.copy()
    torch.manual_seed(seed)
    methods.get("gaternet").objective.begin(copy, copy.gated_by, GaterNetSettings(**changes))
    return copy


def cosines(weight: Tensor) -> float:
    """The mean cosine between different rows, by loops."""
    rows = weight.detach().tolist()
    found = []
    for number, one in enumerate(rows):
        for other in rows[:number]:
            size = math.sqrt(sum(v * v for v in one) * sum(v * v for v in other))
            found.append(sum(a * b for a, b in zip(one, other, strict=True)) / size)
    return sum(found) / len(found)


# --- the draw ---


@pytest.mark.parametrize(("start", "least", "most"), [("drawn", -0.3, 0.3), ("zeros", 0.9, 1.0)])
def test_rows_no_longer_move_as_one(start: str, least: float, most: float) -> None:
    """After twenty steps of the whole loss."""
    own = GaterNetSettings(start=start)
    objective = methods.get("gaternet").objective
    network = begun(attached(), start=start).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9)
    for step in range(20):
        torch.manual_seed(step)
        with gatecli.record_gates(network) as record:
            logits = network(CASE.images(8, seed=step))
        loss = F.cross_entropy(logits, torch.arange(8) % 5)
        loss = loss + objective.loss(
            record.latest(), own, objective.targets(own, network.gated_by, 0)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert least <= cosines(gater_of(network).fc2.weight) <= most


def test_attach_is_neutral_and_saves_no_more_than_before() -> None:
    network = attached()
    gater = gater_of(network)
    assert gater.neutral and torch.equal(gater.fc2.bias, torch.full_like(gater.fc2.bias, OPENING))
    assert {name for name in network.state_dict() if name.startswith("gater.fc2")} == {
        "gater.fc2.weight",
        "gater.fc2.bias",
    }
    x = CASE.images(4) * 1e4
    limit = 1e-5 * float(infer(CASE.build(), x).abs().max())
    assert float((infer(network, x) - infer(CASE.build(), x)).abs().max()) <= limit


def test_the_draw_is_a_linear_layer_s_and_the_seed_s() -> None:
    weight = gater_of(begun(attached(), seed=4)).fc2.weight
    torch.manual_seed(4)
    expected = torch.empty(weight.shape).uniform_(-1 / math.sqrt(8), 1 / math.sqrt(8))
    assert torch.allclose(weight, expected)
    assert torch.equal(weight, gater_of(begun(attached(), seed=4)).fc2.weight)
    assert not torch.equal(weight, gater_of(begun(attached(), seed=5)).fc2.weight)
    assert not gater_of(attached()).fc2.weight.any()


def test_training_that_goes_on_draws_nothing() -> None:
    network = begun(attached())
    weight = gater_of(network).fc2.weight
    assert torch.equal(gater_of(begun(network, seed=9)).fc2.weight, weight)


def test_zeros_stay_zeros() -> None:
    assert gater_of(begun(attached(), start="zeros")).neutral


def test_a_file_of_an_earlier_version_goes_on_from_zeros() -> None:
    stored = methods.record_settings(GaterNetSettings())
    assert stored.pop("start") == "drawn"
    assert methods.recorded_settings(methods.get("gaternet"), stored).start == "zeros"
    with pytest.raises(SettingError, match="`start` to be one of drawn, zeros, but got `random`"):
        methods.parse_settings(methods.get("gaternet"), {"start": "random"})


def test_an_older_file_may_be_told_to_draw() -> None:
    network = facts.load(facts.HERE / "gaternet.attached.safetensors")
    for changes, start in (({}, "zeros"), ({"start": "drawn"}, "drawn")):
        (each,) = trained_methods(network.recipe, changes, TrainOptions())
        copy = network.copy()
        each.objective.begin(copy, each.sites(copy), each.settings)
        assert gater_of(copy).neutral == (start == "zeros")


# --- through training ---


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_npz(Path("data.npz"), train=64)
    save_source(Path("r20.pt"))
    save_source(Path("gater.pt"), seed=1)
    attach = ("attach", "r20.pt", "--method", "gaternet", "--input-size", SIDE)
    call(*attach, "--gater", "gater.pt", "--out", "gated.safetensors")
    return tmp_path


def tuned(out: str, *words: object) -> Tensor:
    """FC2 after a training whose gater stays as it began."""
    still = ("--set", "gate_lr=0", "--epochs", 1, "--batch-size", 32, "--out", out)
    call("finetune", "gated.safetensors", "--data", "npz:data.npz", *still, *words)
    return contents(out)[0]["gater.fc2.weight"]


def test_the_training_s_seed_draws(here: Path) -> None:
    one = tuned("one.safetensors", "--seed", 1)
    assert abs(cosines(one[:24])) < 0.3
    assert torch.equal(one, tuned("again.safetensors", "--seed", 1))
    assert not torch.equal(one, tuned("two.safetensors", "--seed", 2))
    assert not tuned("zeros.safetensors", "--set", "start=zeros").any()


class Crash(BaseException):
    """What no handler catches, as a kill."""


@pytest.mark.parametrize("count", [1, 2])
def test_a_stopped_training_goes_on_to_the_same_bits(
    here: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    true, calls = Loop._step, []

    def crashing(self: Loop, *args: Any) -> None:
        calls.append(1)
        if len(calls) == count:
            raise Crash
        true(self, *args)

    def training(folder: str) -> dict[str, Tensor]:
        network = gatecli.load("gated.safetensors")
        data = gatecli.load_data("npz:data.npz")
        gatecli.fit(network, data)
        options = gatecli.TrainOptions(epochs=1, batch_size=32, seed=3, save_every=0)
        Path(folder).mkdir(exist_ok=True)
        gatecli.finetune(network, data, options, run=Run(Path(folder), {}))
        return dict(network.state_dict())

    wanted = training("one")
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Loop, "_step", crashing)
        training("two")
    found = training("two")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_gater_that_is_not_trained_stays_as_it_is(here: Path) -> None:
    """Its BatchNorms too, while layer gates beside its filters are trained."""
    call("attach", "gated.safetensors", "--method", "ind-perbatch", "--out", "both.safetensors")
    few = ("--train", "ind-perbatch", "--epochs", 1, "--batch-size", 32, "--bn-batches", 2)
    call("finetune", "both.safetensors", "--data", "npz:data.npz", *few, "--out", "t.safetensors")
    before, after = contents("both.safetensors")[0], contents("t.safetensors")[0]
    names = [name for name in before if name.startswith("gater.")]
    assert names and all(torch.equal(before[name], after[name]) for name in names)
    assert any(not torch.equal(before[name], after[name]) for name in before)


# --- the noise ---


@pytest.mark.parametrize("score", [-2.0, -0.5, 0.0, 1.0, 2.5])
def test_stochastic_draws_what_training_draws(score: float) -> None:
    """P(on) = P(score + N(0, 1) > 0), against the share of a large draw."""
    gate = FilterGate("site", 1, 0).eval()
    scores = torch.full((40_000, 1), score)
    torch.manual_seed(0)
    noisy = float((scores + torch.randn(scores.shape) > 0).float().mean())
    found = gate.probability(scores[:1]).item()
    assert found == pytest.approx(0.5 * (1 + math.erf(score / math.sqrt(2))), abs=1e-6)
    assert found == pytest.approx(noisy, abs=0.01)
    with strategy(gate, "stochastic"):
        assert float(gate(scores).mean()) == pytest.approx(found, abs=0.01)
    assert float(gate(scores).mean()) == float(score > 0)


def test_a_gate_that_never_draws_has_no_stochastic_strategy(here: Path) -> None:
    call("attach", "r20.pt", "--method", "cgnet", "--input-size", SIDE, "--out", "cg.safetensors")
    for name in ("stochastic", "ensemble"):
        words = ["eval", "cg.safetensors", "--data", "npz:data.npz", "--strategy", name]
        refused(words, "threshold or always-on", "draws no decisions")


@pytest.mark.parametrize("start", ["drawn", "zeros"])
def test_the_task_reaches_the_whole_gater_from_the_first_step(start: str) -> None:
    """Zeros let nothing through to the layers before."""
    network = begun(attached(), start=start)
    torch.manual_seed(0)
    logits = network.train()(CASE.images(8))
    F.cross_entropy(logits, torch.arange(8) % logits.shape[1]).backward()
    found = gater_of(network).fc1.weight.grad
    assert found is not None and bool(found.any()) == (start == "drawn")
