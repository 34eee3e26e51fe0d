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

All is trained end to end: z is sampled with the straight-through Gumbel-softmax, and y is the
answer that the cross-entropy judges:
    CE(y) + supervise * mean over exits e of CE(c_e(x_e)) + supervise_end * CE(c(x))
        + loss_weight * mean over exits e of min(0, rate_e - t)^2
The second term is on all images (ours: the paper does not say how its classifiers learn, but its
second one errs on 6.65 % of all images where 11.56 % leave). Without it a classifier learns from
those images alone that its gate lets go, which as long as it knows nothing are any, or none. The
third one is on all images too (ours): without it the end of a network that is trained from scratch
learns nothing once everybody leaves before, and everybody goes on leaving.

The target t (.3) is one for each exit, with the mirrored const-quad: leaving more often is not
punished. With come_e = prod over earlier exits of (1 - z), who has not left before:
    rate_e = sum of come_e z_e / sum of come_e      over the batch, `rate_of=comers`
    rate_e = mean of come_e z_e                     `rate_of=all`: the share of all images
An exit that nobody comes to adds nothing. That an earlier exit shall not send images away to raise
a later one's rate, come_e is a constant in the first (ours).

As attached nobody leaves; when training begins, who leaves is who does so with log-odds of at least
0 (P of at least 1/2), until gatecli calibrate chooses other thresholds: P(leave) in float32 is
exactly 1 for the surest images. The last layer of the gate starts with zero weights and bias
[2, 0.1]: P(leave) = .13 (ours).
"""

from __future__ import annotations

from gatecli.errors import SettingError
from gatecli.methods.early_exit.exit import GumbelExit
from gatecli.methods.early_exit.leaving import Leaving
from gatecli.methods.early_exit.settings import EarlyExitSettings
from gatecli.methods.exits import AboutExits, ExitMethod
from gatecli.methods.registry import register
from gatecli.network import Network
from gatecli.traced.site import Site

__all__ = ["EarlyExitSettings", "GumbelExit"]


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
