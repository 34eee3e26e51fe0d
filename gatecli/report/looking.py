"""What a network does with single images of a split: gates, exits, and who leaves where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gatecli.data import DataSet, Walk, batches
from gatecli.network import Network
from gatecli.network.compare import require_finite
from gatecli.progress import Progress, silent
from gatecli.stages.analyse import Use, analyse
from gatecli.stages.class_rates import ClassRates, class_rates
from gatecli.stages.fit import split_of
from gatecli.stages.predict import ask_exits

__all__ = ["END", "Example", "Leaving", "Look", "Seen", "look"]

END = "end"  # where those leave that take no exit


@dataclass(frozen=True, kw_only=True)
class Look:
    """How much is looked at.

    Attributes:
        split: The split's name.
        images: Of the split, drawn at random; the whole split where it has no more.
        examples: Images kept of those that leave at each exit.
        seed: Which images are drawn.
        batch_size: Images at a time.
        workers: Processes that read images; None: as many as help.
    """

    split: str = "val"
    images: int = 1000
    examples: int = 6
    seed: int = 0
    batch_size: int = 256
    workers: int | None = None


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image, and what the network says of it.

    Attributes:
        pixels: uint8 (1 or 3, height, width), as the network sees it, without normalisation.
        label: Its class.
        answer: The class that the network names.
    """

    pixels: Tensor
    label: int
    answer: int


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """Who leaves at one exit, or at the network's end.

    Attributes:
        place: The exit, or END.
        images: How many leave there.
        right: Of how many of them the answer is right.
        examples: Some of them, the first that came.
    """

    place: str
    images: int
    right: int
    examples: tuple[Example, ...]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a network did with images.

    Attributes:
        data: The data set's name.
        split: The split's.
        images: How many were looked at.
        total: How many the split has.
        classes: Their names.
        top1: Percent of the images looked at.
        leaving: Where they left, exit by exit, the end last.
        use: What the gates did, nobody leaving by an exit; None where there are none.
        rates: How often each site ran for each class; None where no site is gated.
    """

    data: str
    split: str
    images: int
    total: int
    classes: tuple[str, ...]
    top1: float
    leaving: tuple[Leaving, ...]
    use: Use | None
    rates: ClassRates | None

    @property
    def counted(self) -> str:
        """Of which images the figures are."""
        return f"{self.images} of {self.total} images of {self.split}"


def look(network: Network, data: DataSet, how: Look, progress: Progress = silent) -> Seen:
    """Look at what a network does with images of a split.

    Args:
        network: Goes into evaluation.
        data: Fitted to the network (gatecli.stages.fit).
        how: At how many images, and which.
        progress: Is told of each batch.

    Raises:
        DataError: The data has no such split, or cannot be read.
        CheckpointError: Logits are not numbers.
    """
    split = data.splits[split_of(data, how.split)]
    total = len(split.labels)
    count = min(how.images, total)
    steps = -(-count // how.batch_size)
    places = _Places(network, how.examples)
    images = _drawn(network, data, how)
    use = None
    if network.site_gates:
        use = analyse(network, images, progress, steps, places.add)
    else:
        _ask(network, images, places, progress)
    leaving = places.told()
    return Seen(
        data=data.spec,
        split=how.split,
        images=count,
        total=total,
        classes=tuple(map(str, data.classes)),
        top1=100 * sum(place.right for place in leaving) / count,
        leaving=leaving,
        use=use,
        rates=class_rates(use) if use is not None and use.sites else None,
    )


def _drawn(network: Network, data: DataSet, how: Look) -> Iterator[tuple[Tensor, Tensor]]:
    """The images looked at: drawn, as a folder's are sorted by class."""
    left = how.images
    passes = batches(
        data.splits[how.split],
        input=network.input,
        batch_size=how.batch_size,
        workers=how.workers,
        walk=Walk(shuffle=True, seed=how.seed),
    )
    for x, y in passes:
        yield x[:left], y[:left]
        left -= len(y)
        if left <= 0:
            return


class _Places:
    """Counts who leaves at each exit and at the end, in order, and keeps some images."""

    def __init__(self, network: Network, examples: int) -> None:
        self.names = [*network.site_exits, END]
        self.images = dict.fromkeys(self.names, 0)
        self.right = dict.fromkeys(self.names, 0)
        self.kept: dict[str, list[Example]] = {name: [] for name in self.names}
        self._wanted = examples
        self._network = network

    def add(
        self, x: Tensor, y: Tensor, said: tuple[dict[str, Tensor], dict[str, Tensor], Tensor]
    ) -> None:
        """Count a batch: images (n, C, H, W), labels (n,), and what `ask_exits` says of them."""
        answers, scores, logits = said
        here = torch.ones_like(y, dtype=torch.bool)
        for site, gate in self._network.site_exits.items():
            leaves = (scores[site] >= gate.threshold).cpu() & here
            self._count(site, leaves, answers[site], x, y)
            here = here & ~leaves
        self._count(END, here, logits, x, y)

    def _count(self, name: str, leaves: Tensor, answers: Tensor, x: Tensor, y: Tensor) -> None:
        """Count who leaves (n,) at a place where logits (n, K) are given."""
        said = answers.argmax(1).cpu()
        self.images[name] += int(leaves.sum())
        self.right[name] += int((leaves & (said == y)).sum())
        for index in leaves.nonzero()[:, 0].tolist()[: self._wanted - len(self.kept[name])]:
            self.kept[name].append(
                Example(
                    pixels=_pixels(self._network, x[index]),
                    label=int(y[index]),
                    answer=int(said[index]),
                )
            )

    def told(self) -> tuple[Leaving, ...]:
        """What was counted."""
        found = []
        for name in self.names:
            found.append(
                Leaving(
                    place=name,
                    images=self.images[name],
                    right=self.right[name],
                    examples=tuple(self.kept[name]),
                )
            )
        return tuple(found)


def _ask(
    network: Network,
    images: Iterable[tuple[Tensor, Tensor]],
    places: _Places,
    progress: Progress,
) -> None:
    """Ask a network without gates."""
    network.eval()
    with torch.no_grad(), progress.task("images", None) as task:
        for x, y in images:
            said = ask_exits(network, x)
            require_finite(said[2])
            places.add(x, y, said)
            task.advance()


def _pixels(network: Network, image: Tensor) -> Tensor:
    """An image (C, H, W) without its normalisation: uint8."""
    spec = network.input
    mean = torch.tensor(spec.mean or 0.0).reshape(-1, 1, 1)
    std = torch.tensor(spec.std or 1.0).reshape(-1, 1, 1)
    plain = image.cpu().float() * std + mean
    return plain.clamp(0, 1).mul(255).round().to(torch.uint8)
