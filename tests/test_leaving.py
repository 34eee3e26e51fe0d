"""What trains early-exit's exits: the target, cross-entropy on all images, and older files' way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import SIDE, call, contents, refused, save_npz, save_source
from networks import CASES
from torch import Tensor, nn
from torch.nn import functional as F

import gatecli
from gatecli import methods
from gatecli.gates.observe import Record, record_answers
from gatecli.methods.early_exit import EarlyExitSettings
from gatecli.methods.losses import MIRRORED, distance
from gatecli.network.forms import watching_end
from gatecli.training.trained import Trained

METHOD = methods.get("early-exit")
OBJECTIVE = METHOD.objective
FIRST = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
SECOND = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
# what files without these settings mean
OLD = {"supervise": 0.0, "supervise_end": 0.0, "rate_of": "all"}


def settings_of(**given: Any) -> EarlyExitSettings:
    return methods.parse_settings(METHOD, given)


def loss_of(decisions: dict[str, Tensor], targets: dict[str, float], **given: Any) -> Tensor:
    found: Tensor = OBJECTIVE.loss(decisions, settings_of(**given), targets)
    return found


# --- the target ---


def test_the_loss_punishes_leaving_too_rarely_only() -> None:
    """share_e = z_e * prod(1 - earlier z), worked out sample by sample.

    Quadratic below t, zero above.
    """
    decisions, targets = {"exit1": FIRST, "exit2": SECOND}, {"exit1": 0.4, "exit2": 0.2}
    found = loss_of(decisions, targets, loss_weight=3, rate_of="all")
    left_at_first, left_at_second = 1 / 4, 1 / 4  # the first image has left before the second exit
    assert found.item() == pytest.approx(3 * ((left_at_first - 0.4) ** 2 + 0.0) / 2)
    assert left_at_second > 0.2
    found_at = [distance(torch.tensor(rate), 0.3, MIRRORED).item() for rate in (0.1, 0.3, 0.9)]
    assert found_at == pytest.approx([0.04, 0, 0])


def test_by_default_the_target_is_one_for_those_that_come_by() -> None:
    """Three images come to the second exit, and one of them leaves there."""
    decisions, targets = {"exit1": FIRST, "exit2": SECOND}, {"exit1": 0.4, "exit2": 0.5}
    found = loss_of(decisions, targets, loss_weight=3)
    assert found.item() == pytest.approx(3 * ((1 / 4 - 0.4) ** 2 + (1 / 3 - 0.5) ** 2) / 2)
    assert loss_of(decisions, {"exit1": 0.2, "exit2": 0.33}).item() == 0


@pytest.mark.parametrize("rate_of", ["comers", "all"])
def test_the_rates_by_loops(rate_of: str) -> None:
    draw = torch.Generator().manual_seed(3)
    decisions = {f"exit{n}": (torch.rand(17, 1, generator=draw) < 0.4).float() for n in range(4)}
    here, total = set(range(17)), 0.0
    for z in decisions.values():
        leaving = {image for image in here if z[image, 0] == 1}
        rate = len(leaving) / (len(here) if rate_of == "comers" else 17)
        total += min(0.0, rate - 0.9) ** 2
        here -= leaving
    found = loss_of(decisions, dict.fromkeys(decisions, 0.9), rate_of=rate_of, loss_weight=1)
    assert found.item() == pytest.approx(total / 4)


def test_an_exit_that_nobody_comes_to_adds_nothing() -> None:
    first = torch.ones(4, 1, requires_grad=True)
    second = torch.zeros(4, 1, requires_grad=True)
    found = loss_of({"exit1": first, "exit2": second}, {"exit1": 0.3, "exit2": 0.3})
    assert found.item() == 0
    found.backward()  # type: ignore[no-untyped-call]
    for z in (first, second):
        assert z.grad is not None and not bool(z.grad.any())


def test_an_exit_sends_nobody_away_for_a_later_one_s_rate() -> None:
    first, second = FIRST.clone().requires_grad_(), SECOND.clone().requires_grad_()
    loss_of({"exit1": first, "exit2": second}, {"exit1": 0.0, "exit2": 0.9}).backward()  # type: ignore[no-untyped-call]
    assert first.grad is not None and not bool(first.grad.any())
    assert second.grad is not None
    assert second.grad[:, 0].tolist() == pytest.approx([0, *[2 * (1 / 3 - 0.9) / 3] * 3])


def test_what_was_achieved_is_what_the_target_means() -> None:
    network = gatecli.attach(CASES["cifar-projection"].network(), "early-exit", width=4).network
    trained = Trained(METHOD, settings_of())
    rates = {"exit1": [0.2], "exit2": [0.4]}
    assert trained.achieved(network, rates) == pytest.approx((0.2 + 0.5) / 2)
    # nobody comes to the second, up to rounding
    assert trained.achieved(network, {"exit1": [1 - 1e-8], "exit2": [0.0]}) == pytest.approx(1)
    of_all = Trained(METHOD, settings_of(rate_of="all"))
    assert of_all.achieved(network, rates) == pytest.approx(0.3)


def test_exits_of_another_method_count_as_left_before() -> None:
    first = gatecli.attach(CASES["cifar-projection"].network(), "dgate", include=["exit1"]).network
    network = gatecli.attach(first, "early-exit", width=4, include=["exit2"]).network
    trained = Trained(METHOD, settings_of())
    assert trained.achieved(network, {"exit1": [0.5], "exit2": [0.2]}) == pytest.approx(0.4)


# --- the classifiers ---


def test_supervision_is_the_mean_loss_of_the_exits() -> None:
    losses, end = {"exit1": torch.tensor(2.0), "exit2": torch.tensor(4.0)}, torch.tensor(8.0)
    supervision = OBJECTIVE.traits.supervision
    for weights, expected in (((0.5, 0.25), 3.5), ((0.5, 0), 1.5), ((0, 0.25), 2.0)):
        settings = settings_of(supervise=weights[0], supervise_end=weights[1])
        assert float(supervision(losses, end, settings)) == pytest.approx(expected)
    endless = torch.tensor(torch.inf)
    without = settings_of(supervise=0, supervise_end=0)
    assert supervision({"exit1": endless}, endless, without) == 0  # and not 0 * inf


def test_answers_are_those_to_all_images() -> None:
    case = CASES["cifar-projection"]
    network = gatecli.attach(case.network(), "early-exit", width=4).network
    values, end = network.at_exits(case.images(5))
    network.train()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    record = Record()
    images = case.images(5)
    everybody = {site: [1.0] for site in network.site_exits}
    with (
        record_answers(network, record),
        watching_end(network, record.see_end),
        gatecli.force(network, everybody),  # leaves at the first
    ):
        left = network(images)
    for site, exit_ in network.site_exits.items():
        torch.testing.assert_close(record.answers[site], exit_.classify(values[site]))
    torch.testing.assert_close(record.end, end)
    torch.testing.assert_close(left, record.answers["exit1"])
    record.clear()
    network(images)
    assert not record.answers and record.end is None


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`gated.safetensors`, whose gates let nobody leave, and 64 images to train it with."""
    monkeypatch.chdir(tmp_path)
    save_source(tmp_path / "r20.pt")
    save_npz(tmp_path / "data.npz", train=64, val=20)
    how = ["--set", "width=4", "--input-size", SIDE, "--out", "a.safetensors"]
    call("attach", "r20.pt", "--method", "early-exit", *how)
    network = gatecli.load("a.safetensors")
    with torch.no_grad():
        for site in network.site_exits:
            network.get_parameter(f"exits.{site}.decide.bias").copy_(torch.tensor([50.0, 0.0]))
    gatecli.write(network, tmp_path / "gated.safetensors")
    return tmp_path


