"""Twins: other functions whose tensors have the same names and shapes.

What no tensor tells is assumed, and said together with what it could be instead. One table holds
that for every family, in the order in which people meet it; a family is the class of torchvision's
network, or "cifar".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gatecli.architectures.arguments import accepted_args
from gatecli.architectures.shapes import Shape
from gatecli.architectures.timm_table import timm_rows
from gatecli.architectures.torchvision_args import family

__all__ = ["MOST", "Assumed", "assumed_of", "note", "timm_twins"]

MOST = 4  # of them in the note for people; JSON has all
PLAIN = "plain "  # of a network that has other networks' tensors
Args = Mapping[str, Any]
Tensors = Mapping[str, Shape]


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What was assumed because no tensor tells it.

    Attributes:
        what: was assumed.
        instead: what it could be as well.
        arch: the architecture that is so; empty: the same.
        args: the arguments that make it so.
    """

    what: str
    instead: str
    arch: str = ""
    args: dict[str, Any] = field(default_factory=dict)

    @property
    def option(self) -> str:
        """The options of the command line that choose it."""
        words = [f"--arch {self.arch}"] if self.arch else []
        for name, value in self.args.items():
            spelled = str(value).lower() if isinstance(value, bool) else value
            words.append(f"--arch-arg {name}={spelled}")
        return " ".join(words)

    def to_json(self) -> dict[str, str]:
        """As commands print it."""
        return {"what": self.what, "instead": self.instead, "option": self.option}


@dataclass(frozen=True, kw_only=True)
class _Twin:
    """A line of the table: what is assumed, and the argument that says otherwise.

    `fits` says for which of the family's networks there is such a twin; `if_named`, whether it is
    meant by the architecture's name too: there are both under that name.
    """

    what: str
    instead: str
    args: dict[str, Any]
    fits: Callable[[Args, Tensors], bool] = lambda args, tensors: True
    if_named: bool = False


def _small_stem(args: Args, tensors: Tensors) -> bool:
    return args.get("stem") == "cifar"


def _large_stem(args: Args, tensors: Tensors) -> bool:
    return not _small_stem(args, tensors)


def _bottlenecks(args: Args, tensors: Tensors) -> bool:
    return "layer1.0.conv3.weight" in tensors


def _padded(args: Args, tensors: Tensors) -> bool:
    return args.get("shortcut") == "pad"


def _activation(usual: str, *others: str) -> tuple[_Twin, ...]:
    found = []
    for other in others:
        found.append(_Twin(what=usual, instead=other, args={"activation": other}))
    return tuple(found)


