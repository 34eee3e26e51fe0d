"""The skipping form computes what the masked form means, whatever else reads a block's input and
whichever gates are open.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import branches, traced
from torch import Tensor, nn
from torch.nn import functional as F

import gatecli
from gatecli.graph.trace import compile_graph
from gatecli.lowering.inplace import WritingExecutor as SkipBlock
from gatecli.network import Network

WIDTH = 4
Line = tuple[str, int, int]


class Program(nn.Module):
    """A network from lines (what, first, second).

    Each reads two of the values before it and appends another one.
    """

    def __init__(self, lines: list[Line]) -> None:
        super().__init__()
        self.lines = lines
        self.stem = nn.Conv2d(3, WIDTH, 3, 1, 1)
        self.convs = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 1) for _ in lines)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        values = [self.stem(x)]
        for conv, (what, first, second) in zip(self.convs, self.lines, strict=True):
            a, b = values[first % len(values)], values[second % len(values)]
            values.append(
                {
                    "block": self.block,
                    "apart": self.apart,
                    "relu": self.relu,
                    "view": self.view,
                    "sum": self.sum,
                    "scale": self.scale,
                    "conv": self.conv,
                }[what](conv, a, b)
            )
        return self.head(torch.stack([value.mean((2, 3)) for value in values]).sum(0))

    def block(self, conv: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        return a + conv(a)

    def apart(self, conv: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        branch = conv(a)
        return F.relu(a.sigmoid() + branch) if a is b else a + branch

    def relu(self, conv: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        return F.relu(a)

    def view(self, conv: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        return a.flatten(2).unflatten(2, (5, 5))

    def sum(self, conv: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def conv(self, conv: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        return conv(a)

    def scale(self, conv: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        return a * 0.5


LINES = st.tuples(
    st.sampled_from(["block", "apart", "conv", "conv", "relu", "view", "sum", "sum", "scale"]),
    st.integers(0, 9),
    st.integers(0, 9),
)


@given(st.lists(LINES, min_size=2, max_size=9), st.integers(0, 2**16), st.sampled_from([1, 3]))
@settings(max_examples=60, deadline=None)
def test_skipping_against_masking(lines: list[Line], seed: int, count: int) -> None:
    torch.manual_seed(seed)
    network = traced(Program(lines).eval(), (5, 5))
    if not branches(network):
        return
    gated = gatecli.attach(network, "ind-perbatch").network
    images = torch.randn(count, 3, 5, 5)
    decisions = {site: torch.randint(0, 2, (count, 1)).float() for site in gated.site_gates}
    reference = compile_graph(gated.graph)
    with torch.no_grad(), gatecli.force(gated, decisions):
        wanted, found = reference(gated, images), gated(images)
    torch.testing.assert_close(found, wanted)


class Siblings(nn.Module):
    """Two blocks on one input, the additions in the other order than the branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = (
            nn.Conv2d(3, 4, 1),
            nn.Conv2d(4, 4, 1),
            nn.Conv2d(4, 4, 1),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        one, two = self.one(x), self.two(x)
        second = x + two
        first = x + one
        return self.head(torch.cat([first, second], 1).mean((2, 3)))


def test_a_closed_block_s_output_is_not_written_into() -> None:
    """The second addition returns its very input where its gate is closed.

    The first, which runs later, must not write there.
    """
    gated = gatecli.attach(traced(Siblings(), (5, 5)), "ind-perbatch").network
    images = torch.randn(3, 3, 5, 5)
    with (
        torch.no_grad(),
        gatecli.force(gated, {"one": torch.tensor([[1.0], [0.0], [1.0]]), "two": [0]}),
    ):
        torch.testing.assert_close(gated(images), compile_graph(gated.graph)(gated, images))


class Deep(nn.Module):
    """Many blocks whose element-wise operations all may pass a tensor on."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.GELU(), nn.Conv2d(4, 4, 1)) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = (x + block(x.sigmoid() * x.tanh())).clamp(-9)
        return self.head(x.mean((2, 3)))


def test_deciding_where_to_write_takes_no_exponential_time() -> None:
    network: Network = gatecli.attach(traced(Deep(40), (5, 5)), "ind-perbatch").network
    network(torch.randn(1, 3, 5, 5))  # 2^40 steps would not end
    assert sum(isinstance(part, SkipBlock) for part in network.modules()) == 40
