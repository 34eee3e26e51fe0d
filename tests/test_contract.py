"""What every method owes, on every small network.

METHODS.md's four promises and the design's contract, found by the registry.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import counted
from networks import APART, CASES, Case, infer, masked
from torch import Tensor, nn
from torch.nn import functional as F

import gatecli
from gatecli import methods
from gatecli.checkpoint import save_tensors
from gatecli.errors import ArchitectureError, SettingError
from gatecli.gates.observe import RateMeter, observe, record_gates
from gatecli.kinds import registry
from gatecli.kinds.base import EXIT
from gatecli.network import Network
from gatecli.network.compare import in_whole_float32, relative_change
from gatecli.network.costs import expected_macs
from gatecli.network.surgery import decide as decide_for_good
from gatecli.stages.attach import Attached
from gatecli.stages.prune import Pruned
from gatecli.traced.recipe import Step
from gatecli.traced.site import SiteDecision

LIMIT = 1e-5  # of the largest logit
OURS = ("gates.", "exits.", "gater.")
SHIFTED = (
    "reduce.bias",
)  # a bias before a BatchNorm, which takes every shift away: its gradient is zero in truth
DROPS = ("dense", "own", "own-gray-oblong")  # cases with dropout
Decisions = dict[str, list[int]]
LARGE, SMALL = (
    ("bottleneck", "cifar-pad-gray", "cifar-projection", "resnet18"),
    (
        "own-gray-oblong",
        "preactivation",
        "readers",
        "tokens",
    ),
)
every = pytest.mark.parametrize("name", sorted(CASES))
small = pytest.mark.parametrize("name", SMALL)  # for tests that take their time


@functools.cache
def source_of(name: str) -> nn.Module:
    return case_of(name).build()


def case_of(name: str) -> Case:
    return APART[name] if name in APART else CASES[name]


@functools.cache
def attached(method: str, name: str) -> Attached | ArchitectureError:
    case = case_of(name)
    try:
        return gatecli.attach(
            source_of(name), method, input_size=case.size, arch=case.arch if name in SMALL else ""
        )
    except ArchitectureError as error:
        if "found nothing to gate" not in str(error):
            raise
        return error


@pytest.fixture(params=sorted(set(CASES) - set(LARGE)))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Tests that speak of gates at which 1 is to run, and what a method may require so that they are no
# true sentences about it. For a place to leave at
#   1 is to leave: all open is not the network as it was, nor is all closed another one, and no
#       branch is masked;
#   a threshold is compared with a score, which has no ends that 0 and 1 would be, and an infinite
#       one says for prune that nobody leaves, whatever rates it is given;
#   training has a loss of its own, or reaches a classifier by the images that leave there.
# What is promised all the same is tested below, of every kind with every method.
NOT_SAID_OF: dict[str, frozenset[str]] = dict.fromkeys(
    (
        "test_the_loss_reaches_every_gate_parameter",
        "test_training_runs_the_masked_graph",
        "test_with_open_gates_training_is_the_source_s",
        "test_prune_keeps_what_the_gates_decided",
        "test_prune_everything_and_nothing",
        "test_undecided_data_dependent_gates_stay",
        "test_thresholds_at_the_ends_and_beyond",
        "test_force_nests_and_ends",
    ),
    frozenset({EXIT}),
)


@pytest.fixture(params=methods.names())
def method(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if methods.get(name).about.requires & NOT_SAID_OF.get(request.node.originalname, frozenset()):
        pytest.skip("see NOT_SAID_OF")
    return name


@pytest.fixture
def case(name: str) -> Case:
    return CASES[name]


@pytest.fixture
def original(method: str, name: str) -> Network:
    """The gated network itself, for tests that only look."""
    result = attached(method, name)
    if isinstance(result, ArchitectureError):
        pytest.skip(str(result))
    return result.network


@pytest.fixture
def gated(original: Network) -> Network:
    """A copy for tests that change it."""
    return original.copy()


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and relative_change(a, b) <= LIMIT


def draw(network: Network, seed: int, closed: float = 0.5) -> Decisions:
    """Random decisions of which at least one is 0 and, where there are two or more, at least one is
    1.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        site: (torch.rand(gate.units, generator=generator) >= closed).int().tolist()
        for site, gate in network.site_gates.items()
    }
    first, *others = drawn
    drawn[first][0] = 0
    if others:
        drawn[others[-1]][0] = 1
    return drawn