STRIDE = _Twin(
    what="the stride on the 3x3 convolution of each bottleneck",
    instead="on the first 1x1 one",
    args={"stride_on": "conv1"},
    fits=_bottlenecks,
    if_named=True,
)
NO_POOL = _Twin(
    what="a max-pool in the stem", instead="none", args={"maxpool": False}, fits=_large_stem
)
POOL = _Twin(
    what="no max-pool in the 3x3 stem",
    instead="one",
    args={"maxpool": True},
    fits=_small_stem,
    if_named=True,
)
STEM_OF_TWO = _Twin(
    what="stride 1 in the 3x3 stem",
    instead="2",
    args={"stem_stride": 2},
    fits=_small_stem,
    if_named=True,
)
STEM_OF_ONE = _Twin(
    what="stride 2 in the stem", instead="1", args={"stem_stride": 1}, fits=_large_stem
)
DILATED = _Twin(
    what="no dilation",
    instead="dilated stages in place of strides",
    args={"replace_stride_with_dilation": "false,true,true"},
    fits=_bottlenecks,
)
CAFFE_POOL = _Twin(
    what="max-pools that round down", instead="up", args={"ceil_mode": True}, fits=_large_stem
)
FLOOR_POOL = _Twin(what="max-pools that round up", instead="down", args={"ceil_mode": False})
FINE_EPS = _Twin(what="BatchNorm's eps 1e-5", instead="1e-3", args={"bn_eps": 0.001})
COARSE_EPS = _Twin(what="BatchNorm's eps 1e-3", instead="1e-5", args={"bn_eps": 1e-05})
TENSORFLOW_EPS = _Twin(
    what="torchvision's BatchNorm eps", instead="TensorFlow's", args={"bn_eps": 0.001}
)
TRANSFORM = _Twin(
    what="images as they are normalised",
    instead="transformed first, as torchvision's own pretrained one does",
    args={"transform_input": True},
    if_named=True,
)
PAD = _Twin(
    what="shortcuts padded with zeros on both sides of the channels",
    instead="at their end",
    args={"pad": "end"},
    fits=_padded,
    if_named=True,
)
PROJECT = _Twin(
    what="projections that read a block's input",
    instead="its first activation",
    args={"project": "activation"},
    if_named=True,
)
FAMILIES: dict[str, tuple[_Twin, ...]] = {
    "ResNet": (
        STRIDE,
        NO_POOL,
        DILATED,
        POOL,
        STEM_OF_TWO,
        STEM_OF_ONE,
        *_activation("ReLU", "silu", "leaky_relu"),
        CAFFE_POOL,
    ),
    "DenseNet": (NO_POOL, POOL, STEM_OF_TWO, STEM_OF_ONE, CAFFE_POOL),
    "ShuffleNetV2": (NO_POOL, STEM_OF_ONE, *_activation("ReLU", "hardswish")),
    "MobileNetV2": (*_activation("ReLU6", "relu", "hardswish"), STEM_OF_ONE, FINE_EPS),
    "MobileNetV3": (STEM_OF_ONE, COARSE_EPS),
    "EfficientNet": (TENSORFLOW_EPS, STEM_OF_ONE, *_activation("SiLU", "relu6")),
    "MNASNet": (STEM_OF_ONE, *_activation("ReLU", "relu6"), FINE_EPS),
    "RegNet": (STEM_OF_ONE, *_activation("ReLU", "silu"), FINE_EPS),
    "GoogLeNet": (TRANSFORM, FLOOR_POOL, FINE_EPS),
    "Inception3": (TRANSFORM, CAFFE_POOL),
    "SqueezeNet": (FLOOR_POOL, *_activation("ReLU", "leaky_relu")),
    "VGG": (*_activation("ReLU", "leaky_relu"), CAFFE_POOL),
    "AlexNet": _activation("ReLU", "leaky_relu"),
    "ConvNeXt": _activation("exact GELU", "gelu_tanh"),
    "VisionTransformer": _activation("exact GELU", "quick_gelu", "gelu_tanh"),
    "SwinTransformer": _activation("exact GELU", "gelu_tanh"),
    "MaxVit": _activation("exact GELU", "gelu_tanh"),
    "cifar": (PAD, STRIDE, PROJECT),
}
# What a name in timm says of its network, where tensors do not, by a part of the name.
TIMM_WORDS = (
    ("tf_", "TensorFlow's padding and eps"),
    ("blur", "anti-aliased by a blur"),
    ("aa", "anti-aliased by averages"),
    ("deit", "ImageNet's mean and std"),
    ("quickgelu", "quick GELU"),
)


def assumed_of(arch: str, args: Args, tensors: Tensors, *, named: bool) -> tuple[Assumed, ...]:
    """What is assumed of a network that was found, the likeliest to be otherwise first.

    Args:
        arch: its name.
        args: the arguments that are known: what they tell is not assumed.
        tensors: its shapes by name, counts marked.
        named: whether the user, or the file, says which architecture it is.
    """
    found: list[Assumed] = []
    accepted = (accepted_args(arch) or {}).keys() - args.keys()
    for twin in FAMILIES.get(family(arch), ()):
        known = named and not twin.if_named
        if not known and twin.args.keys() <= accepted and twin.fits(args, tensors):
            found.append(Assumed(what=twin.what, instead=twin.instead, args=dict(twin.args)))
    if not named and "stem" not in args:
        found += timm_twins(arch, [row.name for row in timm_rows(tensors)])
    return tuple(found)


def timm_twins(arch: str, names: Iterable[str]) -> list[Assumed]:
    """Architectures of timm that have the same tensors and compute something else.

    Those first of which there are words, in the order of the words.
    """
    own = arch.partition(":")[2]
    others = sorted((name for name in names if name != own), key=_place)
    found = []
    for name in others:
        place = _place(name)
        words = TIMM_WORDS[place][1] if place < len(TIMM_WORDS) else f"timm's {name}"
        found.append(Assumed(what=f"{PLAIN}{own}", instead=words, arch=f"timm:{name}"))
    return found


def _place(name: str) -> int:
    """The number of the words for a name of timm's; one past the last where there are none."""
    places = [number for number, (part, _) in enumerate(TIMM_WORDS) if part in name]
    return places[0] if places else len(TIMM_WORDS)


def note(assumed: Sequence[Assumed]) -> str:
    """One line for people; empty where nothing was assumed."""
    by_what: dict[str, list[str]] = {}
    for each in assumed:
        by_what.setdefault(each.what, []).append(f"{each.instead}: {each.option}")
    kept = sorted(by_what, key=lambda what: not what.startswith(PLAIN))[:MOST]
    parts = []
    for what, others in by_what.items():
        if what in kept:
            more = f"; {len(others) - 2} more" if len(others) > 2 else ""
            parts.append(f"{what} ({'; '.join(others[:2])}{more})")
    left = len(by_what) - len(kept)
    rest = f", and {left} more (--json lists all)" if left > 0 else ""
    return f"no tensor tells it, so this is assumed: {', '.join(parts)}{rest}" if parts else ""
