"""Further ways to trace a network where torch.fx alone comes to nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from gatecli.graph.sized import SizedTracer
from gatecli.graph.tracer import SiteTracer
from gatecli.traced.traced import Shape

__all__ = ["further_tracers"]


def further_tracers(
    module: nn.Module, leaves: Sequence[str], image: Shape
) -> list[Callable[[], SiteTracer]]:
    """Tracers to try one after the other: one that knows sizes, then with the library's leaves.

    Args:
        module: What is traced.
        leaves: Patterns of module paths to keep whole.
        image: (channels, height, width); without channels those of the first convolution.
    """
    image = (image[0] or _first_channels(module), *image[1:])
    found: list[Callable[[], SiteTracer]] = [lambda: SizedTracer(module, image, leaves)]
    whole, functions = _of_library(module)
    if whole or functions:
        found.append(lambda: SizedTracer(module, image, leaves, whole, functions))
    return found


def _first_channels(module: nn.Module) -> int:
    for part in module.modules():
        if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return part.in_channels
    return 3


def _of_library(
    module: nn.Module,
) -> tuple[list[type[nn.Module]], list[Callable[..., Any]]]:
    """The modules and functions that timm says are not to be traced, for its own networks.

    Its networks have imported it; nothing is imported here for a network's sake.
    """
    library: Any = sys.modules.get("timm.models._features_fx")
    if library is None or not type(module).__module__.startswith("timm."):
        return [], []
    try:
        return list(library.get_notrace_modules()), list(library.get_notrace_functions())
    except AttributeError:  # another version of it
        return [], []
