"""Small networks for the tests: the usual ones, and what users write.

Other names, functional and in-place operations, odd shapes.

Each function takes no argument, so that a checkpoint can name it as `networks:NAME`. `CASES` says
what images each takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gatecli.architectures.build import build
from gatecli.architectures.cifar import CifarResNet
from gatecli.kinds import registry
from gatecli.network import Network
from gatecli.network.sites import find_sites
from gatecli.traced.recipe import InputSpec, Recipe, Source
from gatecli.traced.site import Site
from gatecli.traced.traced import NodeCost, Traced


def cifar_projection() -> nn.Module:
    return CifarResNet(20)


def cifar_pad() -> nn.Module:
    return CifarResNet(20, shortcut="pad", channels=1)


def resnet18() -> nn.Module:
    return build(
        "torchvision:resnet18", {"stem": "cifar", "num_classes": 10, "width_per_group": 64}
    )


def bottleneck() -> nn.Module:
    """torchvision's own bottlenecks, thin ones, with the stem for large images."""
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [2, 1, 1, 1], num_classes=7, width_per_group=8)


def resnext() -> nn.Module:
    """A ResNeXt as torchvision's, small: 2 + 2 + 1 + 1 modules of four branches."""
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [2, 2, 1, 1], num_classes=5, groups=4, width_per_group=4)


class Unit(nn.Module):
    """A residual block as users write it: other names, `out += x`, functional ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.c1, self.n1 = (
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.c2, self.n2 = nn.Conv2d(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs)
        self.skip = (
            nn.Conv2d(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.n2(self.c2(F.relu(self.n1(self.c1(x)), inplace=True)))
        out += x if self.skip is None else self.skip(x)
        return F.relu(out)


class Added(nn.Module):
    """The same with torch.add, a method's ReLU, and dropout that only training does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, F.dropout(self.body(x), 0.3, self.training)).relu()


class Own(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.entrance = nn.Conv2d(channels, 8, 3, 1, 1)
        self.units = nn.ModuleList([Unit(8, 8), Unit(8, 12, 2), Added(12)])
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.entrance(x))
        for unit in self.units:
            x = unit(x)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def own() -> nn.Module:
    return Own()


def gray() -> nn.Module:
    return Own(channels=1)


class PreUnit(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.act(self.bn2(self.conv1(self.act(self.bn1(x)))))) + x


class PreActivation(nn.Module):
    """He et al. 2016: the addition is the block's last operation, nothing rectifies it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 1, 1)
        self.blocks = nn.Sequential(PreUnit(8), PreUnit(8), PreUnit(8))
        self.bn, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.bn(self.blocks(self.conv(x)))).mean((2, 3)))


def preactivation() -> nn.Module:
    return PreActivation()


class Writing(nn.Module):
    """Writes in place wherever it can.

    Into a block's input, into its output, by name, by argument and without using the result.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, 1, 1) for _ in range(8))
        self.act, self.hard = nn.ReLU(inplace=True), nn.Hardswish(inplace=True)
        self.fc = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.convs[1](
            self.act(self.convs[0](self.act(x)))
        )  # the shortcut carries what was written
        x = x + self.convs[3](self.act(self.convs[2](x.relu_())))  # and here, into a block's output
        first = x
        y = x.clone()
        y += self.convs[5](F.relu(self.convs[4](y), inplace=True))
        second = y.relu()
        z = second + self.convs[7](self.act(self.convs[6](second)))
        self.hard(z)  # its result is z
        return self.fc(torch.cat([part.mean((2, 3)) for part in (first, second, z)], 1))


def writing() -> nn.Module:
    return Writing()


class Readers(nn.Module):
    """Every block's input is read again at the end, and some outputs are written into before.

    Skipping must leave both alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 8, 3, 1, 1),
                nn.BatchNorm2d(8),
                nn.ReLU(inplace=True),
                nn.Conv2d(8, 8, 3, 1, 1),
            )
            for _ in range(4)
        )
        self.act = nn.SiLU(inplace=True)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))  # one for all blocks
        self.fc = nn.Linear(40, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        features = [x]
        for index, block in enumerate(self.blocks):
            x = x + self.scale * block(x)
            features.append(x)
            if index % 2:
                x = F.relu(x)
        last = self.act(x)
        return self.fc(torch.cat([f.mean((2, 3)) for f in [*features[:-1], last]], 1))


def readers() -> nn.Module:
    return Readers()


class OneBlock(nn.Module):
    """One block, whose input is the image itself."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, 1, 1), nn.Conv2d(3, 3, 3, 1, 1)
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((x + self.two(torch.relu(self.one(x)))).mean((2, 3)))