def rows(network: Network, count: int, seed: int) -> dict[str, Tensor]:
    """Random decisions of each sample of a batch, mixed at every site."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        site: torch.randint(0, 2, (count, gate.units), generator=generator).float()
        for site, gate in network.site_gates.items()
    }
    for z in drawn.values():
        z[0], z[1] = 1, 0
    return drawn


def decide(network: Network, decisions: Mapping[str, Sequence[int]]) -> None:
    """Make the gates decide so by themselves.

    Logits where a gate has them, else thresholds that are always or never passed.
    """
    for site, units in decisions.items():
        gate, wanted = network.site_gates[site], torch.tensor(units, dtype=torch.float32)
        with torch.no_grad():
            if gate.data_dependent:
                gate.threshold.copy_(1 - wanted)
            else:
                gate.logits.copy_(torch.stack([-wanted, wanted], 1) * 8 + torch.tensor([4.0, -4.0]))


def prune_to(network: Network, decisions: Decisions) -> Pruned:
    """Prune to these decisions in the way a user would.

    Data-independent gates by what they say, the others by rates.
    """
    decide(
        network,
        {
            site: units
            for site, units in decisions.items()
            if not network.site_gates[site].data_dependent
        },
    )
    result = gatecli.prune(
        network,
        rates={site: [float(unit) for unit in units] for site, units in decisions.items()},
        static=0.5,
    )
    assert not result.padded  # nothing has been rounded
    return result


def perturb(network: Network, by: float = 0.3) -> None:
    """Leave the neutral start, whose last layers of zeros let no gradient through to the layers
    before.
    """
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for gate in network.site_gates.values():
            for parameter in gate.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=by)


def branch_layers(network: Network, site: str) -> list[nn.Module]:
    """The modules with weights that a branch consists of."""
    nodes = set(network.sites[site].branch)
    calls = [
        network.get_submodule(str(node.target))
        for node in network.graph.nodes
        if node.name in nodes and node.op == "call_module"
    ]
    return [module for module in calls if any(True for _ in module.parameters())]


@contextmanager
def watched(network: Network) -> Iterator[dict[str, list[int]]]:
    """How many samples each call of each branch's first layer with weights saw.

    Site -> one number a call.
    """
    seen: dict[str, list[int]] = {site: [] for site in network.gated_by}
    handles = []
    for site in seen:
        for layer in branch_layers(network, site):
            handles.append(
                layer.register_forward_pre_hook(
                    lambda _, args, site=site: seen[site].append(args[0].shape[0])
                )
            )
    yield seen
    for handle in handles:
        handle.remove()


def blocks(network: Network) -> list[str]:
    return [site for site in network.gated_by if network.sites[site].kind == "block"]


# --- attach ---


def test_every_method_gates_some_network_and_names_itself_where_it_cannot(method: str) -> None:
    results = [attached(method, name) for name in (*CASES, "resnext")]
    errors = [str(result) for result in results if isinstance(result, ArchitectureError)]
    assert len(errors) < len(results)
    assert all(
        method in error and methods.get(method).about.needs in error and "\n" not in error
        for error in errors
    )


@every
def test_attach_keeps_the_logits(original: Network, name: str, case: Case) -> None:
    for count in (1, 5):
        for scale in (0.01, 1.0, 100.0):
            x = case.images(count) * scale
            assert close(infer(source_of(name), x.clone()), infer(original, x))


@every
def test_attach_reports_what_it_did(method: str, name: str, original: Network) -> None:
    result = attached(method, name)
    assert isinstance(result, Attached)
    assert result.method == method and result.max_logit_change <= LIMIT
    assert result.gates == len(original.gated_by) == len(original.site_gates) > 0
    assert result.units == sum(gate.units for gate in original.site_gates.values())
    added = original.params - sum(p.numel() for p in source_of(name).parameters())
    assert result.params == original.params
    assert added == 0 if (method, "by default") in EXCEPT["learns"] else added > 0
    assert set(original.gated_by.values()) == {method} and not original.training
    assert [step.op for step in original.recipe.steps] == ["attach"]


@every
def test_layer_gates_take_every_block(case: Case, original: Network, method: str) -> None:
    if "layer" not in type(methods.get(method)).__name__.lower():
        pytest.skip("other methods choose otherwise")
    assert len(original.gated_by) == case.blocks


@small
def test_attach_leaves_the_source_alone(method: str, name: str, case: Case) -> None:
    source = case.build().train()
    before = {key: tensor.clone() for key, tensor in source.state_dict().items()}
    parts = [
        (path, type(part), part.training, getattr(part, "inplace", None))
        for path, part in source.named_modules()
    ]
    if isinstance(attached(method, name), ArchitectureError):
        pytest.skip("nothing to gate")
    result = gatecli.attach(source, method, input_size=case.size)
    with torch.no_grad():
        for parameter in result.network.parameters():
            parameter.zero_()
    assert parts == [
        (path, type(part), part.training, getattr(part, "inplace", None))
        for path, part in source.named_modules()
    ]
    assert list(before) == list(source.state_dict())
    assert all(torch.equal(tensor, before[key]) for key, tensor in source.state_dict().items())


@every
def test_tensors_keep_their_names_and_values(original: Network, name: str) -> None:
    source, state = source_of(name).state_dict(), original.state_dict()
    assert set(source) <= set(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in source.items())
    assert all(key.startswith(OURS) for key in set(state) - set(source))


@small
def test_attach_twice_is_refused_and_patterns_choose(gated: Network, method: str) -> None:
    with pytest.raises(ArchitectureError, match=method):
        gatecli.attach(gated, method)
    first, *others = gated.gated_by
    fewer = gatecli.prune(
        gated,
        rates={site: [gate.fresh_rate] * gate.units for site, gate in gated.site_gates.items()},
        static=0.5,
    ).network
    again = gatecli.attach(fewer, method, include=[first])
    assert list(again.network.gated_by) == [first]
    if others:
        assert first not in gatecli.attach(fewer, method, exclude=[first]).network.gated_by
    with pytest.raises(SettingError, match="no-such-site"):
        gatecli.attach(fewer, method, include=["no-such-site*"])


# --- training ---


def test_the_loss_reaches_every_gate_parameter(gated: Network, method: str, case: Case) -> None:
    perturb(gated)
    objective = methods.get(method).objective
    settings = methods.get(method).about.settings()
    targets = objective.targets(settings, gated.gated_by, 0)
    x, labels = case.images(8), torch.arange(8) % gated.num_classes
    torch.manual_seed(0)
    with gatecli.record_gates(gated.train()) as record:
        loss = F.cross_entropy(gated(x), labels)
        loss = loss + objective.loss(record.latest(), settings, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    assert set(record.latest()) == set(gated.gated_by)
    for site, gate in gated.site_gates.items():
        for part, parameter in gate.named_parameters():
            assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), (
                f"{site} {part}"
            )
            assert part in SHIFTED or float(parameter.grad.abs().max()) > 1e-9, f"{site} {part}"


def test_training_runs_the_masked_graph(gated: Network, case: Case) -> None:
    """Every branch is computed for every sample, whatever the gates say.

    A skipped sample still counts in BatchNorm's statistics.
    """
    x = case.images(4)
    twin = gated.copy().train()
    with (
        watched(gated.train()) as seen,
        gatecli.force(gated, {site: [0] * gate.units for site, gate in gated.site_gates.items()}),
    ):
        torch.manual_seed(0)
        infer(gated, x)
    assert all(calls and set(calls) == {4} for calls in seen.values())
    with gatecli.force(twin, {site: [1] * gate.units for site, gate in twin.site_gates.items()}):
        torch.manual_seed(0)
        infer(twin, x)
    first = branch_layers(gated, next(iter(gated.gated_by)))
    statistics = [
        norm.running_mean
        for norm in first
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    ]
    expected = [
        norm.running_mean
        for norm in branch_layers(twin, next(iter(twin.gated_by)))
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    ]
    assert all(torch.equal(a, b) for a, b in zip(statistics, expected, strict=True))


def test_with_open_gates_training_is_the_source_s(gated: Network, name: str, case: Case) -> None:
    """Logits, statistics and random draws of a training step, dropout included."""
    source, x = copy.deepcopy(source_of(name)).train(), case.images(4)
    if hasattr(gated, "gater") and name in DROPS:
        pytest.skip("a gater draws its noise before the network's dropout draws")
    gated.train()
    with gatecli.force(gated, {site: [1] * gate.units for site, gate in gated.site_gates.items()}):
        torch.manual_seed(0)
        mine = infer(gated, x)
    torch.manual_seed(0)
    assert close(infer(source, x.clone()), mine)
    state = gated.state_dict()
    assert all(
        torch.allclose(tensor, state[key], rtol=1e-5, atol=1e-6)
        for key, tensor in source.state_dict().items()
    )


@small
def test_training_samples_gates_and_evaluation_does_not(
    gated: Network, method: str, case: Case
) -> None:
    if not methods.get(method).objective.traits.samples:
        pytest.skip("its training draws no decisions")
    perturb(gated)
    x = case.images(4)
    with gatecli.record_gates(gated.train()) as record:
        for seed in range(12):
            torch.manual_seed(seed)
            infer(gated, x)
    assert any(len({z.sum().item() for z in seen}) > 1 for seen in record.decisions.values())
    gated.eval()
    assert torch.equal(infer(gated, x), infer(gated, x))


# --- save and load ---


@small
def test_save_and_load_are_exact(gated: Network, case: Case, tmp_path: Path) -> None:
    perturb(gated)
    gatecli.write(gated, tmp_path / "net.safetensors")
    loaded = gatecli.load(tmp_path / "net.safetensors", arch=case.arch)
    before, after = gated.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    assert all(
        tensor.dtype == after[key].dtype and bytes(tensor.numpy()) == bytes(after[key].numpy())
        for key, tensor in before.items()
    )
    assert loaded.recipe == gated.recipe and not loaded.training
    assert (
        loaded.gated_by == gated.gated_by
        and loaded.sites == gated.sites
        and loaded.macs_dense == gated.macs_dense
    )
    x = case.images(3)
    assert torch.equal(infer(gated, x), infer(loaded, x))


# --- prune ---


@every
def test_prune_keeps_what_the_gates_decided(gated: Network, case: Case, tmp_path: Path) -> None:
    decisions = draw(gated, 0)
    result = prune_to(gated, decisions)
    smaller, x = result.network, case.images(4)
    with gatecli.force(gated, decisions):
        assert close(infer(gated, x), infer(smaller, x)) and close(
            masked(gated, x), infer(smaller, x)
        )
    assert result.max_logit_change <= LIMIT and result.kept_dynamic == list(result.stuck) == list(
        smaller.gated_by
    )
    assert result.removed == [
        site for site, units in decisions.items() if not any(units) and site not in result.stuck
    ]
    assert (
        not any(
            key.startswith("gates.") and not key.startswith(halves(gated, decisions))
            for key in smaller.state_dict()
        )
        or result.stuck
    )
    assert only_biases_are_new(smaller, gated)
    if result.stuck:  # their branches, and gates that say so, stay
        return
    assert (
        smaller.params < gated.params == result.params_before
        and smaller.macs_dense < gated.macs_dense == result.macs_before
    )
    assert result.macs_expected == smaller.macs_dense
    for network, file in ((gated, "before"), (smaller, "after")):
        save_tensors(network.state_dict(), tmp_path / file, {})
    assert (tmp_path / "after").stat().st_size < (tmp_path / "before").stat().st_size


def halves(network: Network, decisions: Decisions) -> tuple[str, ...]:
    """Where the tensors are of convolutions some of whose channels keep their base path alone."""
    return tuple(
        f"gates.{site.removesuffix('.channels')}.closed."
        for site, units in decisions.items()
        if network.sites[site].kind == "conv" and len({*units}) > 1
    )


def only_biases_are_new(smaller: Network, gated: Network) -> bool:
    """Fewer tensors, all of names that were there.

    Or biases beside weights that were, which removed layers of a dense block leave, or what
    `halves` says.
    """
    before, after = gated.state_dict(), smaller.state_dict()
    new = {key for key in set(after) - set(before) if ".closed." not in key}
    dense = any(site.kind == "layer" for site in gated.sites.values())
    return len(after) - len(new) < len(before) and all(
        key.endswith(".bias") and key.replace(".bias", ".weight") in before and dense for key in new
    )


def test_prune_leaves_its_input_alone(gated: Network) -> None:
    decisions = draw(gated, 0)
    decide(
        gated,
        {
            site: units
            for site, units in decisions.items()
            if not gated.site_gates[site].data_dependent
        },
    )
    before, graph = (
        {key: tensor.clone() for key, tensor in gated.state_dict().items()},
        str(gated.graph),
    )
    gated.train()
    gatecli.prune(
        gated,
        rates={site: [float(unit) for unit in units] for site, units in decisions.items()},
        static=0.5,
    )
    assert all(
        torch.equal(tensor, before[key]) for key, tensor in gated.state_dict().items()
    ) and list(before) == list(gated.state_dict())
    assert str(gated.graph) == graph and all(part.training for part in gated.modules())
    assert [step.op for step in gated.recipe.steps] == ["attach"] and all(
        gate.forced is None for gate in gated.site_gates.values()
    )


@pytest.mark.parametrize("kept", [0, 1])
def test_prune_everything_and_nothing(gated: Network, name: str, case: Case, kept: int) -> None:
    smaller = prune_to(
        gated, {site: [kept] * gate.units for site, gate in gated.site_gates.items()}
    ).network
    x = case.images(3)
    with gatecli.force(
        gated, {site: [kept] * gate.units for site, gate in gated.site_gates.items()}
    ):
        assert close(infer(gated, x), infer(smaller, x))
    if kept:
        assert close(infer(source_of(name), x.clone()), infer(smaller, x))
        assert list(smaller.state_dict()) == [
            key for key in gated.state_dict() if key in source_of(name).state_dict()
        ]
    if smaller.gated_by:
        assert (
            name == "plaindense" and list(smaller.gated_by) == list(gated.gated_by)[:-1]
        )  # padded convolutions read them
        return
    assert not any(key.startswith(OURS) for key in smaller.state_dict())
    with pytest.raises(SettingError, match="attach"):
        gatecli.prune(smaller)


@small
def test_prune_attach_prune_again(gated: Network, method: str, case: Case, tmp_path: Path) -> None:
    """Two rounds of attach and prune, saved and loaded in between.

    Undecided gates stay and go on deciding.
    """
    sites = list(gated.gated_by)
    if len(sites) < 3:
        pytest.skip("needs three sites")
    x = case.images(4)
    once = prune_to(
        gated,
        {
            site: [int(index != 1)] * gated.site_gates[site].units
            for index, site in enumerate(sites)
        },
    ).network
    assert sites[1] not in once.sites
    twice = gatecli.attach(once, method).network
    assert list(twice.gated_by) == [site for site in sites if site != sites[1]]
    assert close(infer(once, x), infer(twice, x))
    decisions = {
        site: [int(index != 0)] * gate.units
        for index, (site, gate) in enumerate(twice.site_gates.items())
    }
    last = prune_to(twice, decisions).network
    with gatecli.force(twice, decisions):
        assert close(infer(twice, x), infer(last, x))
    assert last.macs_dense < once.macs_dense < gated.macs_dense
    gatecli.write(last, tmp_path / "last")
    loaded = gatecli.load(tmp_path / "last", arch=case.arch)
    assert torch.equal(infer(loaded, x), infer(last, x)) and loaded.sites == last.sites
    assert [step.op for step in loaded.recipe.steps] == ["attach", "prune", "attach", "prune"]


@small
def test_undecided_data_dependent_gates_stay(gated: Network, case: Case) -> None:
    sites = [site for site, gate in gated.site_gates.items() if gate.data_dependent]
    if not sites:
        pytest.skip("no gate depends on the image")
    with pytest.raises(SettingError, match="--data"):
        gatecli.prune(gated)
    rates = {site: [0.5] * gated.site_gates[site].units for site in sites}
    if len(sites) > 1:
        rates[sites[0]] = [0.0] * gated.site_gates[sites[0]].units
    result = gatecli.prune(gated, rates=rates)
    assert result.kept_dynamic == [site for site in sites if rates[site][0] == 0.5]
    assert expected_macs(result.network, rates) == result.macs_expected
    x = case.images(4)
    pruned_away = {site: [0] * gated.site_gates[site].units for site in result.removed}
    drawn = {site: z for site, z in rows(gated, 4, seed=2).items() if site in result.kept_dynamic}
    with gatecli.force(gated, {**pruned_away, **drawn}), gatecli.force(result.network, drawn):
        assert close(infer(gated, x), infer(result.network, x))
    again = gatecli.prune(
        result.network, rates={site: [0.0] * len(units) for site, units in rates.items()}
    )
    assert again.removed == result.kept_dynamic and not again.network.gated_by


# --- skipping ---


@pytest.mark.parametrize("seed", [0, 1, 2])
@every
def test_skipping_computes_what_the_masks_mean(original: Network, case: Case, seed: int) -> None:
    x = case.images(6, seed=seed)
    before = x.clone()
    with gatecli.force(original, rows(original, 6, seed)):
        assert close(masked(original, x.clone()), infer(original, x))
    assert torch.equal(x, before)


@every
def test_what_is_skipped_is_not_computed(original: Network, case: Case) -> None:
    sites = blocks(original)
    if not sites:
        pytest.skip("gates no blocks")
    for decisions in (draw(original, 0), draw(original, 1, closed=1.0)):
        with gatecli.force(original, decisions), watched(original) as seen:
            infer(original, case.images(1))
        for site in sites:
            assert seen[site] == [1] * len(branch_layers(original, site)) * decisions[site][0], site


@every
def test_in_a_batch_only_open_samples_are_computed(original: Network, case: Case) -> None:
    sites = blocks(original)
    if not sites:
        pytest.skip("gates no blocks")
    z = rows(original, 6, seed=4)
    with gatecli.force(original, z), watched(original) as seen:
        infer(original, case.images(6))
    for site in sites:
        assert seen[site] == [int(z[site].sum())] * len(branch_layers(original, site)), site


@pytest.mark.parametrize("kept", [0, 1])
def test_all_open_and_all_closed_batches(original: Network, case: Case, kept: int) -> None:
    decisions = {site: [kept] * gate.units for site, gate in original.site_gates.items()}
    for count in (1, 3):
        x = case.images(count)
        before = x.clone()
        with gatecli.force(original, decisions), watched(original) as seen:
            assert close(masked(original, x.clone()), infer(original, x))
            for calls in seen.values():
                calls.clear()
            infer(original, x)
        assert torch.equal(x, before)
        for site in blocks(original):
            assert seen[site] == [count] * len(branch_layers(original, site)) * kept


def test_an_empty_batch(original: Network, case: Case) -> None:
    assert infer(original, case.images(0)).shape == (0, original.num_classes)


def test_thresholds_at_the_ends_and_beyond(gated: Network, case: Case) -> None:
    perturb(gated)
    x = case.images(3)
    for threshold, runs in ((0.0, 1), (-1.0, 1), (-math.inf, 1), (1.0, 0), (2.0, 0), (math.inf, 0)):
        for gate in gated.site_gates.values():
            gate.threshold.fill_(threshold)
        with gatecli.record_gates(gated) as record:
            mine = infer(gated, x)
        assert all(bool((z == runs).all()) for z in record.latest().values())
        with gatecli.force(
            gated, {site: [runs] * gate.units for site, gate in gated.site_gates.items()}
        ):
            assert torch.equal(infer(gated, x), mine)


@small
def test_prune_at_thresholds_at_the_ends_and_beyond(gated: Network) -> None:
    if any(gate.data_dependent for gate in gated.site_gates.values()):
        pytest.skip("its gates depend on the image")
    assert (
        not gatecli.prune(gated, threshold=0.0).removed
        and not gatecli.prune(gated, threshold=-1.0).removed
    )
    assert (
        len(gatecli.prune(gated, threshold=1.0).removed)
        == len(gatecli.prune(gated, threshold=2.0).removed)
        == len(gated.gated_by)
    )
    for wrong in (math.inf, math.nan):
        with pytest.raises(SettingError, match="--threshold"):
            gatecli.prune(gated, threshold=wrong)


@pytest.mark.parametrize("count", [1, 5])
def test_channels_last_gives_the_same_and_stays(gated: Network, case: Case, count: int) -> None:
    x, z = case.images(count), rows(gated, 5, seed=5)
    z = {site: decided[:count] for site, decided in z.items()}
    gated.to(memory_format=torch.channels_last)
    formats = []
    handles = [
        part.register_forward_pre_hook(
            lambda _, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
        )
        for part in gated.modules()
        if isinstance(part, (nn.BatchNorm2d, nn.Conv2d))
    ]
    with gatecli.force(gated, z):
        expected = masked(gated, x.clone())
        formats.clear()
        mine = infer(gated, x.to(memory_format=torch.channels_last))
    for handle in handles:
        handle.remove()
    assert all(formats) and bool(formats) == bool(handles)
    assert relative_change(expected, mine) <= LIMIT


# --- autograd ---


def test_autograd_in_evaluation(gated: Network, case: Case) -> None:
    """Gradients of weights and image through the skipping graph are those of the masked one, and
    nothing is written into.
    """
    z = rows(gated, 4, seed=6)

    def gradients(call: Any) -> list[Tensor]:
        x = case.images(4).requires_grad_()
        before = x.detach().clone()
        with gatecli.force(gated, z):
            call(x).square().sum().backward()
        found = {
            name: parameter.grad
            for name, parameter in gated.named_parameters()
            if parameter.grad is not None
        }
        gated.zero_grad()
        assert torch.equal(x.detach(), before) and x.grad is not None
        return [x.grad, *(grad for name, grad in found.items() if bool(grad.any()))]

    skipped, meant = gradients(gated), gradients(lambda x: gated._masked(gated, x))
    assert len(skipped) == len(meant) > 1
    for a, b in zip(skipped, meant, strict=True):
        assert relative_change(b, a) <= 1e-4


@small
def test_half_precision(original: Network, gated: Network, case: Case) -> None:
    """bfloat16, all of it and by autocast: three digits."""
    x, z = case.images(5), rows(original, 5, seed=8)
    with gatecli.force(original, z), gatecli.force(gated, z):
        expected = infer(original, x)
        with torch.autocast("cpu", torch.bfloat16):
            assert relative_change(expected, infer(gated, x).float()) < 0.03
        assert relative_change(expected, infer(gated.bfloat16(), x.bfloat16()).float()) < 0.03
    assert infer(gated, x.bfloat16()).dtype == torch.bfloat16


@small
def test_inference_mode(original: Network, case: Case) -> None:
    x = case.images(3)
    with torch.inference_mode():
        inside = original(x).clone()
    assert torch.equal(infer(original, x), inside.clone())
    assert original.copy()(x).requires_grad


# --- force, copies ---


def test_force_refuses_what_is_no_decision(original: Network) -> None:
    site, gate = next(iter(original.site_gates.items()))
    good: list[Any] = [1] * gate.units
    for wrong in (
        {"no.such.site": good},
        {site: [*good, 1]},
        {site: []},
        {site: 1},
        {site: [0.5] * gate.units},
        {site: [2] * gate.units},
        {site: [-1] * gate.units},
        {site: [float("nan")] * gate.units},
        {site: ["on"] * gate.units},
        {site: None},
        {site: torch.ones(2, gate.units + 1)},
        {site: torch.ones(2, 2, gate.units)},
    ):
        with pytest.raises(SettingError), gatecli.force(original, wrong):
            pass
        assert gate.forced is None


def test_force_nests_and_ends(original: Network, case: Case) -> None:
    x, opened = (
        case.images(2),
        {site: [1] * gate.units for site, gate in original.site_gates.items()},
    )
    plain, closed = (
        infer(original, x),
        {site: [0] * gate.units for site, gate in original.site_gates.items()},
    )
    with gatecli.force(original, closed):
        outer = infer(original, x)
        with gatecli.force(original, opened):
            assert close(plain, infer(original, x))
        assert torch.equal(infer(original, x), outer)
    assert torch.equal(infer(original, x), plain) and not close(plain, outer)
    with pytest.raises(ZeroDivisionError), gatecli.force(original, closed):
        raise ZeroDivisionError
    assert torch.equal(infer(original, x), plain)


def test_a_deep_copy_is_independent(gated: Network, case: Case) -> None:
    x = case.images(3)
    before = infer(gated, x)
    twin = copy.deepcopy(gated)
    mine = {id(tensor) for tensor in [*gated.parameters(), *gated.buffers()]}
    assert not mine & {id(tensor) for tensor in [*twin.parameters(), *twin.buffers()]}
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    decide(twin, {site: [0] * gate.units for site, gate in twin.site_gates.items()})
    with watched(gated) as seen:
        assert not infer(twin, x).any()
        assert not any(seen.values())  # the copy's executors call the copy's modules
    twin.recipe = twin.recipe.with_step(Step("prune", {}))
    last = list(twin.gated_by)[-1]
    decide_for_good(twin, {last: SiteDecision.of(twin.sites[last].units, [])})
    assert (
        torch.equal(infer(gated, x), before)
        and len(gated.gated_by) == len(twin.gated_by) + 1
        and len(gated.recipe.steps) == 1
    )
    with gatecli.force(gated, {site: [0] * gate.units for site, gate in gated.site_gates.items()}):
        assert all(gate.forced is None for gate in twin.site_gates.values())


# --- every kind with every method ---

# The networks on which a kind is tried.
PLACES: dict[str, tuple[str, ...]] = {
    "block": ("own", "readers"),
    "layer": ("dense",),
    "branch": ("resnext",),
    "filter": ("own", "dense"),
    "exit": ("own-gray-oblong", "bottleneck"),
    "conv": ("preactivation", "own"),
    "hidden": ("tokens", "expansions"),
    "head": ("tokens",),
}
# Settings besides the default ones that a method is tried with.
MORE_SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "gateconnect": ({"fan_in": 4},),
    "cgnet": ({"gate": "fc"}, {"gate": "l1"}),
}
# The kind that a method gates with these settings where another one is asked for: a channel that is
# zero where it is closed is a filter.
GATED_AS: dict[tuple[str, str], str] = {("cgnet", "gate=fc"): "filter"}
# Where a clause of the contract cannot hold.
#   neutral: by default each branch reads half of those there are, which is another network; that
#       nothing changes is promised with fan_in as large as the number of branches alone, and so it
#       is with the settings above.
#   closes: each branch reads fan_in >= 1 others, so that a module of which nobody reads anything
#       does not exist; the other extreme is that all read the same ones. Where all read all there
#       is but one thing to say.
#   learns: a baseline's gates are drawn at random, and there is nothing in them to learn.
#   forced: which branch reads which is a table, of which `force` can only close columns: the
#       network that is forced has to have the same table.
EXCEPT: dict[str, tuple[tuple[str, str], ...]] = {
    "neutral": (("gateconnect", "by default"),),
    "closes": (("gateconnect", "by default"), ("gateconnect", "fan_in=4")),
    "forced": (("gateconnect", "by default"), ("gateconnect", "fan_in=4")),
    "learns": (("stochastic-depth", "by default"),),
}


@dataclass(frozen=True)
class Pair:
    """A method on a kind of sites, with these settings, in one of the networks."""

    method: str
    kind: str
    name: str
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def how(self) -> str:
        return ",".join(f"{key}={value}" for key, value in self.settings) or "by default"

    @property
    def case(self) -> Case:
        return case_of(self.name)

    @property
    def id(self) -> str:
        return "-".join([self.method, self.kind, self.name, *(f"{k}{v}" for k, v in self.settings)])

    def excepted(self, clause: str) -> bool:
        return (self.method, self.how) in EXCEPT[clause]


def allowed() -> list[tuple[str, str]]:
    """Every method with every kind that offers what it requires."""
    return [
        (method, kind.name)
        for kind in registry.all_kinds()
        for method in methods.names()
        if methods.get(method).about.requires <= kind.offers
    ]


# How far what is counted may be from what runs, where not all that runs is a multiplication: the
# kernels of connections have the shift as one more row of their weights, times 1.
SHIFT_ROWS: dict[str, float] = {"branch": 0.005}

PAIRS = [
    Pair(method, kind, name, tuple(settings.items()))
    for method, kind in allowed()
    for name in PLACES.get(kind, ())
    for settings in ({}, *MORE_SETTINGS.get(method, ()))
]


@functools.cache
def attached_pair(pair: Pair) -> Attached:
    case, settings = pair.case, dict(pair.settings)
    return gatecli.attach(
        source_of(pair.name),
        pair.method,
        kinds=[pair.kind],
        input_size=case.size,
        arch=case.arch,
        **settings,
    )


@pytest.fixture(params=PAIRS, ids=lambda pair: pair.id)
def pair(request: pytest.FixtureRequest) -> Pair:
    found: Pair = request.param
    return found


@pytest.fixture
def paired(pair: Pair) -> Network:
    """A copy of the pair's network, away from its neutral start."""
    network = attached_pair(pair).network.copy()
    perturb(network, 0.05)
    perturb_shared(network, pair.method)
    for gate in network.site_gates.values():
        if hasattr(gate, "neutral"):  # open until it is trained, without looking at anything
            gate.neutral.fill_(False)
    return network