def tune(source: str, *words: object, out: str = "out.safetensors") -> dict[str, Any]:
    """An epoch of training, without weight decay."""
    how = ["--data", "npz:data.npz", "--augment", "none", "--epochs", 1, "--weight-decay", 0]
    how += ["--bn-batches", 0, "--batch-size", 32, "--lr", 0.02]
    return call("finetune", source, *how, *words, "--out", out, "--force")


@pytest.mark.parametrize("supervise", [0, 1])
def test_a_classifier_learns_where_nobody_leaves(here: Path, supervise: int) -> None:
    before = contents("gated.safetensors")[0]
    tune("gated.safetensors", "--set", f"supervise={supervise}")
    after = contents("out.safetensors")[0]
    for site in ("exit1", "exit2"):
        for part in ("0.weight", "4.bias", "8.weight"):
            name = f"exits.{site}.classifier.{part}"
            assert torch.equal(before[name], after[name]) == (supervise == 0), name


def test_the_loss_has_the_exits_cross_entropy_on_all_images(here: Path) -> None:
    """One batch that moves nothing; what is added to its loss, by torch's functions."""
    still = ["--batch-size", 64, "--lr", 0, "--label-smoothing", 0.2]
    losses = []
    for weight in (0, 1.5):
        tuned = tune("gated.safetensors", *still, "--set", f"supervise={weight}")
        losses.append(tuned["history"][0]["train_loss"])
    network = gatecli.load("out.safetensors").train()
    data = np.load("data.npz")
    x = torch.from_numpy(data["train_images"]).float()[:, None].repeat(1, 3, 1, 1) / 255
    spec = network.input
    x = (x - torch.tensor(spec.mean)[:, None, None]) / torch.tensor(spec.std)[:, None, None]
    y = torch.from_numpy(data["train_labels"]).long()[:, 0]
    total = 0.0
    for exit_ in network.site_exits.values():
        seen: list[Tensor] = []
        hook = exit_.register_forward_pre_hook(lambda _, given, kept=seen: kept.append(given[0]))
        network(x)
        hook.remove()
        total += F.cross_entropy(exit_.classify(seen[0]), y, label_smoothing=0.2).item()
    assert losses[1] - losses[0] == pytest.approx(1.5 * total / 2, rel=1e-4)