def oneblock() -> nn.Module:
    return OneBlock()


class Tokens(nn.Module):
    """A small transformer on patches: values (N, L, C), two branches a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(4))
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(2)
        )
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(2)
        )
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for index, (attention, mlp) in enumerate(zip(self.attention, self.mlps, strict=True)):
            y = self.norms[2 * index](x)
            x = x + attention(y, y, y, need_weights=False)[0]
            x = x + mlp(self.norms[2 * index + 1](x))
        return self.fc(x.mean(1))


def tokens() -> nn.Module:
    return Tokens()


class DenseLayer(nn.Module):
    """As torchvision writes it: takes the list of all features before it."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 6, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(6), nn.Conv2d(6, growth, 3, 1, 1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        out = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return F.dropout(self.conv2(F.relu(self.norm2(out))), 0.2, self.training)


class Dense(nn.Module):
    """Two dense blocks with a transition between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.first = nn.ModuleList(DenseLayer(8 + 4 * i, 4) for i in range(3))
        self.norm, self.conv, self.pool = (
            nn.BatchNorm2d(20),
            nn.Conv2d(20, 10, 1, bias=False),
            nn.AvgPool2d(2),
        )
        self.second = nn.ModuleList(DenseLayer(10 + 4 * i, 4) for i in range(2))
        self.last, self.fc = nn.BatchNorm2d(18), nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.first:
            features.append(layer(features))
        features = [self.pool(self.conv(F.relu(self.norm(torch.cat(features, 1)))))]
        for layer in self.second:
            features.append(layer(features))
        return self.fc(
            F.adaptive_avg_pool2d(F.relu(self.last(torch.cat(features, 1))), 1).flatten(1)
        )


def dense() -> nn.Module:
    return Dense()


class PlainDense(nn.Module):
    """As CIFAR DenseNets are written: each layer concatenates to what came.

    3x3 convolutions read it, padded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 1, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 3 * i) for i in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 3 * i, 3, 3, 1, 1, bias=False) for i in range(3))
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(15, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, conv(self.act(norm(x)))], dim=1)
        return self.fc(self.act(self.norms[3](x)).mean((2, 3)))


def plaindense() -> nn.Module:
    return PlainDense()


