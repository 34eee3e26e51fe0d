"""The formulas, against numbers worked out by hand or by an independent slow reference."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CASES, branches, oneblock, traced
from torch import Tensor, nn

import gatecli
from gatecli import methods
from gatecli.errors import CheckpointError, SettingError
from gatecli.gates.estimators import gumbel_decision
from gatecli.gates.gate import Gate
from gatecli.gates.observe import RateMeter, at_threshold, force, observe, strategy
from gatecli.graph.ops import mask
from gatecli.methods import targets
from gatecli.methods.layer_gates import DataDependentGate, DataIndependentGate
from gatecli.methods.losses import batch_rate, distance, per_batch, per_gate
from gatecli.methods.schedules import annealed_target, learning_rate
from gatecli.network.compare import relative_change
from gatecli.network.costs import expected_macs, known_rates, mean_rate, overall_rate, site_rates
from gatecli.stages.predict import topk
from gatecli.traced.recipe import Step

# --- losses ---

# two gates, four instances: 5 of 8 decisions are 1
DECISIONS = {
    "a": torch.tensor([[1.0], [0.0], [1.0], [1.0]]),
    "b": torch.tensor([[0.0], [0.0], [1.0], [1.0]]),
}


@pytest.mark.parametrize(
    ("target", "form", "loss", "slope"),
    [
        (0.5, "quadratic", 0.015625, 0.25),  # (5/8 - 1/2)^2 and twice that difference
        (0.75, "quadratic", 0.015625, -0.25),
        (0.625, "quadratic", 0.0, 0.0),
        (0.5, "const-quad", 0.015625, 0.25),
        (0.75, "const-quad", 0.0, 0.0),
        (0.625, "const-quad", 0.0, 0.0),
    ],
)
def test_per_batch_loss_and_its_gradient(
    target: float, form: str, loss: float, slope: float
) -> None:
    decisions = {site: z.clone().requires_grad_() for site, z in DECISIONS.items()}
    value = per_batch(decisions, dict.fromkeys(decisions, target), form)
    assert value.shape == () and value.item() == pytest.approx(loss, abs=1e-7)
    value.backward()  # type: ignore[no-untyped-call]
    for z in decisions.values():
        assert z.grad is not None and torch.allclose(z.grad, torch.full_like(z, slope / 8))


def test_the_rate_is_the_mean_over_all_units_and_instances() -> None:
    """Of the units, not of the sites: a site with three units counts three times."""
    decisions = {
        "one": torch.tensor([[1.0], [1.0]]),
        "three": torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]),
    }
    assert batch_rate(decisions).item() == pytest.approx(3 / 8)
    assert distance(torch.tensor(0.9), 0.4, "const-quad").item() == pytest.approx(0.25)


@pytest.mark.parametrize("form", ["quadratic", "const-quad"])
def test_per_gate_loss_against_a_loop(form: str) -> None:
    """Each unit of each site is a gate with its site's target.

    A gate at or below it costs nothing under const-quad.
    """
    generator = torch.Generator().manual_seed(2)
    decisions = {
        "a": torch.randint(0, 2, (6, 1), generator=generator).float(),
        "b": torch.randint(0, 2, (6, 3), generator=generator).float(),
    }
    asked = {"a": 0.9, "b": 0.25}
    losses = []
    for site, z in decisions.items():
        for unit in range(z.shape[1]):
            rate = sum(z[i, unit].item() for i in range(6)) / 6
            losses.append(
                0.0 if form == "const-quad" and rate <= asked[site] else (asked[site] - rate) ** 2
            )
    assert per_gate(decisions, asked, form).item() == pytest.approx(sum(losses) / 4)
    held = {site: z.clone().requires_grad_() for site, z in decisions.items()}
    per_gate(held, asked, "quadratic").backward()  # type: ignore[no-untyped-call]
    for site, z in held.items():
        assert z.grad is not None
        torch.testing.assert_close(
            z.grad, (2 * (z.detach().mean(0) - asked[site]) / 6 / 4).expand_as(z)
        )


def test_per_batch_aims_at_the_mean_target_of_the_units() -> None:
    decisions = {"one": torch.ones(2, 1), "three": torch.zeros(2, 3)}
    assert per_batch(decisions, {"one": 1.0, "three": 0.2}).item() == pytest.approx(
        (0.25 - 0.4) ** 2
    )


@pytest.mark.parametrize("name", ["aig-pergate", "aig-perbatch", "ind-pergate", "ind-perbatch"])
def test_the_methods_loss_is_weighted_and_annealed(name: str) -> None:
    method = methods.get(name)
    given_settings = {
        "target_rate": 0.5,
        "loss_weight": 2.0,
        "anneal_step": 0.1,
        "anneal_every": 2,
        "anneal_start": 0.825,
    }
    parsed = methods.parse_settings(method, given_settings)
    rates = {site: z.mean().item() for site, z in DECISIONS.items()}

    def wanted(target: float) -> float:
        return (
            sum((rate - target) ** 2 for rate in rates.values()) / len(rates)
            if name.endswith("gate")
            else (0.625 - target) ** 2
        )

    for epoch, target in (
        (0, 0.825),
        (1, 0.825),
        (2, 0.725),
        (3, 0.725),
        (4, 0.625),
        (6, 0.525),
        (100, 0.5),
    ):
        asked = method.objective.targets(parsed, DECISIONS, epoch)
        assert asked == pytest.approx(dict.fromkeys(DECISIONS, target))
        assert method.objective.loss(DECISIONS, parsed, asked).item() == pytest.approx(
            2 * wanted(target), abs=1e-6
        )
    plain = method.about.settings()
    assert method.objective.loss(
        DECISIONS, plain, method.objective.targets(plain, DECISIONS, 0)
    ).item() == pytest.approx(wanted(0.6), abs=1e-7)


# --- targets of their own, and targets that follow ---

SITES = ["layer1.0", "layer1.1", "layer2.0"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,.5,t", {"layer1.0": 1.0, "layer1.1": 0.5}),
        (" .1 , .2,.3", {"layer1.0": 0.1, "layer1.1": 0.2, "layer2.0": 0.3}),
        ("layer1.*:1", {"layer1.0": 1.0, "layer1.1": 1.0}),
        ("layer1.*:1,*.1:.25", {"layer1.0": 1.0, "layer1.1": 0.25}),
        ("t,t,t", {}),
    ],
)
def test_targets_of_their_own(text: str, found: dict[str, float]) -> None:
    assert targets.resolve(targets.read(text), SITES) == found
    by_site = ",".join(f"{site}:{rate}" for site, rate in found.items())
    assert not found or targets.read(by_site) == found  # as older files record them


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "1,1",
            (
                "expected setting `targets` to have 3 numbers, one for each gate, but got 2; the"
                " gates are: layer1.0, layer1.1, layer2.0"
            ),
        ),
        ("1,1,1,1", "but got 4"),
        ("1,2,1", "between 0 and 1, but got `2`"),
        ("1,x,1", "but got `x`"),
        ("nan,1,1", "but got `nan`"),
        ("layer9.*:1", "`layer9.*` matches none of"),
        ("layer1.0:1,.5", "but got `.5`"),
        ("layer1.0:t", "but got `t`"),
    ],
)
def test_targets_that_are_none(text: str, message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        targets.resolve(targets.read(text), SITES)


def test_a_gate_whose_target_is_one_is_left_out() -> None:
    gated = gatecli.attach(
        CASES["own"].network(), "ind-pergate", targets="t,1,.25", target_rate=0.5
    ).network
    left = list(gated.gated_by)
    assert len(left) == 2 and left == [*branches(gated)][::2]
    step = gated.recipe.last("attach")
    assert step is not None and step.settings["settings"]["targets"] == {left[1]: 0.25}
    method = methods.get("ind-pergate")
    chosen = methods.parse_settings(method, step.settings["settings"])
    assert method.objective.targets(chosen, left, 0) == {left[0]: 0.5, left[1]: 0.25}
    with pytest.raises(SettingError, match="every target is 1"):
        gatecli.attach(CASES["own"].network(), "ind-pergate", targets="*:1")


@pytest.mark.parametrize("kind", ["moving", "exponential"])
def test_variable_targets_against_their_sums(kind: str) -> None:
    """moving: the mean of the start and all rates so far.

    Exponential: each earlier value counts `momentum` times less.
    """
    rates, start, momentum = [0.9, 0.1, 0.4, 0.7], 0.8, 0.75
    found = {"a": start, "b": 0.3}
    for count, rate in enumerate(rates, 1):
        found = targets.follow(kind, momentum, found, {"a": rate, "b": 0.3}, count)
        if kind == "moving":
            wanted = (start + sum(rates[:count])) / (count + 1)
        else:
            wanted = momentum**count * start + sum(
                (1 - momentum) * momentum ** (count - 1 - index) * rates[index]
                for index in range(count)
            )
        assert found == pytest.approx({"a": wanted, "b": 0.3})
    method = methods.get("aig-perbatch")
    chosen = methods.parse_settings(method, {"variable": kind, "variable_momentum": momentum})
    assert method.objective.follow(chosen, {"a": 0.5}, {"a": 1.0}, 1) == pytest.approx(
        {"a": 0.75 if kind == "moving" else 0.625}
    )
    assert method.objective.follow(method.about.settings(), {"a": 0.5}, {"a": 1.0}, 1) == {"a": 0.5}


# --- schedules ---


def test_annealing() -> None:
    expected = [1.0] * 5 + [0.95] * 5 + [0.9] * 5 + [0.85] * 5
    assert [annealed_target(0.4, epoch, 1.0, 0.05, 5) for epoch in range(20)] == pytest.approx(
        expected
    )
    assert annealed_target(0.4, 59, 1.0, 0.05, 5) == pytest.approx(0.45)
    assert [annealed_target(0.4, epoch, 1.0, 0.05, 5) for epoch in (60, 65, 1000)] == pytest.approx(
        [0.4, 0.4, 0.4]
    )
    assert annealed_target(0.4, 0, 1.0, 0.0, 5) == 0.4  # no annealing
    assert annealed_target(0.4, 0, 0.3, 0.05, 5) == 0.4  # never below the target


def test_step_schedule_is_the_papers_30_60_90_of_100() -> None:
    rates = [learning_rate("step", 0.1, epoch / 100) for epoch in range(100)]
    assert rates == pytest.approx([0.1] * 30 + [0.01] * 30 + [0.001] * 30 + [0.0001] * 10)
    assert [learning_rate("step", 1.0, epoch / 10) for epoch in range(10)] == pytest.approx(
        [1] * 3 + [0.1] * 3 + [0.01] * 3 + [0.001]
    )


def test_cosine_and_constant_schedules() -> None:
    quarter = (1 + math.sqrt(0.5)) / 2
    for progress, share in ((0, 1.0), (0.25, quarter), (0.5, 0.5), (0.75, 1 - quarter), (1, 0.0)):
        assert learning_rate("cosine", 0.2, progress) == pytest.approx(0.2 * share)
        assert learning_rate("constant", 0.2, progress) == 0.2


# --- Gumbel ---


def test_samples_are_hard_and_as_frequent_as_the_logits_say() -> None:
    """Within four standard deviations of a binomial with 40,000 draws: .01 at most."""
    draws = 40_000
    for off, on in ((0.1, 2.0), (0.1, 4.0), (0.0, 0.0), (3.0, -1.0), (-2.0, -1.0)):
        torch.manual_seed(0)
        z = gumbel_decision(torch.tensor([off, on]).expand(draws, 2))
        assert z.shape == (draws,) and set(z.unique().tolist()) <= {0.0, 1.0}
        p = 1 / (1 + math.exp(off - on))
        assert abs(z.mean().item() - p) < 4 * math.sqrt(p * (1 - p) / draws)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_the_gradient_is_the_soft_sample_s(temperature: float) -> None:
    """With the noise g: s = sigmoid((on + g_on - off - g_off) / t), ds/d on = s (1 - s) / t = -ds/d
    off; forward s > 1/2.
    """
    logits = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    weights = torch.randn(50, 3, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(7)
    z = gumbel_decision(logits, temperature)
    (z * weights).sum().backward()
    torch.manual_seed(7)
    noise = -torch.empty(50, 3, 2).exponential_().log()
    for row in range(50):
        for unit in range(3):
            on = logits[row, unit, 1].item() + noise[row, unit, 1].item()
            off = logits[row, unit, 0].item() + noise[row, unit, 0].item()
            s = 1 / (1 + math.exp((off - on) / temperature))
            assert z[row, unit].item() == pytest.approx(float(s > 0.5), abs=1e-6)
            slope = weights[row, unit].item() * s * (1 - s) / temperature
            assert logits.grad is not None
            assert logits.grad[row, unit].tolist() == pytest.approx([-slope, slope], abs=1e-5)


# --- the gates ---


def test_initial_probabilities() -> None:
    for name, logit, percent in (("aig-perbatch", 1.9, 87), ("ind-perbatch", 3.9, 98)):
        case = CASES["preactivation"]
        network = gatecli.attach(case.build(), name, input_size=case.size).network
        with gatecli.record_gates(network), torch.no_grad():
            for gate in network.site_gates.values():
                odds = gate.log_odds(
                    case.images(3)
                    if isinstance(gate, DataIndependentGate)
                    else torch.randn(3, 8, 5, 5) * 100
                )
                assert odds.tolist() == [[pytest.approx(logit)]] * 3
                assert round(100 * odds[0, 0].sigmoid().item()) == percent


def test_the_last_layer_starts_at_zero_and_the_logits_are_stored_off_on() -> None:
    gate = DataDependentGate("s", 4, (2, 3), 16)
    assert not gate.decide.weight.any() and gate.decide.bias.tolist() == pytest.approx([0.1, 2.0])
    assert (
        gate.reduce.weight.shape == (16, 4)
        and gate.reduce.weight.any()
        and gate.decide.weight.shape == (2, 16)
    )
    assert DataIndependentGate("s").state_dict()["logits"].tolist() == [[pytest.approx(0.1), 4.0]]


SHAPES: list[tuple[tuple[int, ...], int, tuple[int, ...]]] = [
    ((3, 6, 5, 4), 6, (2, 3)),
    ((3, 5, 6), 6, (1,)),
    ((3, 5, 4, 6), 6, (1, 2)),
    ((3, 6), 6, ()),
]


def random_gate(channels: int = 6, positions: tuple[int, ...] = (2, 3)) -> DataDependentGate:
    """A gate as training leaves it: nothing is zero or one."""
    torch.manual_seed(3)
    gate = DataDependentGate("s", channels, positions, 16)
    with torch.no_grad():
        for tensor in [*gate.parameters(), *gate.norm.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.2)
                tensor.mul_(
                    1
                    if tensor is gate.norm.running_var
                    else -1
                    if tensor is gate.reduce.bias
                    else 0.7
                )
    return gate.eval()


def slow_odds(gate: DataDependentGate, x: Tensor) -> Tensor:
    """The paper's layers one by one, in double precision."""
    pooled = x.double().mean(gate.positions) if gate.positions else x.double()
    result = torch.zeros(len(x), 1, dtype=torch.float64)
    for n in range(len(x)):
        logits = [0.0, 0.0]
        for h in range(gate.reduce.out_features):
            norm, before = (
                gate.norm,
                gate.reduce.bias[h].item()
                + sum(
                    w * v
                    for w, v in zip(gate.reduce.weight[h].tolist(), pooled[n].tolist(), strict=True)
                ),
            )
            assert norm.running_mean is not None and norm.running_var is not None
            after = (before - norm.running_mean[h].item()) / math.sqrt(
                norm.running_var[h].item() + norm.eps
            ) * norm.weight[h].item() + norm.bias[h].item()
            for k in range(2):
                logits[k] += gate.decide.weight[k, h].item() * max(0.0, after)
        result[n] = logits[1] + gate.decide.bias[1].item() - logits[0] - gate.decide.bias[0].item()
    return result


