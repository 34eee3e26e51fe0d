"""Build a network from its name and arguments. Only `build_pretrained` ever fetches weights."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gatecli.architectures.arguments import (
    CIFAR_NETWORKS,
    NO_TIMM,
    accepted_args,
    check_args,
    is_callable_name,
    parse_arch_args,
    split_arch,
)
from gatecli.architectures.tweaks import EXTRAS, alter
from gatecli.errors import ArchitectureError, reason
from gatecli.importing import current_folder_importable

__all__ = [
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


def build(arch: str, args: Mapping[str, Any]) -> nn.Module:
    """The network with random weights, in evaluation mode.

    `arch` is torchvision:NAME, cifar:resnet20 (or another in cifar/), timm:NAME or
    package.module:callable, the last imported with the current folder on the path. Downloads
    nothing.

    Raises:
        ArchitectureError: there is no such network, it does not take `args`, or a callable fails.
    """
    check_args(arch, args)
    library, name = split_arch(arch)
    if is_callable_name(arch):
        model = _call(arch, args)
    else:
        make = {"torchvision": _torchvision, "cifar": _cifar, "timm": _timm}[library]
        try:
            with _counted(f"{arch} with {_spell(args)}"):
                model = make(name, args)
        except (
            TypeError,
            ValueError,
            RuntimeError,
            AssertionError,
            NotImplementedError,
            ZeroDivisionError,
            MemoryError,
        ) as error:
            raise ArchitectureError(
                f"{arch} cannot be built with {_spell(args)}: {reason(error, 200)}"
            ) from error
    return model.eval()


def build_skeleton(arch: str, args: Mapping[str, Any]) -> nn.Module:
    """The network without memory for its weights where it can be built so, in evaluation mode.

    Its constants have their values.

    Raises ArchitectureError, as `build` does.
    """
    if not is_callable_name(arch):  # a user's code may do anything on the way
        try:
            with _WithoutMemory():
                return build(arch, args)
        except TooLarge:
            raise
        except ArchitectureError:  # wrong arguments fail again below
            pass
    return build(arch, args)


class _WithoutMemory(TorchFunctionMode):
    """Puts on the meta device what is allocated to be filled, weights that is, and nothing else.

    With `torch.device("meta")` instead, constructors that calculate with tensors fail (RegNet's
    widths, rates of stochastic depth).
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func is torch.empty and given.get("device") is None:
            given = {**given, "device": "meta"}
        return func(*args, **given)


class TooLarge(ArchitectureError):
    """A network asks for more than the file could hold that names it."""


_CEILING: ContextVar[tuple[int, int] | None] = ContextVar("ceiling", default=None)


@contextmanager
def at_most(tensors: int, numbers: int) -> Iterator[None]:
    """Inside, a library's network that asks for more tensors, or for more numbers in them, is
    refused with TooLarge before it has them.
    """
    token = _CEILING.set((tensors, numbers))
    try:
        yield
    finally:
        _CEILING.reset(token)


def _counted(what: str) -> AbstractContextManager[Any]:
    ceiling = _CEILING.get()
    return nullcontext() if ceiling is None else _Counted(what, *ceiling)


class _Counted(TorchFunctionMode):
    """Counts what is allocated while a network is built."""

    factories = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)

    def __init__(self, what: str, tensors: int, numbers: int) -> None:
        super().__init__()
        self.what, self.tensors, self.numbers = what, tensors, numbers

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in self.factories:
            self._take(given.get("size", args))
        return func(*args, **given)

    def _take(self, size: Any) -> None:
        sides = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        self.tensors -= 1
        self.numbers -= math.prod(sides)
        if self.tensors < 0 or self.numbers < 0:
            raise TooLarge(
                f"{self.what} would be far larger than the file: expected a network whose weights"
                " the file holds"
            )


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
        if library == "torchvision":
            from torchvision import models

            model: nn.Module = models.get_model(name, weights="DEFAULT", progress=False)
        else:
            import timm

            model = timm.create_model(name, pretrained=True)
    except Exception as error:  # the network, the disk, a hub's client: each has errors of its own
        way_out = "download them elsewhere and give the file"
        raise ArchitectureError(
            f"the pretrained weights of {arch} cannot be had ({reason(error, 200)}): {way_out}"
        ) from error
    return model.eval()


def switches(arch: str, model: nn.Module) -> dict[str, bool]:
    """The yes-or-no arguments with which torchvision has built a network of its own, where it keeps
    them.

    Pretrained networks may have others than the defaults (GoogLeNet transforms its input), which no
    tensor shows.
    """
    if split_arch(arch)[0] != "torchvision":
        return {}
    return {
        name: vars(model)[name]
        for name, argument in (accepted_args(arch) or {}).items()
        if argument.kind is bool and isinstance(vars(model).get(name), bool)
    }


def find_callable(arch: str) -> Callable[..., Any]:
    """Import what package.module:callable names. Raises ArchitectureError if that fails."""
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

    own = {key: value for key, value in args.items() if key not in EXTRAS}
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # GoogLeNet and Inception announce another initialisation
        model = models.get_model(name, weights=None, **own)
    return alter(
        model, f"torchvision:{name}", {key: value for key, value in args.items() if key in EXTRAS}
    )


def _cifar(name: str, args: Mapping[str, Any]) -> nn.Module:
    return CIFAR_NETWORKS[name](**args)


def _timm(name: str, args: Mapping[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ArchitectureError(NO_TIMM.format(arch=f"timm:{name}")) from error
    model: nn.Module = timm.create_model(name, pretrained=False, **args)
    return model


def _spell(args: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in args.items()) or "no arguments"