class Expansion(nn.Module):
    """An inverted residual, with squeeze-and-excitation or without, as MobileNetV3 has them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, squeezed: int, stride: int) -> None:
        super().__init__()
        self.expand, self.bn1 = nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.depth = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=not squeezed)
        self.bn2, self.act = nn.BatchNorm2d(hidden), nn.Hardswish(inplace=True)
        self.squeeze = nn.Conv2d(hidden, squeezed, 1) if squeezed else None
        self.excite = nn.Conv2d(squeezed, hidden, 1) if squeezed else None
        self.project, self.bn3 = nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn2(self.depth(self.act(self.bn1(self.expand(x))))))
        if self.squeeze is not None and self.excite is not None:
            scale = F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))
            y = F.hardsigmoid(self.excite(scale)) * y
        y = self.bn3(self.project(y))
        return y + x if self.shortcut else y


class Expansions(nn.Module):
    """All forms of hidden units.

    Inverted residuals, a perceptron on channels that come last (ConvNeXt), one of 1x1 convolutions,
    and a classifier's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.first, self.second = Expansion(8, 24, 8, 4, 1), Expansion(8, 20, 12, 0, 2)
        self.depth, self.norm = nn.Conv2d(12, 12, 3, 1, 1, groups=12), nn.LayerNorm(12)
        self.wide, self.narrow = nn.Linear(12, 28), nn.Linear(28, 12)
        self.mlp = nn.Sequential(nn.Conv2d(12, 16, 1), nn.GELU(), nn.Conv2d(16, 12, 1))
        self.head = nn.Sequential(
            nn.Linear(12, 18), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(18, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(self.stem(x)))
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        x = x + self.narrow(F.gelu(self.wide(y))).permute(0, 3, 1, 2)
        x = x + self.mlp(x)
        return self.head(x.mean((2, 3)))


def expansions() -> nn.Module:
    return Expansions()


@dataclass(frozen=True)
class Case:
    """A network and its images: `size` (height, width), `channels`.

    `blocks` says how many residual branches it has.
    """

    make: Callable[[], nn.Module]
    blocks: int
    size: tuple[int, int] = (32, 32)
    channels: int = 3

    @property
    def arch(self) -> str:
        return f"networks:{self.make.__name__}"

    def build(self) -> nn.Module:
        """The network, trained as far as a test needs it; the same one every time."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return lively(self.make(), self.images(8, seed=1))

    def images(self, count: int, seed: int = 0) -> Tensor:
        return torch.randn(
            count, self.channels, *self.size, generator=torch.Generator().manual_seed(seed)
        )

    def network(self) -> Network:
        return traced(self.build(), self.size)


CASES = {
    "cifar-projection": Case(cifar_projection, 9, (16, 16)),
    "cifar-pad-gray": Case(cifar_pad, 9, (16, 16), channels=1),
    "resnet18": Case(resnet18, 8, (16, 16)),
    "bottleneck": Case(bottleneck, 5),
    "own": Case(own, 3),
    "own-gray-oblong": Case(gray, 3, (12, 20), channels=1),
    "preactivation": Case(preactivation, 3),
    "writing": Case(writing, 4, (9, 12)),
    "readers": Case(readers, 4, (8, 8)),
    "oneblock": Case(oneblock, 1, (8, 8)),
    "tokens": Case(tokens, 4),
    "dense": Case(dense, 5, (8, 12)),
    "plaindense": Case(plaindense, 3, (9, 6)),
}


# Several of the connections between modules; apart, as most tests gain nothing by it.
RESNEXT = Case(resnext, 6, (16, 16))
# All forms of hidden units; apart, as they are small residual branches to all that looks for such.
EXPANSIONS = Case(expansions, 3, (10, 8))
APART = {"resnext": RESNEXT, "expansions": EXPANSIONS}


def infer(network: nn.Module, x: Tensor) -> Tensor:
    """Logits, without autograd."""
    with torch.no_grad():
        logits: Tensor = network(x)
        return logits


def masked(network: Network, x: Tensor) -> Tensor:
    """What the network means: every branch computed, then multiplied by its decision, with
    evaluation's decisions.
    """
    with torch.no_grad():
        logits: Tensor = network._masked(network, x)
        return logits


def branches(network: Network) -> dict[str, Site]:
    """The network's sites that hold a branch, as layer gates take them: blocks and layers."""
    return {name: site for name, site in network.sites.items() if site.kind in ("block", "layer")}


def traced(model: nn.Module, size: tuple[int, int] = (32, 32), **how: object) -> Network:
    recipe = Recipe(Source("", {}), InputSpec(size, 0))
    return Network(model, recipe, **how)  # type: ignore[arg-type]


def lively(model: nn.Module, images: Tensor) -> nn.Module:
    """Give BatchNorm the statistics of `images` and weights of its own, in evaluation mode.

    No value is what initialisation left.
    """
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
        norm.momentum = None  # a plain average
    with torch.no_grad():
        model.train()(images)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def in_line(model: nn.Module, graph: fx.Graph, costs: dict[str, NodeCost]) -> dict[str, Site]:
    """The sites that follow one another, blocks and layers, as a network finds them."""
    net = Traced(model, graph)
    net.costs = costs
    find_sites(net, net.rules)
    lines = {kind.name for kind in registry.all_kinds() if kind.in_line}
    return {name: site for name, site in net.sites.items() if site.kind in lines}


def unit_macs(network: Network, site: str) -> float:
    """What one closed unit of a site saves by itself."""
    place = network.sites[site]
    own = [saving for saving in place.savings if saving.per_unit]
    return sum(network.costs[each.node].macs * each.share for each in own) / place.units
