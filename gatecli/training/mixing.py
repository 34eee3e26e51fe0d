"""Mixup and CutMix: every image of a batch with its neighbour's, and the labels in the same shares.

Where both are asked for, each batch has one of them, by the toss of a coin. What is drawn is a
function of the step's seed. A neighbour may be in another process, so there has to be one alone.

References: Zhang et al. 2018, "mixup"; Yun et al. 2019, "CutMix". The operations are torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gatecli import together
from gatecli.data.augment import generator, lent
from gatecli.errors import SettingError
from gatecli.training.options import TrainOptions

__all__ = ["Mixing", "check_alone", "check_unmixed"]

Way = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
MIXING = 4  # what a generator is for, beside those of gatecli.data.augment


class Mixing:
    """Mixes batches as the options say; where they say nothing, batches stay as they are."""

    def __init__(self, options: TrainOptions, classes: int) -> None:
        self._ways = list(_ways(options, classes))

    def __call__(self, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """A batch, mixed.

        Args:
            x: Images (N, C, H, W).
            y: Their labels (N,).
            seed: Of what is drawn.

        Returns:
            The images, and for each the share of every class (N, K); as given where nothing is
            mixed.
        """
        if not self._ways:
            return x, y
        with lent(generator(MIXING, seed, 0)):
            way = self._ways[int(torch.randint(len(self._ways), ()))]
            return way(x, y)


def _ways(options: TrainOptions, classes: int) -> Iterator[Way]:
    """Torchvision's operations for what is asked."""
    if not _told(options):
        return
    from torchvision.transforms import v2

    if options.mixup:
        yield v2.MixUp(alpha=float(options.mixup), num_classes=classes)
    if options.cutmix:
        yield v2.CutMix(alpha=float(options.cutmix), num_classes=classes)


def check_alone(options: TrainOptions) -> None:
    """Check that one process trains, where batches are mixed.

    Raises:
        SettingError: There are several.
    """
    if _told(options) and together.count() > 1:
        raise SettingError(
            f"expected one process with {_told(options)}, as images are mixed with others of the"
            f" whole batch, but got {together.count()}: leave one of them out"
        )


def check_unmixed(options: TrainOptions) -> None:
    """Check that no batches are to be mixed, where exits alone are trained.

    Raises:
        SettingError: They are.
    """
    if _told(options):
        raise SettingError(
            f"{_told(options)} is for training the network: exits that are trained alone learn one"
            " label an image; leave it out"
        )


def _told(options: TrainOptions) -> str:
    """What the user asked for, as it was typed; empty where nothing is mixed."""
    words = []
    for name in ("mixup", "cutmix"):
        if getattr(options, name):
            words.append(f"--{name} {getattr(options, name):g}")
    return " and ".join(words)
