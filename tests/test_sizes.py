"""Networks that ask for sizes: traced for any batch, and right where samples leave or skip."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gatecli
from gatecli.errors import ArchitectureError
from gatecli.gates import Exit
from gatecli.graph.leaves import further_tracers
from gatecli.graph.shapes import evaluate
from gatecli.graph.trace import trace
from gatecli.probe import logits, relative_change

SIZE = (16, 16)


class Basic(nn.Module):
    """A residual block of maps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class Early(nn.Module):
    """Reads the number of images first, and uses it last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.two = Basic(8), Basic(8)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.three, self.four = Basic(8), Basic(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        n = images.size(0)
        x = self.two(self.one(self.stem(images)))
        x = self.four(self.three(self.down(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).view(n, -1))


class Windows(nn.Module):
    """Attention-like: windows in the batch, control flow on sizes, a constant made of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.norms = nn.ModuleList([nn.LayerNorm(8) for _ in range(2)])
        self.mixes = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.last = Basic(8)
        self.fc = nn.Linear(8, 5)

    def mixed(self, x: Tensor, number: int) -> Tensor:
        count, height, width, channels = x.shape
        if height % 4 or width % 4:
            x = F.pad(x, (0, 0, 0, -width % 4, 0, -height % 4))
        x = x.view(count, height // 4, 4, width // 4, 4, channels).transpose(2, 3)
        x = x.reshape(-1, 16, channels)
        places = torch.arange(int(x.shape[1] ** 0.5), device=x.device).repeat(4).view(1, 16, 1)
        x = self.mixes[number](self.norms[number](x)) + places.to(x.dtype) / 10
        back = int(x.shape[0] / (height * width / 16))
        x = x.view(back, height // 4, width // 4, 4, 4, channels).transpose(2, 3)
        return x.reshape(back, height, width, channels)

    def forward(self, images: Tensor) -> Tensor:
        n = len(images)
        x = self.stem(images).permute(0, 2, 3, 1)
        for number in range(len(self.mixes)):
            x = x + self.mixed(x, number)
        x = self.last(x.permute(0, 3, 1, 2))
        return self.fc(x.mean((2, 3)).reshape(n, -1))


class Counts(nn.Module):
    """Does otherwise for more than one image."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 1:
            return x.mean((2, 3)) * 2
        return x.mean((2, 3))


class Looks(nn.Module):
    """Does otherwise for bright images."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.mean() > 0 else x.amax((2, 3))


def images(count: int) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(count))


def forced(gated: nn.Module, count: int, share: float) -> dict[str, Tensor]:
    draw = random.Random(0)
    decisions = {}
    for site, gate in gated.site_gates.items():
        rows = [[float(draw.random() < share)] * gate.units for _ in range(count)]
        decisions[site] = torch.tensor(rows)
    return decisions


@pytest.mark.parametrize("network", [Early, Windows])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_any_batch_gives_the_plain_logits(network: type[nn.Module], count: int) -> None:
    torch.manual_seed(0)
    model = network().eval()
    gated = gatecli.attach(model, "ind-perbatch", input_size=SIZE).network.eval()
    x = images(count)
    assert relative_change(logits(model, x), logits(gated, x)) < 1e-6


@pytest.mark.parametrize(("network", "sites"), [(Early, 4), (Windows, 3)])
def test_blocks_are_skipped_for_some_of_a_batch(network: type[nn.Module], sites: int) -> None:
    torch.manual_seed(0)
    gated = gatecli.attach(network().eval(), "aig-perbatch", input_size=SIZE).network.eval()
    assert len(gated.site_gates) == sites
    x = images(7)
    with gatecli.force(gated, forced(gated, 7, 0.5)), torch.no_grad():
        gated(x)
        skipping = [part for part in gated.modules() if type(part).__name__ == "SkipBlock"]
        assert len(skipping) == sites
        assert relative_change(gated._masked(gated, x), gated(x)) < 1e-5


def test_a_size_read_early_takes_no_exit_away() -> None:
    torch.manual_seed(0)
    gated = gatecli.attach(Early().eval(), "dgate", input_size=SIZE).network.eval()
    exits = gated.site_exits
    assert len(exits) == 1
    with torch.no_grad():
        for exit_ in exits.values():
            for parameter in exit_.parameters():
                parameter.normal_(0, 0.1)
    x = images(7)
    with gatecli.force(gated, forced(gated, 7, 0.4)), torch.no_grad():
        assert relative_change(gated._masked(gated, x), gated(x)) < 1e-5
        taken = gated(x, return_exits=True)[1]
    assert 0 < int((taken == 0).sum()) < 7


@pytest.mark.parametrize(("network", "why"), [(Counts, "number of images"), (Looks, "an image")])
def test_control_flow_on_images_is_refused_with_the_line(
    network: type[nn.Module], why: str
) -> None:
    with pytest.raises(ArchitectureError, match=f"test_sizes.py:[0-9]+.*{why}"):
        gatecli.attach(network(), "ind-perbatch", input_size=SIZE)


def test_int_and_len_are_pythons_own_again() -> None:
    torch.manual_seed(0)
    gatecli.attach(Windows().eval(), "ind-perbatch", input_size=SIZE)
    assert not {"int", "len"} & globals().keys()


def test_a_number_made_of_the_number_of_images_is_no_constant() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (x.shape[0] > 1) + x.shape[2]

    graph = trace(Halves())
    values = evaluate(Halves(), graph, (3, 8, 8))
    kinds = {}
    for node in graph.nodes:
        kinds[node.name] = (values.varies(node), values.is_constant(node))
    assert kinds["gt"] == (True, False)  # True for both batches that are tried, but not for one
    assert (False, True) in kinds.values()


def test_what_a_forward_keeps_is_put_back() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 4)
            self.seen: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.seen is not None and self.seen.shape[1] != x.shape[1]:
                raise ValueError("another network's")
            self.seen = x
            return self.fc(x.mean((2, 3))) if x.shape[2] > 4 else x.mean((2, 3))

    model = Keeps().eval()
    graph = trace(model, (), lambda: further_tracers(model, (), (3, *SIZE)))
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["fc"]
    assert model.seen is None
    assert model(images(2)).shape == (2, 4)


def test_gates_package_says_what_there_is() -> None:
    from gatecli import gates

    assert gates.Exit is Exit
    assert {"Decider", "Exit", "Gate"} <= set(gates.__all__)
