"""Mixup and CutMix: every image of a batch with its neighbour's, and the labels in the same shares.

Where both are asked for, each batch has one of them, by the toss of a coin. What is drawn is a
function of the step's seed, and neighbours are those of the whole batch: of several processes each
asks the one before it for its last image.

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

__all__ = ["Mixing", "check_unmixed"]

Way = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
MIXING = 4  # what a generator is for, beside those of gatecli.data.augment


class Mixing:
    """Mixes batches as the options say; where they say nothing, batches stay as they are."""

    def __init__(self, options: TrainOptions, classes: int) -> None:
        self._ways = list(_ways(options, classes))

    def __call__(self, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """A batch, mixed.

        Args:
            x: Images (N, C, H, W), of several processes those that are here.
            y: Their labels (N,).
            seed: Of what is drawn, the same in all processes.

        Returns:
            The images, and for each the share of every class (N, K); as given where nothing is
            mixed.
        """
        if not self._ways:
            return x, y
        with lent(generator(MIXING, seed, 0)):
            way = self._ways[int(torch.randint(len(self._ways), ()))]
            mixed, shares = way(*(_with_the_one_before(each) for each in (x, y)))
        return mixed[1:], shares[1:]


def _with_the_one_before(here: Tensor) -> Tensor:
    """What is here (N, ...), behind what comes before it in the whole batch: (N + 1, ...)."""
    return torch.cat([together.from_the_one_before(here[-1:]), here])


def _ways(options: TrainOptions, classes: int) -> Iterator[Way]:
    """Torchvision's operations for what is asked."""
    if not _told(options):
        return
    from torchvision.transforms import v2

    if options.mixup:
        yield v2.MixUp(alpha=float(options.mixup), num_classes=classes)
    if options.cutmix:
        yield v2.CutMix(alpha=float(options.cutmix), num_classes=classes)


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
