"""Architecture arguments: which ones an architecture takes, and which values these may have.

What comes from a file is checked here before anything is built from it, so nothing here imports
what a file names.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from gatecli.architectures.cifar import NETWORKS, PRERESNETS, RESNETS
from gatecli.errors import ArchitectureError, SettingError

__all__ = [
    "NO_TIMM",
    "Argument",
    "accepted_args",
    "check_args",
    "is_callable_name",
    "parse_arch_args",
    "split_arch",
]

LIBRARIES = ("torchvision", "cifar", "timm")
NO_TIMM = "timm is not installed, which `{arch}` needs: pip install 'gatecli[timm]'"
# These name files or fetch weights; a network's weights come from the checkpoint and from nowhere
# else.
REFUSED = {
    "weights",
    "weights_backbone",
    "progress",
    "cache_dir",
    "checkpoint_path",
    "features_only",
    "scriptable",
    "exportable",
    "no_jit",
}
SPELLED = {"int": int, "float": float, "bool": bool, "str": str}  # annotations may be strings


@dataclass(frozen=True)
class Argument:
    """What one argument may be.

    Attributes:
        kind: int, float, bool or str.
        low: the least that an integer may be.
        high: the most that an integer may be.
        choices: the words that it may be, if these are given.
    """

    kind: type
    low: float = 0
    high: float = 65_536
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.choices:
            return " or ".join(self.choices)
        words = {
            int: f"an integer from {self.low} to {self.high}",
            float: "a number",
            bool: "true or false",
            str: "a word",
        }
        return words[self.kind]

    def takes(self, value: object) -> bool:
        """Whether it may have this value."""
        if self.kind is str:
            return isinstance(value, str) and (not self.choices or value in self.choices)
        if isinstance(value, bool) or self.kind is bool:
            return isinstance(value, bool) and self.kind is bool
        if self.kind is float:
            return isinstance(value, (int, float)) and math.isfinite(value)
        return isinstance(value, int) and self.low <= value <= self.high


CLASSES = Argument(int, 1, 10_000_000)
CHANNELS = Argument(int, 1)
COUNTS = {"num_classes": CLASSES, "channels": CHANNELS}
CIFAR = {
    **COUNTS,
    "shortcut": Argument(str, choices=("projection", "pad")),
    "pad": Argument(str, choices=("both", "end")),  # where a padded shortcut has its zeros
}
STRIDE_ON = Argument(str, choices=("conv2", "conv1"))  # the convolution that has the stride
PRE_CIFAR = {
    **COUNTS,
    "narrow": Argument(bool),  # a first group of 16 channels, not 64
    "stride_on": STRIDE_ON,
    "project": Argument(str, choices=("input", "activation")),  # what a projection reads
}
STEM = {
    # cifar: a 3x3 convolution with stride 1, no max-pool
    "stem": Argument(str, choices=("imagenet", "cifar")),
    "maxpool": Argument(bool),  # whether the stem has one, overriding `stem`
    "stem_stride": Argument(int, 1, 16),
}


def split_arch(arch: str) -> tuple[str, str]:
    """("torchvision", "resnet50") of "torchvision:resnet50".

    Raises:
        ArchitectureError: it has another form.
    """
    prefix, colon, name = arch.partition(":")
    if not (prefix and colon and name):
        forms = "torchvision:NAME, cifar:NAME, timm:NAME or package.module:callable"
        raise ArchitectureError(f"expected the architecture to be {forms} but got `{arch}`")
    return prefix, name


def is_callable_name(arch: str) -> bool:
    """Whether `arch` has the form package.module:callable, whose import runs code."""
    return ":" in arch and arch.split(":", 1)[0] not in LIBRARIES


def parse_arch_args(pairs: Iterable[str]) -> dict[str, Any]:
    """["num_classes=10", "maxpool=true"] -> {"num_classes": 10, "maxpool": True}.

    Raises:
        SettingError: one is malformed or given twice.
    """
    args: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key.isidentifier() and equals and value):
            raise SettingError(f"expected --arch-arg to be NAME=VALUE but got `{pair}`")
        if key in args:
            raise SettingError(f"--arch-arg {key} is given twice")
        args[key] = _value(value)
    return args


def _value(text: str) -> int | float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if math.isfinite(value):
            return value
    return text


def check_args(arch: str, args: Mapping[str, Any]) -> None:
    """Check that an architecture exists and takes these arguments with these values.

    A callable's own parameters are looked at only when it is built: here nothing of it is imported.

    Raises:
        ArchitectureError: it does not.
    """
    accepted = accepted_args(arch)
    for name, value in args.items():
        if name in REFUSED or name.startswith("pretrained"):
            raise ArchitectureError(
                f"the architecture argument `{name}` is refused: weights come from the checkpoint"
                " alone"
            )
        if accepted is None:
            _check_plain(arch, name, value)
        else:
            _check_one(arch, name, value, accepted)


def _check_plain(arch: str, name: str, value: object) -> None:
    """An argument of a callable, of which only the class count is known."""
    is_plain = isinstance(value, (int, float, bool, str))
    if not is_plain or (isinstance(value, float) and not math.isfinite(value)):
        raise ArchitectureError(
            f"expected `{name}` of {arch} to be a number, a word or true or false but got {value!r}"
        )
    if name == "num_classes" and not CLASSES.takes(value):
        raise ArchitectureError(f"expected `{name}` of {arch} to be {CLASSES} but got {value!r}")


def _check_one(arch: str, name: str, value: object, accepted: Mapping[str, Argument]) -> None:
    """An argument of an architecture that takes those in `accepted`."""
    listing = f"{arch} takes {', '.join(accepted)}"
    if name not in accepted:
        raise ArchitectureError(
            f"{arch} takes no argument `{name}`: it takes {', '.join(accepted)}"
        )
    argument = accepted[name]
    if not argument.takes(value):
        raise ArchitectureError(
            f"expected `{name}` of {arch} to be {argument} but got {value!r} ({listing})"
        )


def accepted_args(arch: str) -> dict[str, Argument] | None:
    """The arguments that an architecture takes; None for a callable.

    Raises:
        ArchitectureError: there is no such architecture.
    """
    library, name = split_arch(arch)
    if library == "cifar":
        return _of_cifar(arch, name)
    if library == "torchvision":
        return _of_torchvision(arch, name)
    if library == "timm":
        return _of_timm(arch, name)
    return None


def _of_cifar(arch: str, name: str) -> dict[str, Argument]:
    _known(arch, name, list(NETWORKS))
    if name in RESNETS:
        return CIFAR
    return PRE_CIFAR if name in PRERESNETS else COUNTS


def _of_torchvision(arch: str, name: str) -> dict[str, Argument]:
    from torchvision import models

    _known(arch, name, models.list_models(module=models))
    network = _network(models.get_model_builder(name))
    extras = {models.ResNet: {**STEM, "stride_on": STRIDE_ON}, models.DenseNet: STEM}
    own = extras.get(network, {})
    return {"num_classes": CLASSES, "in_channels": CHANNELS, **own, **_simple(network)}


def _of_timm(arch: str, name: str) -> dict[str, Argument]:
    try:
        import timm
    except ImportError as error:
        raise ArchitectureError(NO_TIMM.format(arch=arch)) from error
    base = name.split(".", 1)[0]  # resnet50.a1_in1k: the part after the dot names weights
    _known(arch, base, timm.list_models())  # nothing on a hub: timm would fetch hf-hub:NAME
    own = _simple(_network(timm.model_entrypoint(base)))
    return {"num_classes": CLASSES, "in_chans": CHANNELS, **own}


def _known(arch: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, 5, 0.0)
        raise ArchitectureError(f"there is no `{arch}`: the nearest names are {', '.join(near)}")


def _network(builder: Callable[..., Any]) -> Any:
    """The class that a builder returns, by its annotation; None if it has no such class."""
    network = inspect.signature(builder, eval_str=True).return_annotation
    return network if isinstance(network, type) else None


def _simple(network: Any) -> dict[str, Argument]:
    """The parameters of a class that a plain value can be given for."""
    if network is None:
        return {}
    found = {}
    for name, parameter in inspect.signature(network).parameters.items():
        kind = _kind(parameter)
        if kind is not None and name not in ("num_classes", "in_chans") and name not in REFUSED:
            found[name] = Argument(kind)
    return found


def _kind(parameter: inspect.Parameter) -> type | None:
    """The plain type of a parameter, by its annotation or else by its default."""
    spelled = SPELLED.get(str(parameter.annotation))
    for kind in (parameter.annotation, spelled, type(parameter.default)):
        if kind in (int, float, bool, str):
            return cast(type, kind)
    return None