def perturb_shared(network: Network, method: str) -> None:
    """The same for what the gates have in common."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in methods.get(method).objective.shared(network):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def settle(network: Network, value: int) -> None:
    """Let all gates decide so for every image by themselves."""
    for site, gate in network.site_gates.items():
        kind = registry.of(network.sites[site])
        if kind.leaves:
            gate.threshold.fill_(-math.inf if value else math.inf)
        elif kind.linked:
            settle_connections(gate, value)
        else:
            decide(network, {site: [value] * gate.units})


def settle_connections(gate: Any, value: int) -> None:
    """All branches are read by somebody, or all readers read the same ones."""
    table, count = torch.zeros_like(gate.chosen), gate.units
    for reader in range(len(table)):
        for step in range(gate.fan_in):
            table[reader, (reader * value + step) % count] = 1
    gate.freeze(table)


def says(network: Network, x: Tensor, value: int) -> tuple[Decisions, dict[str, list[float]]]:
    """What the gates decide about images, the same for all: as decisions, and as rates.

    Nobody comes to a gate behind an exit that all take: its rate is 0.
    """
    meter = RateMeter()
    meter.total = len(x)
    with observe(network, meter):
        infer(network, x)
    seen, decisions, rates = meter.rates(), {}, {}
    for site, gate in network.site_gates.items():
        rates[site] = seen.get(site, [0.0] * gate.units)
        assert set(rates[site]) <= {0.0, 1.0}, site
        decisions[site] = [int(rate) for rate in seen.get(site, [float(value)] * gate.units)]
    return decisions, rates


def run_macs(network: Network, x: Tensor) -> int:
    with counted() as macs:
        infer(network, x)
    return macs.total


def test_every_allowed_pair_is_tried() -> None:
    assert {(pair.method, pair.kind) for pair in PAIRS} == set(allowed())
    assert {pair.method for pair in PAIRS} == set(methods.names())
    assert {pair.kind for pair in PAIRS} == set(registry.names()) == set(PLACES)
    known = {(pair.method, pair.how) for pair in PAIRS}
    assert all(known.issuperset(excepted) for excepted in EXCEPT.values())


def test_a_pair_gates_that_kind_and_changes_no_prediction(pair: Pair) -> None:
    result = attached_pair(pair)
    network = result.network
    gated_as = GATED_AS.get((pair.method, pair.how), pair.kind)
    assert result.kinds == [gated_as] and set(network.gated_by.values()) == {pair.method}
    assert list(network.site_gates) == list(network.gated_by)
    x = pair.case.images(5)
    changed = relative_change(infer(source_of(pair.name), x.clone()), infer(network, x))
    if pair.excepted("neutral"):
        assert changed > LIMIT and result.max_logit_change > LIMIT  # else it is no exception
    else:
        assert changed <= LIMIT and result.max_logit_change <= LIMIT


def test_the_loss_reaches_every_gate_of_a_pair(pair: Pair, paired: Network) -> None:
    chosen = methods.get(pair.method).objective
    trains = chosen.traits.trains
    settings, gates = attached_settings(pair), paired.site_gates
    x, labels = pair.case.images(8), torch.arange(8) % paired.num_classes
    seen: dict[str, Tensor] = {}
    for site, gate in gates.items():
        gate.register_forward_pre_hook(lambda _, args, site=site: seen.update({site: args[0]}))
    targets = chosen.targets(settings, paired.gated_by, 0) if trains == "network" else {}
    for seed in range(4):  # an exit learns from the images that leave there
        torch.manual_seed(seed)
        with record_gates(paired.train()) as record:
            logits = paired(x)
        if trains == "exits":  # each alone, by a loss of its own
            loss = sum(gate.loss(gate.classify(seen[site]), labels) for site, gate in gates.items())
        else:
            loss = F.cross_entropy(logits, labels) + chosen.loss(record.latest(), settings, targets)
            loss = loss + chosen.penalty(gates.values(), settings)
        loss.backward()
    trained = {
        f"{site} {part}": parameter
        for site, gate in gates.items()
        for part, parameter in gate.named_parameters()
    }
    trained |= {f"shared {n}": each for n, each in enumerate(chosen.shared(paired))}
    assert bool(trained) != pair.excepted("learns")
    assert set(seen) == set(record.latest()) == set(paired.gated_by)
    for part, parameter in trained.items():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), part
        assert part.endswith(SHIFTED) or bool(parameter.grad.any()), part


def attached_settings(pair: Pair) -> Any:
    chosen = methods.get(pair.method)
    return methods.parse_settings(chosen, dict(pair.settings))


def test_a_pair_is_saved_and_loaded_exactly(pair: Pair, paired: Network, tmp_path: Path) -> None:
    gatecli.write(paired, tmp_path / "net.safetensors")
    loaded = gatecli.load(tmp_path / "net.safetensors", arch=pair.case.arch)
    before, after = paired.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert loaded.recipe == paired.recipe and loaded.sites == paired.sites
    assert loaded.gated_by == paired.gated_by and loaded.macs_dense == paired.macs_dense
    x = pair.case.images(3)
    assert torch.equal(infer(paired, x), infer(loaded, x))


@pytest.mark.parametrize("value", [0, 1])
def test_a_pair_pruned_at_an_extreme_is_what_was_decided(
    pair: Pair, paired: Network, value: int
) -> None:
    """The network with the decisions forced, with gates that make them, and pruned: the same."""
    x, said = pair.case.images(4), paired.copy()
    settle(said, value)
    decisions, rates = says(said, x, value)
    if not pair.excepted("closes"):
        assert all(set(units) == {value} for units in decisions.values())
    result = gatecli.prune(said, rates=rates, static=0.5)
    assert list(result.network.gated_by) == list(result.stuck)
    assert not value or not result.stuck  # what runs is let go of, what does not may be in the way
    pruned = infer(result.network, x)
    other = said if pair.excepted("forced") else paired
    with gatecli.force(other, decisions):
        forced = infer(other, x)
    assert close(forced, infer(said, x)) and close(forced, pruned)
    assert result.max_logit_change <= LIMIT


@pytest.mark.parametrize("value", [0, 1])
def test_what_a_pair_is_expected_to_cost_is_what_it_multiplies(
    pair: Pair, paired: Network, value: int
) -> None:
    settle(paired, value)
    x = pair.case.images(1)
    _, rates = says(paired, x, value)
    rel = SHIFT_ROWS.get(pair.kind, 1e-9)
    assert expected_macs(paired, rates) == pytest.approx(run_macs(paired, x), rel=rel)
    result = gatecli.prune(paired, rates=rates, static=0.5)
    assert result.macs_expected == pytest.approx(run_macs(result.network, x), rel=rel)


def test_a_deep_copy_of_a_pair_is_whole_and_its_own(pair: Pair, paired: Network) -> None:
    x = pair.case.images(3)
    before = infer(paired, x)
    twin = copy.deepcopy(paired)
    assert torch.equal(infer(twin, x), before) and twin.gated_by == paired.gated_by
    mine = {id(tensor) for tensor in [*paired.parameters(), *paired.buffers()]}
    assert not mine & {id(tensor) for tensor in [*twin.parameters(), *twin.buffers()]}
    for value in (1, 0):
        settle(twin, value)
        assert twin.site_gates.keys() == says(twin, x, value)[0].keys()
        assert torch.equal(infer(paired, x), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not infer(twin, x).any() and torch.equal(infer(paired, x), before)


# --- elsewhere ---


@pytest.mark.gpu
@every
@in_whole_float32()
def test_on_a_gpu(gated: Network, name: str, case: Case) -> None:
    x = case.images(5)
    expected, z = infer(gated, x), rows(gated, 5, seed=7)
    with gatecli.force(gated, z):
        expected_skipped = infer(gated, x)
    gated.cuda()
    assert relative_change(expected, infer(gated, x.cuda()).cpu()) <= 1e-4
    with gatecli.force(gated, z):
        assert relative_change(expected_skipped, infer(gated, x.cuda()).cpu()) <= 1e-4
    source = copy.deepcopy(source_of(name)).cuda()
    for chosen in set(gated.gated_by.values()):
        again = gatecli.attach(source, chosen, input_size=case.size)
        assert again.network.device.type == "cuda" and again.max_logit_change <= LIMIT
        decisions = draw(again.network, 0)
        smaller = prune_to(again.network, decisions)
        assert smaller.max_logit_change <= 1e-4
