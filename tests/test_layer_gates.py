"""Layer gates beside their losses: decay, voting, BatchNorm's statistics, stochastic depth, and how
often each layer runs for each class.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import SIDE, call, refused, run, save_npz, save_source
from networks import CASES, infer
from torch import Tensor, nn

import gatecli
from gatecli import methods
from gatecli.errors import SettingError
from gatecli.gates.observe import record_gates
from gatecli.methods import recorded_settings
from gatecli.methods.layer_gates import DataIndependentGate
from gatecli.methods.stochastic_depth import StochasticDepthGate
from gatecli.network import Network
from gatecli.progress import silent
from gatecli.stages.alike import Counts, Distances
from gatecli.stages.analyse import SiteUse, Use
from gatecli.stages.class_rates import class_rates
from gatecli.stages.evaluate import count_ties, votes
from gatecli.training.norms import decide_in_training, reestimate
from gatecli.training.options import TrainOptions
from gatecli.training.trained import Trained

# --- weight decay ---


def drifted(settings: dict[str, Any]) -> Tensor:
    """A gate's [off, on] after 938 steps in which nothing but weight decay moves it."""
    method = methods.get("ind-pergate")
    chosen = recorded_settings(method, {"gate_lr": 3, **settings})
    network = gatecli.attach(CASES["own"].network(), "ind-pergate").network
    (group, *_) = Trained(method=method, settings=chosen).groups(network, TrainOptions())
    gate = DataIndependentGate("x")
    how = {"lr": group["base_lr"], "weight_decay": group["weight_decay"]}
    optimizer = torch.optim.SGD([gate.logits], momentum=0.9, **how)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 938)
    for _ in range(938):
        gate.logits.grad = torch.zeros_like(gate.logits)
        optimizer.step()
        schedule.step()
    return gate.logits.detach()[0]


def test_decay_alone_does_not_move_two_logits() -> None:
    """A file of before, which records no decay of their own, goes on as it did."""
    torch.testing.assert_close(drifted({"gate_weight_decay": 0.0}), torch.tensor([0.1, 4.0]))
    off, on = drifted({"gate_weight_decay": None}).tolist()
    assert (off, on) == (pytest.approx(0.02, abs=0.01), pytest.approx(0.98, abs=0.1))
    assert torch.equal(drifted({}), drifted({"gate_weight_decay": None}))
    fresh = {name: methods.get(name).about.settings() for name in methods.names()}
    for loss in ("pergate", "perbatch"):
        assert fresh[f"ind-{loss}"].gate_weight_decay == 0.0
        assert fresh[f"aig-{loss}"].gate_weight_decay is None  # as in the authors' code


# --- voting ---


def test_votes_are_counted_and_ties_go_to_the_mean_probability() -> None:
    generator = torch.Generator().manual_seed(0)
    answers = (2 * torch.randn(5, 200, 4, generator=generator)).double().softmax(2)
    ties = 0
    found = votes(answers).argsort(1, descending=True).tolist()
    for image in range(200):
        named = Counter(answers[:, image].argmax(1).tolist())
        mean = answers[:, image].mean(0).tolist()
        ranked = sorted(range(4), key=lambda k: (named[k], mean[k]), reverse=True)
        assert found[image] == ranked
        most = max(named.values())
        ties += sum(count == most for count in named.values()) > 1
    assert count_ties(answers) == ties > 0


def test_voting_is_not_averaging() -> None:
    """Three lukewarm answers outvote two sure ones."""
    answers = torch.tensor([[[0.6, 0.4]]] * 3 + [[[0.0, 1.0]]] * 2, dtype=torch.float64)
    assert votes(answers).argmax(1).tolist() == [0]
    assert answers.mean(0).argmax(1).tolist() == [1] and count_ties(answers) == 0


# --- BatchNorm ---