# --- what files and users say ---


def test_defaults() -> None:
    settings = settings_of()
    assert (settings.supervise, settings.loss_weight, settings.rate_of) == (1.0, 2.0, "comers")


def test_older_files_go_on_as_they_were_trained(here: Path) -> None:
    network = gatecli.load("gated.safetensors")
    step = network.recipe.steps[0]
    stored = step.settings["settings"]
    assert stored["supervise"] == 1.0 and stored["rate_of"] == "comers"
    old = {name: value for name, value in stored.items() if name not in OLD}
    for name, settings in (("old", old), ("said", {**old, **OLD})):
        steps = (replace(step, settings={**step.settings, "settings": settings}),)
        network.recipe = replace(network.recipe, steps=steps)
        gatecli.write(network, here / f"{name}.safetensors")
        tune(f"{name}.safetensors", out=f"{name}.tuned.safetensors")
    found = methods.recorded_settings(METHOD, old)
    assert {name: getattr(found, name) for name in OLD} == OLD
    first, second = (contents(f"{name}.tuned.safetensors")[0] for name in ("old", "said"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    tune("old.safetensors", "--set", "supervise=1", "--set", "rate_of=comers")  # not for ever
    third = contents("out.safetensors")[0]
    assert not torch.equal(
        first["exits.exit1.classifier.8.weight"], third["exits.exit1.classifier.8.weight"]
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("supervise=-1", "expected setting `supervise` to be between 0 and 1e+30, but got `-1`"),
        ("supervise=yes", "expected setting `supervise` to be a number, but got `yes`"),
        ("supervise=nan", "expected setting `supervise` to be a number"),
        ("rate_of=some", "expected setting `rate_of` to be one of comers, all, but got `some`"),
    ],
)
def test_what_is_no_setting_is_refused(here: Path, given: str, message: str) -> None:
    refused(f"attach r20.pt --method early-exit --set {given} --out no.safetensors", message)
    refused(
        f"finetune gated.safetensors --data npz:data.npz --set {given} --out no.safetensors",
        message,
    )
