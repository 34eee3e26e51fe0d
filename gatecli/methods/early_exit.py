"""Early exits by probabilistic gates.

At the end of each stage a gate that says, for each image, whether to leave there, and a classifier.

    y = z_1 c_1(x_1) + (1 - z_1) (z_2 c_2(x_2) + (1 - z_2) (... c(x)))     z_e in {0, 1}

Herrmann, Bowen, Zabih, "Deep networks with probabilistic gates" (2018), section 5 and S2.4. The
classifier is MSDNet's for CIFAR (Huang et al., "Multi-Scale Dense Networks", 2018): two 3x3
convolutions of 128 channels with stride 2, each with BatchNorm and ReLU, 2x2 average pooling, a
linear layer. The gate: 3x3 convolution to 128 -> BatchNorm -> 3x3 convolution to 128 -> BatchNorm
-> 4x4 average pooling -> linear -> [stay, leave] logits. No activation is named between the gate's
convolutions, and none is there. Where maps are smaller than a pooling window, the window is as
large as the map (ours).

All is trained end to end: z is sampled with the straight-through Gumbel-softmax, the cross-entropy
is that of what the image gets, so a classifier learns from the images that its gate chooses. An
exit goes by the log-odds of leaving: P(leave) in float32 is exactly 1 for the surest images. The
target is one for each exit's share of all images (.3), with the mirrored const-quad:
    loss_weight * mean over exits of min(0, share_e - t)^2,     share_e = mean of z_e * prod over
        earlier exits of (1 - z)
so that leaving more often is not punished. As attached nobody leaves; when training begins, who
leaves is who does so with log-odds of at least 0 (P of at least 1/2), until gatecli calibrate
chooses other thresholds. The last layer of the gate starts with zero weights and bias [2, 0.1]:
P(leave) = .13 (ours).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gatecli.errors import SettingError
from gatecli.gates.estimators import gumbel_decision
from gatecli.gates.exit import LOG_ODDS, PROBABILITY, Exit
from gatecli.graph.prune_channels import drop_inputs
from gatecli.methods.exits import AboutExits, ExitMethod, ExitSettings
from gatecli.methods.losses import MIRRORED, distance
from gatecli.methods.objective import Objective, Traits
from gatecli.methods.registry import register
from gatecli.methods.settings import setting
from gatecli.network import Network
from gatecli.traced.site import Site

__all__ = ["EarlyExitSettings", "GumbelExit"]


@dataclass(frozen=True)
class EarlyExitSettings(ExitSettings):
    """Settings of early exits."""

    target_rate: float = setting(
        0.3, "share of all images that shall leave at each exit, at least", low=0, high=1
    )
    loss_weight: float = setting(
        1.0, "weight of the target loss beside the cross-entropy", low=0, high=1e30
    )
    score: str = setting(
        LOG_ODDS,
        "what thresholds are compared with: log-odds, or the probability of leaving, which ties"
        " where it rounds to 1",
        choices=(LOG_ODDS, PROBABILITY),
        structural=True,
        before=lambda stored: PROBABILITY,
    )
    width: int = setting(
        128,
        "channels of the gate's and the classifier's convolutions",
        low=1,
        high=4096,
        structural=True,
    )


class GumbelExit(Exit):
    """A gate and a classifier for maps (N, channels, *size)."""

    positions = (2, 3)
    pads = True

    def __init__(
        self,
        site: str,
        channels: int,
        size: Sequence[int],
        classes: int,
        width: int,
        scored: str = LOG_ODDS,
    ) -> None:
        super().__init__(site)
        self.scored = scored
        self.gate = nn.Sequential(
            nn.Conv2d(channels, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            _pool(4, size),
            nn.Flatten(),
        )
        self.decide = nn.Linear(width * _windows(4, size), 2)
        half = [-(-side // 4) for side in size]  # after two strides of 2
        self.classifier = nn.Sequential(
            *_convolution(channels, width),
            *_convolution(width, width),
            _pool(2, half),
            nn.Flatten(),
            nn.Linear(width * _windows(2, half), classes),
        )
        nn.init.zeros_(self.decide.weight)
        with torch.no_grad():
            self.decide.bias.copy_(torch.tensor([2.0, 0.1]))

    @property
    def trained(self) -> bool:
        return bool(self.decide.weight.any())

    def classify(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x)
        return logits

    def scores(self, x: Tensor) -> Tensor:
        """`x` (N, C, H, W) -> [stay, leave] logits (N, 1, 2)."""
        pair: Tensor = self.decide(self.gate(x))
        return pair[:, None]

    def score(self, x: Tensor, logits: Tensor) -> Tensor:
        """The log-odds of leaving, or P(leave)."""
        return self._scored(self.scores(x))

    def sample(self, x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        pair = self.scores(x)
        return gumbel_decision(pair), self._scored(pair.detach())

    def _scored(self, pair: Tensor) -> Tensor:
        if self.scored == PROBABILITY:
            return pair.softmax(2)[..., 1]
        return pair[..., 1] - pair[..., 0]

    def draw(self, score: Tensor) -> Tensor:
        chance = score if self.scored == PROBABILITY else score.sigmoid()
        return torch.bernoulli(chance.nan_to_num(0.0)) * (self.threshold < torch.inf)

    def let_leave(self) -> None:
        """Open an exit that nobody can take: who leaves is who does so with P(leave) >= 1/2."""
        if bool(self.threshold.isposinf()):
            self.threshold.fill_(0.5 if self.scored == PROBABILITY else 0.0)

    def head(self) -> nn.Module:
        return Head(self.classifier)

    def drop_inputs(self, kept: Tensor, gone: Tensor, constants: Tensor) -> None:
        _drop_zeros((self.gate, self.classifier), kept, gone)


class Head(nn.Module):
    """The classifier under the name that it has in an exit."""

    pads = True

    def __init__(self, classifier: nn.Sequential) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x)
        return logits

    def drop_inputs(self, kept: Tensor, gone: Tensor, constants: Tensor) -> None:
        """See Gate.drop_inputs."""
        _drop_zeros((self.classifier,), kept, gone)


def _drop_zeros(stacks: Iterable[nn.Sequential], kept: Tensor, gone: Tensor) -> None:
    """Let the first convolution of each read the channels `kept` alone.

    It pads, so those `gone` have always been zero, and nothing of them is left in a bias.
    """
    for stack in stacks:
        drop_inputs(stack[0], kept, gone, None)


def _convolution(channels: int, width: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(channels, width, 3, 2, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def _pool(window: int, size: Sequence[int]) -> nn.Module:
    return nn.AvgPool2d((min(window, size[0]), min(window, size[1])))


def _windows(window: int, size: Sequence[int]) -> int:
    return (size[0] // min(window, size[0])) * (size[1] // min(window, size[1]))


class Leaving(Objective[EarlyExitSettings]):
    """Each exit shall let a share of all images leave, at least."""

    traits: ClassVar[Traits] = Traits(at_least=True)

    def begin(self, network: Network, sites: Iterable[str], settings: EarlyExitSettings) -> None:
        for site in sites:
            exit_ = network.site_exits[site]
            assert isinstance(exit_, GumbelExit)
            exit_.let_leave()

    def targets(
        self, settings: EarlyExitSettings, sites: Iterable[str], epoch: int
    ) -> dict[str, float]:
        return dict.fromkeys(sites, settings.target_rate)

    def loss(
        self,
        decisions: Mapping[str, Tensor],
        settings: EarlyExitSettings,
        targets: Mapping[str, float],
    ) -> Tensor:
        """decisions: in the order in which the exits are come to."""
        left = next(iter(decisions.values())).new_zeros(())
        parts = []
        for site, z in decisions.items():
            share = z * (1 - left)
            left = left + share
            parts.append(distance(share.mean(), targets[site], MIRRORED))
        return settings.loss_weight * torch.stack(parts).mean()


class EarlyExits(ExitMethod[EarlyExitSettings]):
    """Early exits, as this file describes them."""

    def gate(self, network: Network, site: Site, settings: EarlyExitSettings) -> GumbelExit:
        shape = network.costs[site.entry].shape
        if site.positions != (2, 3) or shape is None or len(shape) != 4:
            raise SettingError(
                f"{self.about.name} needs maps (N, C, H, W) to convolve, which `{site.name}` does"
                " not have: leave it out with --exclude, or take dgate"
            )
        return GumbelExit(
            site.name,
            site.channels,
            shape[2:],
            network.num_classes,
            settings.width,
            settings.score,
        )


register(
    EarlyExits(
        AboutExits(
            name="early-exit",
            summary="a gate and a classifier after each stage, trained end to end with the"
            " network: images leave where their gate says so",
            settings=EarlyExitSettings,
            paper="Herrmann, Bowen, Zabih: Deep networks with probabilistic gates, 2018",
        ),
        Leaving(),
    )
)
