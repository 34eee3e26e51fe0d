"""Build a network from its name and arguments. Only `build_pretrained` ever fetches weights."""

from __future__ import annotations

import functools
import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from gatecli.architectures.allocation import TooLarge, WithoutMemory, at_most, counted
from gatecli.architectures.arguments import (
    NO_TIMM,
    accepted_args,
    check_args,
    is_callable_name,
    parse_arch_args,
    split_arch,
)
from gatecli.architectures.cifar import NETWORKS
from gatecli.architectures.transformers_library import build_transformers
from gatecli.architectures.tweaks import EXTRAS, alter, given_to_builder
from gatecli.errors import ArchitectureError, reason
from gatecli.importing import current_folder_importable

_WithoutMemory = WithoutMemory  # the name that scripts know

__all__ = [
    "TooLarge",
    "at_most",
    "build",
    "build_pretrained",
    "build_skeleton",
    "check_args",
    "find_callable",
    "is_callable_name",
    "parse_arch_args",
    "switches",
]


# What constructors raise for arguments that do not go together.
FAILURES = (
    AttributeError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    RuntimeError,
    AssertionError,
    NotImplementedError,
    ZeroDivisionError,
    MemoryError,
)


def build(arch: str, args: Mapping[str, Any]) -> nn.Module:
    """The network with random weights, in evaluation mode.

    Downloads nothing.

    Args:
        arch: torchvision:NAME, cifar:resnet20 (or another in cifar/), timm:NAME,
            transformers:CLASS or package.module:callable, the last imported with the current folder
            on the path.
        args: the architecture's arguments.

    Raises:
        ArchitectureError: there is no such network, it does not take `args`, or a callable fails.
    """
    check_args(arch, args)
    library, name = split_arch(arch)
    if is_callable_name(arch):
        model = _call(arch, args)
    else:
        make = {
            "torchvision": _torchvision,
            "cifar": _cifar,
            "timm": _timm,
            "transformers": build_transformers,
        }[library]
        try:
            with counted(f"{arch} with {_spell(args)}"):
                model = make(name, args)
        except FAILURES as error:
            raise ArchitectureError(
                f"{arch} cannot be built with {_spell(args)}: {reason(error, 200)}"
            ) from error
    return model.eval()


def build_skeleton(arch: str, args: Mapping[str, Any]) -> nn.Module:
    """The network without memory for its weights where it can be built so, in evaluation mode.

    Its constants have their values. Arguments as in `build`.

    Raises:
        ArchitectureError: as in `build`.
    """
    if not is_callable_name(arch):  # a user's code may do anything on the way
        try:
            with WithoutMemory():
                return build(arch, args)
        except TooLarge:
            raise
        except ArchitectureError:  # wrong arguments fail again below
            pass
    return build(arch, args)


def build_pretrained(arch: str) -> nn.Module:
    """The library's own pretrained network, in evaluation mode.

    Downloads its weights unless they are in the library's cache.

    Raises:
        ArchitectureError: there is no such network, or its weights cannot be had.
    """
    library, name = split_arch(arch)
    if library not in ("torchvision", "timm"):
        raise ArchitectureError(
            f"{arch} has no pretrained weights: give a checkpoint file, or torchvision:NAME or"
            " timm:NAME"
        )
    accepted_args(arch)
    try:
        return _with_weights(library, name).eval()
    except Exception as error:  # the network, the disk, a hub's client: each has errors of its own
        raise ArchitectureError(
            f"the pretrained weights of {arch} cannot be had ({reason(error, 200)}): download them"
            " elsewhere and give the file"
        ) from error


def _with_weights(library: str, name: str) -> nn.Module:
    if library == "torchvision":
        from torchvision import models

        model: nn.Module = models.get_model(name, weights="DEFAULT", progress=False)
        return model
    import timm

    model = timm.create_model(name, pretrained=True)
    return model


def switches(arch: str, model: nn.Module) -> dict[str, bool]:
    """The yes-or-no arguments with which torchvision has built a network, where it keeps them.

    Pretrained networks may have others than the defaults (GoogLeNet transforms its input), which no
    tensor shows.
    """
    if split_arch(arch)[0] != "torchvision":
        return {}
    found = {}
    for name, argument in (accepted_args(arch) or {}).items():
        value = vars(model).get(name)
        if argument.kind is bool and isinstance(value, bool):
            found[name] = value
    return found


def find_callable(arch: str) -> Callable[..., Any]:
    """Import what package.module:callable names.

    Raises:
        ArchitectureError: that fails, or it is no callable.
    """
    module, name = split_arch(arch)
    try:
        with current_folder_importable():
            found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except AttributeError as error:
        raise ArchitectureError(f"{arch} cannot be found: {reason(error, 200)}") from error
    except (Exception, SystemExit) as error:
        raise ArchitectureError(
            f"{arch} cannot be imported: {type(error).__name__}: {reason(error, 200)}"
        ) from error
    if not callable(found):
        raise ArchitectureError(
            f"expected {arch} to be a callable that returns an nn.Module but got"
            f" {type(found).__name__}"
        )
    return found


def _call(arch: str, args: Mapping[str, Any]) -> nn.Module:
    make = find_callable(arch)
    try:
        inspect.signature(make).bind(**args)
    except TypeError as error:
        raise ArchitectureError(
            f"{arch} cannot be called with {_spell(args)}: {reason(error, 200)}; its signature is"
            f" {inspect.signature(make)}"
        ) from error
    except ValueError:  # written in C: it has no signature to look at
        pass
    try:
        with current_folder_importable():
            model = make(**args)
    except (Exception, SystemExit) as error:
        raise ArchitectureError(
            f"{arch} failed with {_spell(args)}: {type(error).__name__}: {reason(error, 200)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ArchitectureError(
            f"expected {arch} to return an nn.Module but got {type(model).__name__}"
        )
    return model


def _torchvision(name: str, args: Mapping[str, Any]) -> nn.Module:
    from torchvision import models

    own = given_to_builder(dict(args))
    extras = {key: value for key, value in args.items() if key in EXTRAS}
    with warnings.catch_warnings():
        # GoogLeNet and Inception announce another initialisation
        warnings.simplefilter("ignore", FutureWarning)
        model = models.get_model(name, weights=None, **own)
    return alter(model, f"torchvision:{name}", extras)


def _cifar(name: str, args: Mapping[str, Any]) -> nn.Module:
    return NETWORKS[name](**args)


def _timm(name: str, args: Mapping[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ArchitectureError(NO_TIMM.format(arch=f"timm:{name}")) from error
    model: nn.Module = timm.create_model(name, pretrained=False, **args)
    return model


def _spell(args: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in args.items()) or "no arguments"
