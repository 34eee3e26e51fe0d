"""Architecture arguments: which ones an architecture takes, and whether given ones are plain values
in their range.

What comes from a file is checked here before anything is built from it, so nothing here imports
what a file names.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gatecli.architectures.cifar import PRERESNETS, RESNETS
from gatecli.architectures.cifar.densenet import DENSENETS
from gatecli.architectures.cifar.resnext import RESNEXTS
from gatecli.architectures.cifar.shakeshake import SHAKESHAKES
from gatecli.errors import ArchitectureError, SettingError

CIFAR_NETWORKS = {**RESNETS, **PRERESNETS, **RESNEXTS, **DENSENETS, **SHAKESHAKES}
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

    A `kind` of value, in [low, high] if a number, one of `choices` if these are given.
    """

    kind: type
    low: float = 0
    high: float = 65_536
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.choices:
            return " or ".join(self.choices)
        return {
            int: f"an integer from {self.low} to {self.high}",
            float: "a number",
            bool: "true or false",
            str: "a word",
        }[self.kind]

    def takes(self, value: object) -> bool:
        if self.kind is str:
            return isinstance(value, str) and (not self.choices or value in self.choices)
        if isinstance(value, bool) or self.kind is bool:
            return isinstance(value, bool) and self.kind is bool
        if self.kind is float:
            return isinstance(value, (int, float)) and math.isfinite(value)
        return isinstance(value, int) and self.low <= value <= self.high


CLASSES, CHANNELS = Argument(int, 1, 10_000_000), Argument(int, 1)
CIFAR = {
    "num_classes": CLASSES,
    "channels": CHANNELS,
    "shortcut": Argument(str, choices=("projection", "pad")),
    "pad": Argument(str, choices=("both", "end")),  # where a padded shortcut has its zeros
}
STRIDE_ON = Argument(
    str, choices=("conv2", "conv1")
)  # which convolution of a bottleneck has the stride
PRE_CIFAR = {
    "num_classes": CLASSES,
    "channels": CHANNELS,
    "narrow": Argument(bool),  # a first group of 16 channels, not 64
    "stride_on": STRIDE_ON,
    "project": Argument(str, choices=("input", "activation")),  # what a projection reads
}
STEM = {
    "stem": Argument(
        str, choices=("imagenet", "cifar")
    ),  # cifar: a 3x3 convolution with stride 1, no max-pool
    "maxpool": Argument(bool),  # whether the stem has one, overriding `stem`
    "stem_stride": Argument(int, 1, 16),
}


def split_arch(arch: str) -> tuple[str, str]:
    """("torchvision", "resnet50") of "torchvision:resnet50".

    Raises ArchitectureError on another form.
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

    Raises SettingError if one is malformed or given twice.
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
    """Raise ArchitectureError unless `arch` exists and takes these arguments with these values.

    A callable's own parameters are looked at only when it is built: here nothing of it is imported.
    """
    accepted = accepted_args(arch)
    for name, value in args.items():
        if name in REFUSED or name.startswith("pretrained"):
            raise ArchitectureError(
                f"the architecture argument `{name}` is refused: weights come from the checkpoint"
                " alone"
            )
        if accepted is None:
            argument = CLASSES if name == "num_classes" else None
            if not isinstance(value, (int, float, bool, str)) or (
                isinstance(value, float) and not math.isfinite(value)
            ):
                raise ArchitectureError(
                    f"expected `{name}` of {arch} to be a number, a word or true or false but got"
                    f" {value!r}"
                )
        elif (argument := accepted.get(name)) is None:
            raise ArchitectureError(
                f"{arch} takes no argument `{name}`: it takes {', '.join(accepted)}"
            )
        if argument is not None and not argument.takes(value):
            others = f" ({arch} takes {', '.join(accepted)})" if accepted else ""
            raise ArchitectureError(
                f"expected `{name}` of {arch} to be {argument} but got {value!r}{others}"
            )


def accepted_args(arch: str) -> dict[str, Argument] | None:
    """The arguments that an architecture takes; None for a callable.

    Raises ArchitectureError if there is no such architecture.
    """
    library, name = split_arch(arch)
    if library == "cifar":
        _known(arch, name, list(CIFAR_NETWORKS))
        return (
            CIFAR
            if name in RESNETS
            else PRE_CIFAR
            if name in PRERESNETS
            else {"num_classes": CLASSES, "channels": CHANNELS}
        )
    if library == "torchvision":
        from torchvision import models

        _known(arch, name, models.list_models(module=models))
        network = _network(models.get_model_builder(name))
        family = {models.ResNet: {**STEM, "stride_on": STRIDE_ON}, models.DenseNet: STEM}.get(
            network, {}
        )
        return {"num_classes": CLASSES, "in_channels": CHANNELS, **family, **_simple(network)}
    if library == "timm":
        try:
            import timm
        except ImportError as error:
            raise ArchitectureError(NO_TIMM.format(arch=arch)) from error
        base = name.split(".", 1)[0]  # resnet50.a1_in1k: the part after the dot names weights
        _known(
            arch, base, timm.list_models()
        )  # so nothing on a hub or a disk: timm would fetch hf-hub:NAME
        return {
            "num_classes": CLASSES,
            "in_chans": CHANNELS,
            **_simple(_network(timm.model_entrypoint(base))),
        }
    return None


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
        kinds = (
            parameter.annotation,
            SPELLED.get(str(parameter.annotation)),
            type(parameter.default),
        )
        kind = next((kind for kind in kinds if kind in (int, float, bool, str)), None)
        if kind is not None and name not in ("num_classes", "in_chans") and name not in REFUSED:
            found[name] = Argument(kind)
    return found
