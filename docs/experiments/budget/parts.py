"""What is compared: a part a network, and in it each way at each share and learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from claims.claim import Paper, Variant

from budget.ways import make
from gatecli.errors import SettingError

__all__ = ["BLOCKS", "LRS", "PARTS", "SHARES", "SOURCE", "Way", "parts", "point_of", "ways_of"]

SHARES = (0.5, 0.35)
LRS = (0.1, 0.03, 0.01)  # the same for every way; val says which
TUNING, CUT = 18, 12  # epochs behind the source's, and those of them in which it is cut
TRAIN = {"batch_size": 64, "schedule": "cosine", "weight_decay": 5e-4}
BLOCKS = (16, 8, 4)  # channels that ONNX Runtime is quick with multiples of
GATES: dict[str, Any] = {"method": "ind-perbatch"}
SOURCE = "the source, as many epochs more"


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way of meeting a budget.

    Attributes:
        label: A row of the table.
        settings: What a run in it has beside the network's.
        goal: What the budget is of, one of budget.cost.GOALS.
        ours: Whether it is gatecli's.
    """

    label: str
    settings: Mapping[str, Any]
    goal: str = "macs"
    ours: bool = False


def gates(label: str, kinds: Sequence[str], price: str = "", goal: str = "macs") -> Way:
    """Gates on some kinds of sites, with the rate weighted by a price or as the paper has it."""
    attach = {**GATES, "kinds": list(kinds), **({"price": price} if price else {})}
    settings = {"way": "gates", "attach": [attach]}
    return Way(label=label, settings=settings, goal=goal, ours=True)


def others(goal: str, round_to: int = 0) -> list[Way]:
    """What gatecli is compared with.

    Args:
        goal: Of what the budget is.
        round_to: In multiples of what Torch-Pruning keeps channels; a narrower network is the one
            of BLOCKS that has most MACs. 0: of one.
    """
    outside = {"way": "torch-pruning", **({"round_to": round_to} if round_to else {})}
    scratch = {"way": "scratch", **({"round_to": list(BLOCKS)} if round_to else {})}
    return [
        Way(label="from scratch, narrower", settings=scratch, goal=goal),
        Way(
            label="Torch-Pruning, magnitude",
            settings={**outside, "importance": "magnitude"},
            goal=goal,
        ),
        Way(label="Torch-Pruning, Taylor", settings={**outside, "importance": "taylor"}, goal=goal),
    ]


BY_MACS = [
    *others("macs"),
    gates("blocks", ["block"]),
    gates("filters", ["filter"]),
    gates("blocks, priced by MACs", ["block"], "macs"),
    gates("filters, priced by MACs", ["filter"], "macs"),
    gates("blocks and filters, priced by MACs", ["block", "filter"], "macs"),
]
BY_MS = [
    gates("blocks, priced by ms", ["block"], "ms", "ms"),
    gates("blocks and filters, priced by ms", ["block", "filter"], "ms", "ms"),
]
PLAIN = [*BY_MACS, *others("ms", round_to=4), *BY_MS]  # with 16 its first stage could not shrink
INVERTED = [
    *BY_MACS,
    *others("ms", round_to=16),
    *BY_MS,
    gates("blocks and hidden units, priced by MACs", ["block", "hidden"], "macs"),
    gates("blocks and hidden units, priced by ms", ["block", "hidden"], "ms", "ms"),
]
ATTENTION = [
    *others("macs"),
    gates("blocks", ["block"]),
    gates("heads and hidden units, priced by MACs", ["head", "hidden"], "macs"),
    gates("blocks, heads and hidden units, by MACs", ["block", "head", "hidden"], "macs"),
    *others("ms"),
    Way(  # six layers take half of the time, however narrow they are
        label="from scratch, fewer layers",
        settings={"way": "scratch", "narrow": "budget.networks:shallow_vit"},
        goal="ms",
    ),
    gates("heads and hidden units, priced by ms", ["head", "hidden"], "ms", "ms"),
    gates("blocks, heads and hidden units, by ms", ["block", "head", "hidden"], "ms", "ms"),
]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network to be made cheaper.

    Attributes:
        title: For people.
        arch: Of the source.
        narrow: What builds it at any width.
        epochs: Of the source's training.
        lr: Likewise.
        ways: To be compared.
    """

    title: str
    arch: str
    narrow: str
    epochs: int
    lr: float
    ways: Sequence[Way]


SUBJECTS = {
    "resnet20": Subject(
        title="ResNet-20",
        arch="cifar:resnet20",
        narrow="budget.networks:resnet20",
        epochs=40,
        lr=0.1,
        ways=PLAIN,
    ),
    "mobilenet": Subject(
        title="MobileNetV2",
        arch="budget.networks:mobilenet",
        narrow="budget.networks:mobilenet",
        epochs=40,
        lr=0.1,
        ways=INVERTED,
    ),
    "vit": Subject(
        title="Vision transformer",
        arch="budget.networks:vit",
        narrow="budget.networks:vit",
        epochs=120,
        lr=0.03,
        ways=ATTENTION,
    ),
}


def ways_of(part: str) -> Sequence[Way]:
    """The ways that are compared on a network."""
    return SUBJECTS[part].ways


def point_of(way: Way, share: float) -> str:
    """What a way's runs at a share are called, but for the learning rate."""
    return f"{way.label}, {share:g} of {way.goal}"


def _settings(subject: Subject, lr: float, **more: Any) -> dict[str, Any]:
    start = {"epochs": subject.epochs, "train": {**TRAIN, "lr": subject.lr}}
    own = {"arch": subject.arch, "narrow": subject.narrow, "start": start, "cut_epochs": CUT}
    return {**own, "train": {**TRAIN, "lr": lr}, **more}


def _part(name: str, subject: Subject) -> Paper:
    variants = []
    epochs = subject.epochs + TUNING
    for lr in LRS:
        settings = _settings(subject, lr, way="source", goal="macs", share=1.0)
        variants.append(Variant(name=f"{SOURCE}, lr {lr:g}", epochs=epochs, settings=settings))
    for way in subject.ways:
        for share in SHARES:
            for lr in LRS:
                own = {**way.settings, "goal": way.goal, "share": share}
                settings = _settings(subject, lr, **own)
                named = f"{point_of(way, share)}, lr {lr:g}"
                variants.append(Variant(name=named, epochs=epochs, settings=settings))
    return Paper(name=name, title=subject.title, variants=variants, claims=(), make=make)


PARTS = {name: _part(name, subject) for name, subject in SUBJECTS.items()}


def parts(asked: Sequence[str]) -> list[Paper]:
    """The networks of these names; none: all.

    Raises:
        SettingError: There is none of that name.
    """
    for name in asked:
        if name not in PARTS:
            known = ", ".join(PARTS)
            raise SettingError(f"expected --part to be one of {known}, but got `{name}`")
    return [PARTS[name] for name in asked or PARTS]
