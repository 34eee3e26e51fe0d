"""attach: put a method's gates into a network without changing what it predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from gatecli import methods
from gatecli.errors import ArchitectureError, SettingError
from gatecli.kinds import registry
from gatecli.methods import Method
from gatecli.methods.settings import S
from gatecli.network import Network
from gatecli.network.compare import logits, random_images, relative_change
from gatecli.stages.own_module import network_of
from gatecli.traced.recipe import Step
from gatecli.traced.site import Site
from gatecli.traced.traced import Traced

__all__ = ["Attached", "Choice", "attach", "choose_sites"]


@dataclass(frozen=True)
class Attached:
    """The gated network; `gates` sites and `units` in all.

    `max_logit_change` relative to the largest logit, on random images.
    """

    network: Network
    method: str
    gates: int
    units: int
    params: int
    max_logit_change: float
    kinds: list[str]


def attach(  # noqa: PLR0913 - its command's options, by keyword
    model: nn.Module,
    method: str,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kinds: Sequence[str] = (),
    input_size: tuple[int, int] | None = None,
    arch: str = "",
    arch_args: Mapping[str, Any] | None = None,
    leaves: Sequence[str] = (),
    gater_network: Network | None = None,
    **settings: Any,
) -> Attached:
    """Gate a copy of `model` with a method, in evaluation mode; `model` itself is left alone.

    Args:
        model: a Network, or any classifier (N, C, H, W) -> (N, classes) that torch.fx can trace.
        method: a name from `gatecli methods`.
        include: patterns of site names, as `layer3.*`, to gate.
        exclude: patterns of site names not to gate.
        kinds: the kinds of sites to gate; none: those that the method's paper gates.
        input_size: for a plain model: height and width of its images in pixels; none: 224, 224.
        arch: for a plain model that shall be saved: what a file names as its architecture.
        arch_args: the architecture's arguments that no tensor shows (see `gatecli inspect`).
        leaves: for a plain model: patterns of module paths that tracing keeps whole.
        gater_network: for a method with a gater: the trained classifier that it starts from, as
            gatecli.load reads it.
        **settings: the method's settings.

    Raises:
        SettingError: An argument, or a setting of the method, is not what it may be.
        ArchitectureError: The model cannot be traced, is not of that architecture, or has nothing
            to gate.
    """
    chosen = methods.get(method)
    parsed = methods.parse_settings(chosen, settings)
    if isinstance(model, Network):
        _check_unsaid(input_size=input_size, arch=arch, arch_args=arch_args, leaves=leaves)
        network = model.copy()
    else:
        network = network_of(model, input_size or (224, 224), arch, arch_args or {}, leaves)
    network.eval()
    chosen.ready(network, parsed)
    choice = Choice(include=include, exclude=exclude, kinds=kinds)
    named = choose_sites(network, chosen, choice, parsed)
    sites, parsed = chosen.complete(network, named, parsed, gater_network)
    images = random_images(network, 1)
    before = logits(network, images)
    chosen.attach(network, sites, parsed, gater_network)
    network.to(network.device).eval()
    change = relative_change(before, logits(network, images))
    network.recipe = network.recipe.with_step(
        Step(
            "attach",
            {"method": method, "settings": methods.record_settings(parsed), "sites": sites},
            {"max_logit_change": change},
        )
    )
    places = [network.sites[site] for site in sites]
    return Attached(
        network=network,
        method=method,
        gates=len(sites),
        units=sum(place.units for place in places),
        params=network.params,
        max_logit_change=change,
        kinds=list(dict.fromkeys(place.kind for place in places)),
    )


def _check_unsaid(**given: Any) -> None:
    """Raises SettingError where something is said of a Network that it knows itself."""
    for name, value in given.items():
        if value:
            raise SettingError(
                f"expected `{name}` with a plain model, but a Network knows its own: leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which sites to gate.

    Attributes:
        include: Patterns of site names; none: all that the method gates by default.
        exclude: Patterns of sites to leave out.
        kinds: Kinds of sites; none: those that the method's paper gates.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    kinds: Sequence[str] = ()


def choose_sites(network: Network, method: Method[S], choice: Choice, settings: S) -> list[str]:
    """Names of the sites that the method shall gate.

    Raises:
        ArchitectureError: There are none.
        SettingError: The choice leaves none, or a kind is not for the method.
    """
    _check_kinds(network, method, choice.kinds)
    candidates = method.offers(network, settings, choice.kinds)
    free = _free(network, method, candidates)
    for pattern in [*choice.include, *choice.exclude]:
        if not any(fnmatchcase(site.name, pattern) for site in candidates):
            raise SettingError(
                _unmatched(_refused(network, method, choice.kinds), pattern, candidates)
            )
    chosen = [site for site in free if _is_chosen(network, method, choice, site)]
    if chosen:
        return [site.name for site in _once(network.traced, chosen)]
    if choice.include or choice.exclude:
        raise SettingError(
            f"--include and --exclude leave none of the {len(free)} sites that"
            f" {method.about.name} can gate: {_few(free)}"
        )
    raise ArchitectureError(
        f"{method.about.name} found nothing to gate in"
        f" {network.recipe.source.arch or 'this network'} by itself: it needs"
        f" {method.about.needs}; there are: {_few(free)}"
    )


def _once(net: Traced, sites: Sequence[Site]) -> list[Site]:
    """The sites, but of those that decide about the same channels only the one that saves most.

    An inverted residual's hidden units are its first convolution's filters, and those of the
    layer that scales them.
    """
    best: dict[str, Site] = {}
    layers = {site.name: registry.of(site).decided(net, site) for site in sites}
    for site in sites:
        for layer in layers[site.name]:
            if layer not in best or site.macs > best[layer].macs:
                best[layer] = site
    return [site for site in sites if all(best[layer] is site for layer in layers[site.name])]


def _check_kinds(network: Network, method: Method[Any], asked: Sequence[str]) -> None:
    """Raises SettingError where the method cannot gate a kind, or the network has no such site."""
    possible = method.about.kinds()
    there = {site.kind for site in network.sites.values()}
    for kind in asked:
        if kind not in possible:
            known = f"{method.about.name} can gate {', '.join(possible)}"
            raise SettingError(f"expected --kind to name what {known}, but got `{kind}`")
        if kind not in there:
            have = ", ".join(name for name in possible if name in there) or "none of them"
            raise SettingError(
                f"expected --kind to name sites that the network has ({have} of what"
                f" {method.about.name} can gate), but it has none of kind `{kind}`"
                f"{_why_refused(network, kind)}"
            )


def _why_refused(network: Network, kind: str) -> str:
    """Why the first of what could be taken for a site of a kind is none; empty: there is none."""
    for name, why in registry.get(kind).refused(network.traced).items():
        return f"; `{name}` {why}"
    return ""


def _free(network: Network, method: Method[Any], candidates: Sequence[Site]) -> list[Site]:
    """The candidates without gates."""
    if not candidates:
        raise ArchitectureError(
            f"{method.about.name} found nothing to gate in"
            f" {network.recipe.source.arch or 'this network'}: it needs {method.about.needs}"
        )
    free = [site for site in candidates if site.name not in network.gated_by]
    if not free:
        others = sorted({network.gated_by[site.name] for site in candidates})
        raise ArchitectureError(
            f"{method.about.name} found nothing to gate: all {len(candidates)} sites carry gates"
            f" already ({', '.join(others)}); prune first"
        )
    return free


def _is_chosen(network: Network, method: Method[Any], choice: Choice, site: Site) -> bool:
    if _any(site.name, choice.exclude):
        return False
    if choice.include:
        return _any(site.name, choice.include)
    return method.by_default(network, site)


def _refused(network: Network, method: Method[Any], kinds: Sequence[str]) -> dict[str, str]:
    """What a user may take for a site, but is none: name -> why, as `is depthwise`."""
    found: dict[str, str] = {}
    for kind in dict.fromkeys([*method.about.default_kinds, *kinds]):
        found |= registry.get(kind).refused(network.traced)
    return found


def _unmatched(refused: Mapping[str, str], pattern: str, candidates: Sequence[Site]) -> str:
    why = next(
        (f"; `{name}` {why}" for name, why in refused.items() if fnmatchcase(name, pattern)), ""
    )
    return f"pattern `{pattern}` matches none of the sites: {_few(candidates)}{why}"


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _few(sites: Sequence[Site]) -> str:
    names = [site.name for site in sites]
    return ", ".join(names[:6]) + (f", ... ({len(names)} in all)" if len(names) > 6 else "")
