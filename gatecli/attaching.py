"""attach: put a method's gates into a network without changing what it predicts."""
from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from gatecli import methods
from gatecli.errors import ArchitectureError, SettingError
from gatecli.graph.sites import Site
from gatecli.methods import Method
from gatecli.network import Network
from gatecli.probe import random_images, relative_change
from gatecli.recipe import InputSpec, Recipe, Source, Step


@dataclass(frozen=True)
class Attached:
    """The gated network; `gates` sites and `units` in all; `max_logit_change` relative to the largest logit, on random images."""

    network: Network
    method: str
    gates: int
    units: int
    params: int
    max_logit_change: float


def attach(
    model: nn.Module,
    method: str,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    input_size: tuple[int, int] = (224, 224),
    arch: str = "",
    **settings: Any,
) -> Attached:
    """Gate a copy of `model` with a method, in evaluation mode; `model` itself is left alone.

    Args:
        model: a Network, or any classifier (N, C, H, W) -> (N, classes) that torch.fx can trace.
        method: a name from `gatecli methods`; `settings` are its settings.
        include, exclude: patterns of site names, as `layer3.*`.
        input_size, arch: for a plain model: image size in pixels, and what a saved file shall name as its architecture.
    Raises: SettingError, ArchitectureError where there is nothing to gate.
    """
    chosen = methods.get(method)
    parsed = methods.parse_settings(chosen, settings)
    network = model.copy() if isinstance(model, Network) else _traced(model, input_size, arch)
    network.eval()
    sites = choose_sites(network, chosen, include, exclude)
    images = random_images(network)
    with torch.no_grad():
        before = network(images)
        chosen.attach(network, sites, parsed)
        network.to(network.device).eval()
        change = relative_change(before, network(images))
    network.recipe = network.recipe.with_step(Step("attach", {"method": method, "settings": asdict(parsed), "sites": sites}, {"max_logit_change": change}))
    units = sum(network.sites[site].units for site in sites)
    return Attached(network, method, len(sites), units, network.params, change)


def choose_sites(network: Network, method: Method, include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Names of the sites that the method shall gate. Raises ArchitectureError or SettingError, saying why there are none."""
    candidates = method.candidates(network)
    if not candidates:
        raise ArchitectureError(f"{method.name} found nothing to gate in {network.recipe.source.arch or 'this network'}: it needs {method.needs}")
    free = [site for site in candidates if site.name not in network.methods]
    if not free:
        others = sorted({network.methods[site.name] for site in candidates})
        raise ArchitectureError(f"{method.name} found nothing to gate: all {len(candidates)} sites carry gates already ({', '.join(others)}); prune first")
    for pattern in [*include, *exclude]:
        if not any(fnmatchcase(site.name, pattern) for site in candidates):
            raise SettingError(f"pattern `{pattern}` matches none of the sites: {_few(candidates)}")
    chosen = [s.name for s in free if (not include or _any(s.name, include)) and not _any(s.name, exclude)]
    if not chosen:
        raise SettingError(f"--include and --exclude leave none of the {len(free)} sites that {method.name} can gate: {_few(free)}")
    return chosen


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _few(sites: Sequence[Site]) -> str:
    names = [site.name for site in sites]
    return ", ".join(names[:6]) + (f", ... ({len(names)} in all)" if len(names) > 6 else "")


def _traced(model: nn.Module, input_size: tuple[int, int], arch: str) -> Network:
    twin = copy.deepcopy(model).eval()
    network = Network(twin, Recipe(Source(arch, {}), InputSpec(input_size, 0)))
    source = Source(arch, {}, params=network.params, macs=network.macs_dense)
    network.recipe = Recipe(source, network.input)
    return network