class Normed(nn.Module):
    """A gate of two logits in front of a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = DataIndependentGate("x")
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x * self.gate(x))


@pytest.mark.parametrize("on", [True, False])
def test_gates_decide_in_reestimation_as_evaluation_does(on: bool) -> None:
    network = Normed().train()
    with torch.no_grad():
        network.gate.logits.copy_(torch.tensor([[0.0, 0.5 if on else -0.5]]))
    batches = [(torch.randn(16, 3) + 2, torch.zeros(16)) for _ in range(4)]
    torch.manual_seed(0)
    reestimate(network, batches, 3, silent)
    assert network.norm.running_mean is not None
    sampled = network.norm.running_mean.clone()
    decide_in_training(network)
    assert network.norm.training and not network.gate.training
    reestimate(network, batches, 3, silent)
    wanted = torch.stack([x.mean(0) for x, _ in batches[:3]]).mean(0) * on
    assert not torch.allclose(sampled, wanted, atol=0.1)
    torch.testing.assert_close(network.norm.running_mean, wanted)


# --- stochastic depth ---


def deep(last: float = 0.5) -> Network:
    return gatecli.attach(
        CASES["readers"].network(), "stochastic-depth", last_survival=last
    ).network


def test_survival_falls_linearly() -> None:
    """P(z = 1) = 1 - l/L (1 - p_L), of the first branch on."""
    network = deep(0.2)
    count = len(network.gated_by)
    for number, gate in enumerate(network.site_gates.values(), 1):
        assert isinstance(gate, StochasticDepthGate)
        assert gate.log_odds(torch.empty(1)).sigmoid().item() == pytest.approx(
            1 - number / count * 0.8, abs=1e-6
        )
        assert set(gate.state_dict()) == {"logits", "threshold"} and not list(gate.parameters())


def test_training_has_evaluations_value_in_expectation() -> None:
    gate = StochasticDepthGate("x", 1, 0.25)
    gate.survive(0.25)
    torch.manual_seed(0)
    z = gate.train()(torch.empty(40000, 1))
    assert sorted(set(z.flatten().tolist())) == pytest.approx([0, 4])
    assert z.mean().item() == pytest.approx(1, abs=0.03)
    assert gate.eval()(torch.empty(3, 1)).tolist() == [[1.0]] * 3


def test_a_network_trains_by_the_formula_and_is_plain_after_pruning() -> None:
    """x + z F(x) / p in training; prune leaves the source, without gates."""
    case = CASES["readers"]
    network, x = deep(), case.images(6)
    network.train()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    torch.manual_seed(1)
    with record_gates(network) as record:
        found = infer(network, x)
    assert all(set(z.flatten().tolist()) <= {0.0, 1.0} for z in record.latest().values())
    again, chances = deep().eval(), {}
    for site, gate in network.site_gates.items():
        chances[site] = gate.log_odds(x[:1]).sigmoid().item()
    scaled = {site: z / chances[site] for site, z in record.latest().items()}
    assert any(bool((z == 0).any()) for z in scaled.values())
    for site, gate in again.site_gates.items():
        gate.register_forward_hook(lambda *_, z=scaled[site]: z)
    with torch.no_grad():
        torch.testing.assert_close(found, again._masked(again, x))
    result = gatecli.prune(deep())
    assert not result.network.gated_by and not result.removed
    assert torch.equal(infer(result.network, x), infer(CASES["readers"].network(), x))
    fewer = gatecli.prune(deep(), threshold=0.7)
    assert fewer.removed == [site for site, chance in chances.items() if chance <= 0.7] != []


def test_what_no_survival_is() -> None:
    with pytest.raises(SettingError, match=r"`last_survival` to be between 0.01 and 1"):
        deep(0)


# --- classes ---


def test_rates_by_class_are_means_of_decisions() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randint(0, 2, (50, 4), generator=generator).float()
    labels = torch.randint(0, 5, (50,), generator=generator) * 2
    vectors[:, 3] = 1
    sites = [_site("a", 1), _site("b", 2), _site("c", 1)]
    use = Use(
        sites=sites,
        histogram=[],
        switching=0,
        macs={},
        per_image=(0, 0, 0),
        counts=Counts(first=0, width=1, images=[]),
        alike=Distances(within=None, between=None),
        vectors=vectors,
        labels=labels,
        exits={},
    )
    found = class_rates(use)
    assert found.classes == sorted(set(labels.tolist())) and sum(found.images) == 50
    z, y = vectors.numpy(), labels.numpy()
    for row, label in enumerate(found.classes):
        own = z[y == label]
        wanted = [own[:, 0].mean(), own[:, 1:3].mean(), own[:, 3].mean()]
        np.testing.assert_allclose(found.rates[row].numpy(), wanted, atol=1e-6)
    assert found.most_varied(8) == [0, 1] and len(found.most_varied(1)) == 1  # c never differs


def _site(name: str, units: int) -> SiteUse:
    counts = {"on": 0, "off": 0, "dependent": units}
    return SiteUse(name=name, kind="block", units=units, rate=0.5, **counts)


# --- on the command line ---


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_source(Path("r20.pt"))
    save_npz(Path("data.npz"))
    call("attach", "r20.pt", "--method", "aig-perbatch", "--input-size", SIDE, "--out", "g.st")
    return tmp_path


TRAIN = ["finetune", "g.st", "--data", "npz:data.npz", "--epochs", "1", "--batch-size", "8"]
TRAIN += ["--out", "t.st", "--force"]


def test_votes_and_classes_on_the_command_line(here: Path) -> None:
    data = ["--data", "npz:data.npz"]
    vote = call("eval", "g.st", *data, "--strategy", "vote")
    mean = call("eval", "g.st", *data, "--strategy", "ensemble")
    assert vote["macs_expected"] == mean["macs_expected"] and 0 <= vote["ties"] <= vote["samples"]
    assert "ties" not in mean and vote["rates"] == mean["rates"]
    assert f"{vote['ties']} of {vote['samples']} images had ties" in (
        run("eval", "g.st", *data, "--strategy", "vote").out
    )
    refused(["eval", "g.st", *data, "--strategy", "votes"], "ensemble, vote, but got `votes`")
    found = call("gates", "g.st", *data, "--strategy", "stochastic", "--plot", "p")
    rates = {site["name"]: site["rate"] for site in found["sites"]}
    assert "classes.png" in [Path(file).name for file in found["files"]]
    assert sum(each["images"] for each in found["classes"]) == found["images"]
    for site, rate in rates.items():
        parts = [each["images"] * each["rates"][site] for each in found["classes"]]
        assert math.isclose(sum(parts) / found["images"], rate)
    shown = run("gates", "g.st", *data, "--strategy", "stochastic").out
    assert "rates by class" in shown and "differ most between classes" in shown
    assert "rates by class" not in run("gates", "g.st", *data).out  # all run for all
    refused(["gates", "g.st", *data, "--strategy", "vote"], "stochastic", "`vote`")


def test_reestimation_on_the_command_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of their own size, and gates that sample unless told otherwise."""
    from gatecli.training import loop

    seen: list[tuple[list[int], bool]] = []

    def watch(network: Network, images: Any, count: int, progress: Any) -> None:
        sizes = [len(y) for _, y in images][:count]
        seen.append((sizes, any(gate.training for gate in network.site_gates.values())))

    monkeypatch.setattr(loop, "reestimate", watch)
    for options in ([], ["--bn-batch-size", 12, "--bn-gates", "decided"], ["--bn-batch-size", 999]):
        call(*TRAIN, *options)
    (plain, large, all_) = seen
    assert set(plain[0]) == {8} and plain[1]
    assert set(large[0]) == {12} and not large[1]
    images = sum(plain[0])
    assert all_[1] and len(all_[0]) == 1 and images <= all_[0][0] < images + 8
    refused([*TRAIN, "--bn-batch-size", 1], "--bn-batch-size to be at least 2")
    refused([*TRAIN, "--bn-gates", "forced"], "--bn-gates to be one of sampled, decided")


def test_stochastic_depth_on_the_command_line(here: Path) -> None:
    how = ["--method", "stochastic-depth", "--input-size", SIDE, "--out", "d.st"]
    assert call("attach", "r20.pt", *how)["max_logit_change"] == 0
    trained = call(*TRAIN[:1], "d.st", *TRAIN[2:])
    assert trained["achieved_rate"] == 1 and trained["target_rate"] is None
    pruned = call("prune", "t.st", "--out", "p.st")
    assert pruned["removed"] == [] and len(pruned["ungated"]) == 9
    assert pruned["macs_expected"] == trained["macs_expected"]
