"""Architecture arguments: which ones an architecture takes, and which values these may have.

What comes from a file is checked here before anything is built from it, so nothing here imports
what a file names.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from gatecli.architectures.argument import (
    CHANNELS,
    CIFAR,
    CLASSES,
    COUNTS,
    PRE_CIFAR,
    Argument,
)
from gatecli.architectures.cifar import NETWORKS, PRERESNETS, RESNETS
from gatecli.architectures.torchvision_args import EXTRA_ARGS, builders_own
from gatecli.architectures.transformers_library import check_config
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

LIBRARIES = ("torchvision", "cifar", "timm", "transformers")
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


def split_arch(arch: str) -> tuple[str, str]:
    """("torchvision", "resnet50") of "torchvision:resnet50".

    Raises:
        ArchitectureError: it has another form.
    """
    prefix, colon, name = arch.partition(":")
    if not (prefix and colon and name):
        forms = (
            "torchvision:NAME, cifar:NAME, timm:NAME, transformers:CLASS or package.module:callable"
        )
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
    words = [word.strip() for word in text.lower().strip("[]()").split(",")]
    if len(words) > 1 and set(words) <= {"true", "false"}:
        return ",".join(words)  # a list, as [False, True, True]
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
    if split_arch(arch)[0] == "transformers":
        check_config(arch, args)
        return
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
    """The arguments that an architecture takes; None for a callable, and a network of transformers.

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
    title = getattr(network, "__name__", "")
    own = {"num_classes": CLASSES, "in_channels": CHANNELS, **EXTRA_ARGS.get(title, {})}
    set_already = builders_own(title, name)
    for key, argument in _simple(network).items():
        if key not in set_already:
            own.setdefault(key, argument)
    return own


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