def same_odds(gate: DataDependentGate, x: Tensor) -> bool:
    with torch.no_grad():
        pair, folded, slow = gate.scores(x), gate.log_odds(x), slow_odds(gate, x)
    assert pair.shape == (len(x), 1, 2) and folded.shape == (len(x), 1)
    return torch.allclose(folded.double(), slow, atol=1e-5) and torch.allclose(
        (pair[..., 1] - pair[..., 0]).double(), slow, atol=1e-5
    )


@pytest.mark.parametrize(("shape", "channels", "positions"), SHAPES)
def test_folded_odds_are_the_unfolded_ones(
    shape: tuple[int, ...], channels: int, positions: tuple[int, ...]
) -> None:
    assert same_odds(random_gate(channels, positions), torch.randn(shape))


def _statistics(gate: DataDependentGate) -> None:
    gate.train()
    gate.scores(torch.randn(16, 6, 3, 3) * 3 + 1)
    gate.eval()


def _statistics_in_place(gate: DataDependentGate) -> None:
    assert gate.norm.running_mean is not None and gate.norm.running_var is not None
    gate.norm.running_mean.add_(0.5)
    gate.norm.running_var.mul_(2)


def _optimizer(gate: DataDependentGate) -> None:
    optimizer = torch.optim.SGD(gate.parameters(), lr=0.1, momentum=0.9)
    gate.scores(torch.randn(4, 6, 3, 3)).square().sum().backward()
    optimizer.step()


