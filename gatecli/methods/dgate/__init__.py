"""Decision gates: a linear one-vs-all classifier after each stage.

Who is sure enough there, leaves.

    d = W x - b;  leave with argmax d where max(d) >= t

Shafiee, Shafiee, Wong, "Dynamic representations toward efficient inference on deep neural networks
by decision gates" (2018). x is the stage's value; the paper says nothing of its positions. Ours: it
is averaged over `pool` x `pool` parts of the map, as a mean over all of it tells too little of
early maps. Each exit is trained alone on all the training data with the network frozen, its
BatchNorm statistics too (ours), by the hinge loss and weight decay:

    mean over samples of sum over classes of max(0, 1 - y d) + decay / 2 |W|^2

with y = 1 for the sample's class and -1 for the others: for each class the paper's loss. b has no
decay, as in the paper. x is standardised over the training images while W is trained (ours; see
gatecli.training.standard), which is then folded into W and b. Thresholds are chosen afterwards, on
a validation split: gatecli calibrate. Until then they are infinite.

With `loss=cross-entropy`, for comparison, a sample is as sure as the log-odds of its likeliest
class (ours): a softmax in float32 is exactly 1 from about 17 nats on, where the surest images would
tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from gatecli.errors import SettingError
from gatecli.gates.exit import LOG_ODDS, PROBABILITY
from gatecli.methods.dgate.gate import (
    CROSS_ENTROPY,
    HINGE,
    MARGIN,
    MEAN,
    SUM,
    DGate,
    Lesson,
    hinge,
)
from gatecli.methods.exits import AboutExits, ExitMethod, ExitSettings
from gatecli.methods.objective import Objective, Traits
from gatecli.methods.registry import register
from gatecli.methods.settings import setting
from gatecli.network import Network
from gatecli.traced.site import Site

__all__ = ["DGate", "DGateSettings", "hinge", "pool_of"]

OWN_SCORE = {HINGE: MARGIN, CROSS_ENTROPY: LOG_ODDS}
POOLS = (4, 2, 1)  # tried in turn where the user says none
FEATURES = 4096  # of an exit, at most, where the user says no pool


@dataclass(frozen=True)
class DGateSettings(ExitSettings):
    """Settings of decision gates."""

    loss: str = setting(
        HINGE,
        "hinge, or cross-entropy for comparison",
        choices=(HINGE, CROSS_ENTROPY),
        structural=True,
    )
    score: str | None = setting(
        None,
        "what thresholds are compared with: margin (the largest logit), log-odds or probability of"
        " the likeliest class; none: margin with hinge, log-odds with cross-entropy",
        choices=(MARGIN, LOG_ODDS, PROBABILITY),
        structural=True,
        before=lambda stored: PROBABILITY if stored.get("loss") == CROSS_ENTROPY else None,
    )
    pool: int | None = setting(
        None,
        "features of a channel: averages over pool x pool parts of the map; none: 4, or 2 or 1"
        f" where the map is smaller, is none, or would give more than {FEATURES} features",
        low=1,
        high=16,
        structural=True,
        before=lambda stored: 1,
    )
    over_classes: str = setting(
        SUM,
        "whether the hinge losses of the classes are added or averaged",
        choices=(SUM, MEAN),
        structural=True,
        before=lambda stored: MEAN,
    )
    standardise: bool = setting(
        default=True,
        help="train on features of mean 0 and equal deviation, folded into the classifier after",
        structural=True,
        before=lambda stored: False,
    )
    decay_bias: bool = setting(
        default=False,
        help="weight decay of the bias too",
        structural=True,
        before=lambda stored: True,
    )


class ExitsAlone(Objective[DGateSettings]):
    """Each exit has a loss of its own, see `DGate.loss`: there is no rate to aim at."""

    traits: ClassVar[Traits] = Traits(trains="exits", samples=False)


class DGates(ExitMethod[DGateSettings]):
    """Decision gates, as this package describes them."""

    def gate(self, network: Network, site: Site, settings: DGateSettings) -> DGate:
        shape = network.costs[site.entry].shape or ()
        sides = [shape[position] for position in site.positions]
        return DGate(
            site.name,
            site.channels,
            site.positions,
            network.num_classes,
            pool=pool_of(site, sides, settings.pool),
            scored=settings.score or OWN_SCORE[settings.loss],
            lesson=Lesson(
                loss=settings.loss,
                over_classes=settings.over_classes,
                standardise=settings.standardise,
                decay_bias=settings.decay_bias,
            ),
        )


def pool_of(site: Site, sides: Sequence[int], asked: int | None) -> int:
    """The parts a side of a site's map, which has these sides, as asked or as fine as is sensible.

    Raises:
        SettingError: It has no map, or one that is too small for what is asked.
    """
    if asked is None:
        return next(pool for pool in POOLS if pool == 1 or _is_sensible(site, sides, pool))
    if asked > 1 and len(sides) != 2:
        raise SettingError(
            f"expected setting `pool` to be 1 for what is no map of two dimensions, as at"
            f" `{site.name}`, but got {asked}: leave it out, or the exit with --exclude {site.name}"
        )
    if asked > 1 and min(sides) < asked:
        most = min(sides)
        raise SettingError(
            f"expected setting `pool` to be at most the map's side, but got {asked} for"
            f" `{site.name}` with {sides[0]}x{sides[1]}: take {most}, none (as fine as each map"
            f" allows), or --exclude {site.name}"
        )
    return asked


def _is_sensible(site: Site, sides: Sequence[int], pool: int) -> bool:
    is_map = len(sides) == 2 and min(sides) >= pool
    return is_map and site.channels * pool**2 <= FEATURES


register(
    DGates(
        AboutExits(
            name="dgate",
            summary="a linear classifier after each stage; images of which it is sure leave there",
            settings=DGateSettings,
            paper="Shafiee, Shafiee, Wong: Dynamic representations toward efficient inference on"
            " deep neural networks by decision gates, 2018",
        ),
        ExitsAlone(),
    )
)
