"""What "You Look Twice: GaterNet" (Chen et al. 2019, table 1) sets its gated CIFAR ResNets beside.

`se`: squeeze-and-excitation (Hu et al. 2018) at the end of each residual branch, behind its last
BatchNorm; a quarter of the channels between its two layers, which gives the paper's numbers of
parameters (.28 M for ResNet-20, .88 M for ResNet-56). They are far fewer than the gated network's,
as in the paper: there is no way to spend that many in it.
`wider`: more filters in each layer, as many as bring it nearest to the parameters of the network
with a gater (cifar:resnet20, b = 8).

python docs/experiments/baselines.py cifar:resnet20 cifar:resnet56

prints the parameters of each. docs/experiments/train_source.py trains them (--baseline), and with
this folder on PYTHONPATH gatecli reads what that writes:

gatecli eval wide.pt --arch baselines:build --arch-arg name=cifar:resnet20 --arch-arg baseline=wider
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import gatecli
from gatecli.architectures.build import build as build_plain
from gatecli.architectures.cifar.resnet import BasicBlock
from gatecli.errors import GatecliError, SettingError

BASELINES = ("se", "wider")
DEPTHS = {f"cifar:resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}
WIDTHS = (16, 32, 64)
REDUCTION = 4
SIZE = (32, 32)


class Excited(BasicBlock):
    """A basic block whose branch ends in squeeze-and-excitation.

    Reference: Hu et al. 2018, equations 2 to 4: F_scale(u, sigmoid(W2 relu(W1 mean(u)))).
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__(channels, width, stride, "projection", "both")
        self.squeeze = nn.Linear(width, width // REDUCTION)
        self.excite = nn.Linear(width // REDUCTION, width)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        scale = torch.sigmoid(self.excite(torch.relu(self.squeeze(out.mean((2, 3))))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(out * scale[:, :, None, None] + shortcut)


class ResNet(nn.Module):
    """A CIFAR ResNet of any widths, with the tensors' names of gatecli's.

    Shape: (N, 3, H, W) -> (N, num_classes).
    """

    def __init__(self, depth: int, widths: Sequence[int], num_classes: int, *, se: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        blocks = (depth - 2) // 6
        self.layer1 = _group(widths[0], widths[0], 1, blocks, se=se)
        self.layer2 = _group(widths[0], widths[1], 2, blocks, se=se)
        self.layer3 = _group(widths[1], widths[2], 2, blocks, se=se)
        self.fc = nn.Linear(widths[2], num_classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def _group(channels: int, width: int, stride: int, blocks: int, *, se: bool) -> nn.Sequential:
    group = []
    for _ in range(blocks):
        if se:
            group.append(Excited(channels, width, stride))
        else:
            group.append(BasicBlock(channels, width, stride, "projection", "both"))
        channels = width
        stride = 1
    return nn.Sequential(*group)


def build(name: str, baseline: str, num_classes: int = 10) -> nn.Module:
    """A baseline with random weights, in evaluation mode.

    Args:
        name: the ResNet, one of DEPTHS.
        baseline: one of BASELINES.
        num_classes: of the images.

    Raises:
        SettingError: there is no such baseline, or not for this network.
    """
    check(name, baseline)
    depth = DEPTHS[name]
    if baseline == "se":
        return ResNet(depth, WIDTHS, num_classes, se=True).eval()
    return ResNet(depth, wider_widths(name, num_classes), num_classes, se=False).eval()


def check(name: str, baseline: str) -> None:
    """Raise SettingError unless there is such a baseline of this network."""
    if baseline not in BASELINES:
        raise SettingError(
            f"expected --baseline to be one of {', '.join(BASELINES)}, but got `{baseline}`"
        )
    if name not in DEPTHS:
        raise SettingError(
            f"expected the network of a baseline to be one of {', '.join(DEPTHS)}, but got `{name}`"
        )


@functools.cache
def gated_params(name: str, num_classes: int = 10) -> int:
    """The parameters of the network with the paper's gater."""
    plain = build_plain(name, {"num_classes": num_classes})
    return gatecli.attach(plain, "gaternet", input_size=SIZE, bottleneck=8).params


@functools.cache
def wider_widths(name: str, num_classes: int = 10) -> tuple[int, ...]:
    """The widths, about as WIDTHS are to each other, that come nearest to `gated_params`."""
    scaled = []
    for last in range(WIDTHS[-1], 2 * WIDTHS[-1]):
        scaled.append(tuple(round(width * last / WIDTHS[-1]) for width in WIDTHS))
    first, second, last = _nearest(scaled, name, num_classes)
    near = itertools.product((first - 1, first, first + 1), (second - 1, second, second + 1))
    return _nearest([(*both, last) for both in near], name, num_classes)


def _nearest(found: list[tuple[int, ...]], name: str, num_classes: int) -> tuple[int, ...]:
    aim = gated_params(name, num_classes)
    return min(found, key=lambda widths: abs(_params_of(name, widths, num_classes) - aim))


def _params_of(name: str, widths: Sequence[int], num_classes: int) -> int:
    with torch.device("meta"):
        return params(ResNet(DEPTHS[name], widths, num_classes, se=False))


def params(network: nn.Module) -> int:
    """How many parameters a network has."""
    return sum(parameter.numel() for parameter in network.parameters())


def told(name: str, baseline: str, num_classes: int = 10) -> str:
    """A baseline's parameters beside the gated network's, in a line."""
    own = params(build(name, baseline, num_classes))
    aim = gated_params(name, num_classes)
    return f"{name} {baseline}: {own:,} parameters, {own / aim:.3f} of the gated network's {aim:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["cifar:resnet20", "cifar:resnet56"])
    parser.add_argument("--baseline", help=", ".join(BASELINES) + "; none: all")
    parser.add_argument("--classes", type=int, default=10)
    args = parser.parse_args()
    chosen = [args.baseline] if args.baseline else BASELINES
    try:
        for name in args.names:
            for baseline in chosen:
                print(told(name, baseline, args.classes))
    except GatecliError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