def _through_data(gate: DataDependentGate) -> None:
    """As some averages of weights do it, before evaluation begins."""
    for parameter in gate.parameters():
        parameter.data.mul_(1.5)
    gate.eval()


def _new_tensors(gate: DataDependentGate) -> None:
    gate.decide.weight = nn.Parameter(gate.decide.weight.detach() * -1)
    gate.norm.running_mean = torch.full((16,), 0.3)


def _loaded(assign: bool) -> Callable[[DataDependentGate], None]:
    def change(gate: DataDependentGate) -> None:
        gate.load_state_dict(
            {name: tensor * 1.25 for name, tensor in gate.state_dict().items()}, assign=assign
        )

    return change


CHANGES: dict[str, Callable[[DataDependentGate], None]] = {
    "training": _statistics,
    "statistics": _statistics_in_place,
    "optimizer": _optimizer,
    "data": _through_data,
    "replaced": _new_tensors,
    "loaded": _loaded(False),
    "assigned": _loaded(True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_folding_follows_every_change(change: str) -> None:
    gate, x = random_gate(), torch.randn(3, 6, 5, 4)
    with torch.no_grad():
        before = gate.log_odds(x)
    CHANGES[change](gate)
    assert same_odds(gate, x)
    assert not torch.allclose(before, gate.log_odds(x), atol=1e-3)


@pytest.mark.parametrize("index", range(8))
def test_folding_follows_each_tensor(index: int) -> None:
    gate, x = random_gate(), torch.randn(3, 6, 5, 4)
    tensors = [
        tensor
        for tensor in [*gate.parameters(), *gate.norm.buffers()]
        if tensor.is_floating_point()
    ]
    assert len(tensors) == 8 and same_odds(gate, x)
    before = gate.log_odds(x)
    with torch.no_grad():
        flat = tensors[index].reshape(-1)
        flat[: len(flat) // 3 + 1] += 0.5  # part of it, through a view
    assert same_odds(gate, x) and not torch.allclose(before, gate.log_odds(x), atol=1e-4)


def test_data_independent_odds_follow_their_logits() -> None:
    gate = DataIndependentGate("s").eval()
    assert gate.log_odds(torch.empty(2)).tolist() == [[pytest.approx(3.9)]] * 2
    with torch.no_grad():
        gate.logits[0, 0] = 3.0
    assert gate.log_odds(torch.empty(2)).tolist() == [[1.0]] * 2
    gate.load_state_dict({"logits": torch.tensor([[1.0, -1.0]]), "threshold": torch.tensor([0.5])})
    assert gate.log_odds(torch.empty(1)).tolist() == [[-2.0]]


class Fixed(Gate):
    """Log-odds as given, one a unit."""

    def __init__(self, odds: list[float]) -> None:
        super().__init__("s", len(odds))
        self.odds = torch.tensor(odds)

    def scores(self, x: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(self.odds), self.odds], 1).expand(len(x), -1, -1)


@settings(deadline=None)
@given(st.lists(st.floats(-6, 6, width=32), min_size=1, max_size=4), st.floats(-0.5, 1.5, width=32))
def test_a_unit_runs_where_its_probability_passes_the_threshold(
    odds: list[float], threshold: float
) -> None:
    gate = Fixed(odds).eval()
    gate.threshold.fill_(threshold)
    z = gate(torch.empty(2, 1))
    assert z.shape == (2, len(odds))
    for unit, value in enumerate(odds):
        p = 1 / (1 + math.exp(-value))
        if abs(p - threshold) > 1e-5:
            assert z[:, unit].tolist() == [float(p > threshold)] * 2


def test_strategies() -> None:
    gate = Fixed([2.0, -2.0, 0.0]).eval()
    holder, x, p = nn.Sequential(gate), torch.empty(20_000, 1), 1 / (1 + math.exp(-2.0))
    assert gate(x).mean(0).tolist() == [
        1,
        0,
        0,
    ]  # a probability of one half does not pass a threshold of one half
    with strategy(holder, "always-on"):
        assert gate(x).mean(0).tolist() == [1, 1, 1]
    with strategy(holder, "stochastic"):
        torch.manual_seed(0)
        assert gate(x).mean(0).tolist() == pytest.approx(
            [p, 1 - p, 0.5], abs=0.015
        )  # four standard deviations
    with at_threshold(holder, 0.9):
        assert gate(x).mean(0).tolist() == [0, 0, 0]
    with at_threshold(holder, 0.1):
        assert gate(x).mean(0).tolist() == [1, 1, 1]
    assert gate(x).mean(0).tolist() == [1, 0, 0] and gate.threshold.tolist() == [0.5] * 3


def test_mask_multiplies_each_sample() -> None:
    value, z = torch.arange(24.0).reshape(3, 2, 2, 2) + 1, torch.tensor([[1.0], [0.0], [1.0]])
    assert torch.equal(mask(value, z)[[0, 2]], value[[0, 2]]) and not mask(value, z)[1].any()
    assert mask(value.half(), z).dtype == torch.float16


# --- costs ---


def test_expected_macs_by_hand() -> None:
    """Two 3x3 convolutions from 3 to 3 channels on 8x8 pixels, a linear layer 3 -> 4.

    The gate's layers 3 -> 16 -> 1, folded.
    """
    branch, head, gate = 2 * 3 * 3 * 9 * 64, 3 * 4, 3 * 16 + 16
    for name, own in (("aig-perbatch", gate), ("ind-perbatch", 0)):
        network = gatecli.attach(oneblock(), name, input_size=(8, 8)).network
        (site,) = branches(network)
        assert network.sites[site].macs == branch and network.macs_dense == branch + head + own
        for rate in (0.0, 0.25, 1.0):
            assert expected_macs(network, {site: [rate]}) == pytest.approx(
                branch * rate + head + own
            )
        assert expected_macs(network, {}) == network.macs_dense


def test_expected_macs_of_several_sites() -> None:
    case = CASES["own"]
    network = gatecli.attach(
        case.build(), "ind-perbatch", input_size=case.size, exclude=["units.1"]
    ).network
    macs = {name: site.macs for name, site in branches(network).items()}
    assert macs == {
        "units.0": 2 * 8 * 8 * 9 * 1024,
        "units.1": (8 + 12) * 12 * 9 * 256,
        "units.2.body": 2 * 12 * 12 * 9 * 256,
    }
    stem, projection, head = 3 * 8 * 9 * 1024, 8 * 12 * 256, 12 * 5
    assert network.macs_dense == sum(macs.values()) + stem + projection + head
    saved = macs["units.0"] * 0.75 + macs["units.2.body"] * 0.5
    rates = {
        "units.0": [0.25],
        "units.1": [0.0],
        "units.2.body": [0.5],
    }  # nothing gates units.1, which therefore runs
    assert expected_macs(network, rates) == pytest.approx(network.macs_dense - saved)


def test_rates() -> None:
    rates = {"a": [1.0, 0.0], "b": [0.25]}
    assert mean_rate([0.2, 0.4]) == pytest.approx(0.3) and site_rates(rates) == {
        "a": 0.5,
        "b": 0.25,
    }
    assert overall_rate({"a": [0.5], "b": [0.25]}) == 0.375 and overall_rate({}) == 1.0


def test_measured_rates_are_shares_of_all_samples() -> None:
    network = gatecli.attach(oneblock(), "ind-perbatch", input_size=(8, 8)).network
    (site,) = branches(network)
    meter = RateMeter()
    with observe(network, meter), torch.no_grad():
        for opened, count in ((3, 4), (0, 2), (1, 1), (0, 3)):
            with force(
                network, {site: torch.tensor([[float(row < opened)] for row in range(count)])}
            ):
                network(torch.randn(count, 3, 8, 8))
            meter.total += count
    assert meter.rates() == {site: [pytest.approx(0.4)]}


@pytest.mark.parametrize(
    "units",
    [
        5,
        {"SITE": 5},
        {"SITE": []},
        {"SITE": [0.5, 0.5]},
        {"SITE": ["x"]},
        {"SITE": [1.5]},
        {"SITE": [None]},
    ],
)
def test_known_rates_are_the_latest_recorded_ones(units: Any) -> None:
    network = gatecli.attach(oneblock(), "ind-perbatch", input_size=(8, 8)).network
    (site,) = branches(network)
    assert known_rates(network) == {site: [1.0]}
    for rate in (0.3, 0.6):
        network.recipe = network.recipe.with_step(
            Step("finetune", {}, {"unit_rates": {site: [rate]}})
        )
        assert known_rates(network) == {site: [rate]}
    damaged = {site: units["SITE"]} if isinstance(units, dict) else units
    network.recipe = network.recipe.with_step(Step("finetune", {}, {"unit_rates": damaged}))
    with pytest.raises(CheckpointError):
        known_rates(network)


# --- accuracy ---

SCORES = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 1.0, 3.0, math.nan])


