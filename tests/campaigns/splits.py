"""The promise of `calibrate --confidence`: how often is a certified accuracy missed in truth?

Samples are drawn from large populations whose accuracy is known, so the truth about chosen
thresholds is known too. With confidence C at most a share of 1 - C of all draws may lead to
thresholds that miss the target.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from campaigns.outcome import FAILED, REFUSED, RIGHT, Outcome
from gatecli.calibration.exits.certify import binomial_tails, certify
from gatecli.calibration.exits.samples import Samples, measure
from gatecli.errors import SettingError

PEOPLE = 4000  # of a population
CHANCE = 1e-6  # of failing though the promise is held
CONFIDENCES = (0.8, 0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One split: which population, how many samples, and what is asked of them."""

    exits: int
    saturated: bool
    size: int
    target: float
    confidence: float


def outcomes(seed: int, count: int) -> Iterator[Outcome]:
    """The outcomes of `count` draws; those that miss the target fail where they are too many."""
    draws = [_draw(seed, number) for number in range(count)]
    missed = [_missed(seed, number, draw) for number, draw in enumerate(draws)]
    tried = Counter(draw.confidence for draw in draws)
    misses = Counter(d.confidence for d, miss in zip(draws, missed, strict=True) if miss)
    broken = {each for each in tried if _too_many(misses[each], tried[each], each)}
    for number, (draw, miss) in enumerate(zip(draws, missed, strict=True)):
        known = Outcome(
            case=f"splits:{number}", kind=f"confidence {draw.confidence:g}", verdict=RIGHT
        )
        said = f"{misses[draw.confidence]} of {tried[draw.confidence]} draws miss the target"
        if miss is None:
            yield replace(known, verdict=REFUSED)
        elif miss and draw.confidence in broken:
            yield replace(known, verdict=FAILED, detail=said)
        else:
            yield known


def _too_many(missed: int, tried: int, confidence: float) -> bool:
    """Whether so many misses are next to impossible where the promise holds."""
    return binomial_tails(tried, 1 - confidence)[missed].item() < CHANCE


def _draw(seed: int, number: int) -> Draw:
    chance = random.Random(f"splits {seed} {number}")
    return Draw(
        exits=chance.choice([1, 2, 2, 3]),
        saturated=chance.random() < 0.3,
        size=chance.choice([60, 200, 400, 800]),
        target=chance.choice([75.0, 80.0, 85.0, 88.0]),
        confidence=chance.choice(CONFIDENCES),
    )


def _missed(seed: int, number: int, draw: Draw) -> bool | None:
    """Whether certified thresholds miss the target in truth; None where none are certified."""
    everyone = population(draw.exits, draw.saturated)
    chance = torch.Generator().manual_seed(hash((seed, number)) % 2**63)
    drawn = everyone.take(torch.randint(PEOPLE, (draw.size,), generator=chance))
    try:
        found = certify(drawn, draw.target, draw.confidence, seed=number, levels=24)
    except SettingError:
        return None
    return measure(everyone, found.point.thresholds).top1 < draw.target


@cache
def population(exits: int, saturated: bool) -> Samples:
    """Easy and hard images: margins tell something of being right, later exits are better.

    `saturated`: the surest margins are all 1, as those of a softmax in float32 are.
    """
    chance = torch.Generator().manual_seed(exits)
    offsets = torch.linspace(0.5, 1.9, exits + 1)
    common = torch.randn(PEOPLE, 1, generator=chance)
    ease = offsets - common + 0.7 * torch.randn(PEOPLE, exits + 1, generator=chance)
    margins = ease[:, :exits] + 0.5 * torch.randn(PEOPLE, exits, generator=chance)
    return Samples.of(_margins(margins, saturated), ease > 0, torch.arange(1, exits + 2) * 1000)


def _margins(margins: Tensor, saturated: bool) -> Tensor:
    return margins.sigmoid().clamp(max=0.8) if saturated else margins
