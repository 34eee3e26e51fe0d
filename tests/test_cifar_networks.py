"""DenseNets-BC and Shake-Shake networks for CIFAR.

What they compute, and what gates and prune make of them.
"""

from __future__ import annotations

import functools

import pytest
import torch
from networks import lively
from torch import Tensor, nn

import gatecli
from gatecli.architectures.build import build
from gatecli.architectures.cifar.densenet import CifarDenseNet
from gatecli.architectures.cifar.shakeshake import CifarShakeShake
from gatecli.graph.ops import shake
from gatecli.network import Network
from gatecli.network.compare import relative_change
from gatecli.traced.recipe import InputSpec, Recipe, Source

SIZE = (16, 16)


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(4))


@functools.cache
def source(kind: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CifarShakeShake(4) if kind == "shakeshake" else CifarDenseNet(16, 4)
        return lively(model, images(8))


def traced(kind: str) -> Network:
    return Network(source(kind), Recipe(Source(f"{kind}:small", {}), InputSpec(SIZE, 3))).eval()


def test_shake_against_the_formula() -> None:
    a, b = (
        torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        for seed in (1, 2)
    )
    torch.manual_seed(7)
    alpha, beta = torch.rand(3, 1, 1, 1), torch.rand(3, 1, 1, 1)
    torch.manual_seed(7)
    mixed = shake(a, b, training=True)
    for image in range(3):
        expected = alpha[image].item() * a[image] + (1 - alpha[image].item()) * b[image]
        assert torch.allclose(mixed[image], expected, atol=1e-6)
    mixed.sum().backward()  # type: ignore[no-untyped-call]
    assert a.grad is not None and b.grad is not None
    assert torch.allclose(a.grad, beta.expand_as(a)) and torch.allclose(
        b.grad, (1 - beta).expand_as(b)
    )
    assert torch.allclose(shake(a, b, training=False), torch.stack([a, b]).mean(0))


@pytest.mark.parametrize("kind", ["shakeshake", "densenet"])
def test_a_traced_network_is_its_source_in_both_modes(kind: str) -> None:
    model, network = source(kind), traced(kind)
    x = images()
    with torch.no_grad():
        assert relative_change(model(x), network(x)) < 1e-6
        outputs = []
        for each in (model, network.copy()):
            each.train()
            torch.manual_seed(3)
            outputs.append((each(x), each(x)))
            each.eval()
    assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))
    assert torch.equal(*outputs[0]) is (kind == "densenet")


@pytest.mark.parametrize("name", ["densenetbc100_12", "shakeshake26_2x64d"])
def test_files_of_these_networks_are_recognised(name: str) -> None:
    from gatecli.architectures.build import build_skeleton
    from gatecli.architectures.identify import identify
    from gatecli.architectures.shapes import shapes_of

    found = identify(shapes_of(build_skeleton(f"cifar:{name}", {"num_classes": 36, "channels": 1})))
    assert (found.arch, found.args) == (f"cifar:{name}", {"num_classes": 36, "channels": 1})


def test_a_pixel_further_in_the_second_half_of_the_shortcut() -> None:
    shortcut = build("cifar:shakeshake26_2x64d", {}).get_submodule("layer2.0.shortcut")
    x = torch.rand(1, 64, 4, 4)
    with torch.no_grad():
        seen = shortcut(x)
        for y in range(2):
            for column in range(2):
                first = shortcut.conv1(x[:, :, 2 * y : 2 * y + 1, 2 * column : 2 * column + 1])[
                    0, :, 0, 0
                ]  # type: ignore[operator]
                inside = 2 * y + 1 < 4 and 2 * column + 1 < 4
                second = (
                    shortcut.conv2(x[:, :, 2 * y + 1 : 2 * y + 2, 2 * column + 1 : 2 * column + 2])[
                        0, :, 0, 0
                    ]
                    if inside
                    else torch.zeros(64)
                )  # type: ignore[operator]
                assert torch.allclose(
                    seen[0, :, y, column], torch.cat([first, second]) / (1 + 1e-5) ** 0.5, atol=1e-5
                )


def gated(kind: str) -> Network:
    return gatecli.attach(traced(kind), "gaternet", bottleneck=2).network


def test_every_way_of_a_shake_shake_network_is_gated() -> None:
    network = gated("shakeshake")
    assert list(network.gated_by) == [
        f"layer{stage}.{unit}.way{way}.conv2.filters"
        for stage in (1, 2, 3)
        for unit in range(4)
        for way in (1, 2)
    ]


def test_layers_of_a_densenet_are_gated_but_for_the_first_of_a_block() -> None:
    assert list(gated("densenet").gated_by) == [
        f"dense{block}.1.conv2.filters" for block in (1, 2, 3)
    ]


@pytest.mark.parametrize("ways", [(1,), (2,), (1, 2)])
def test_ways_that_never_run_are_taken_out(ways: tuple[int, ...]) -> None:
    network = gated("shakeshake")
    rates = {site: [1.0] * gate.units for site, gate in network.site_gates.items()}
    gone = [f"layer2.{unit}.way{way}.conv2.filters" for unit in (0, 1) for way in ways]
    for site in gone:
        rates[site] = [0.0] * len(rates[site])
    result = gatecli.prune(network, rates=rates)
    assert result.removed == sorted(gone) and not result.stuck and result.max_logit_change < 1e-5
    left = result.network.state_dict()
    assert not any(
        name.startswith(site.removesuffix("conv2.filters")) for name in left for site in gone
    )
    with torch.no_grad():
        result.network.train()(images())  # the mean's other half goes on without it


def test_filters_of_ways_go_one_by_one() -> None:
    network = gated("shakeshake")
    rates = {
        site: [0.0, 1.0, 0.5, *[1.0] * (gate.units - 3)]
        for site, gate in network.site_gates.items()
    }
    result = gatecli.prune(network, rates=rates)
    assert result.max_logit_change < 1e-5 and set(result.thinned) == set(network.gated_by)
    assert result.network.get_submodule("layer1.0.way1.conv2").out_channels == 3
    assert all(gate.units == 1 for gate in result.network.site_gates.values())