def bounds(scores: list[list[float]], labels: list[int], k: int) -> tuple[float, float]:
    """Percent right at least and at most: of equal scores any may come first.

    A row with NaN is wrong.
    """
    low = high = 0
    for row, label in zip(scores, labels, strict=True):
        if any(value != value for value in row):
            continue
        larger = sum(value > row[label] for value in row)
        equal = sum(value == row[label] for value in row) - 1
        low += larger + equal < k
        high += larger < k
    return 100 * low / len(scores), 100 * high / len(scores)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(SCORES, min_size=4, max_size=4), st.integers(0, 3)),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([1, 2, 5]),
)
def test_topk_against_a_slow_loop(rows: list[tuple[list[float], int]], k: int) -> None:
    scores, labels = [row for row, _ in rows], [label for _, label in rows]
    low, high = bounds(scores, labels, k)
    assert low - 1e-9 <= topk(torch.tensor(scores), torch.tensor(labels), k) <= high + 1e-9


def test_topk_by_hand() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.9, 0.1, 0.5], [math.nan, 9.0, 1.0], [3.0, 2.0, 1.0]])
    labels = torch.tensor([1, 2, 1, 2])
    assert [topk(scores, labels, k) for k in (1, 2, 3, 5)] == [25.0, 50.0, 75.0, 75.0]


def test_relative_change() -> None:
    assert relative_change(
        torch.tensor([[1.0, -4.0]]), torch.tensor([[1.0, -3.0]])
    ) == pytest.approx(0.25)
    assert relative_change(torch.zeros(2, 2), torch.zeros(2, 2)) == 0


def test_a_network_without_gates_costs_what_it_computes() -> None:
    network = traced(oneblock(), (8, 8))
    assert (
        expected_macs(network, {site: [0.0] for site in branches(network)})
        == network.macs_dense
        == 10368 + 12
    )
