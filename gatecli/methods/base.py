"""What a method is, and where methods are registered.

A method is one file in this folder: a docstring with the paper and its equations, a settings
dataclass, the gate modules, and a subclass of `Method` whose instances are registered. The command
line, the docs and the contract tests find it here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from gatecli.errors import SettingError
from gatecli.gates.decider import Decider
from gatecli.gates.gate import Gate
from gatecli.kinds import registry
from gatecli.kinds.base import EXIT, MASK
from gatecli.methods.schedules import learning_rate
from gatecli.methods.settings import Settings, checked, setting
from gatecli.network import Network, surgery
from gatecli.network.surgery import Decisions
from gatecli.traced.site import Site, SiteDecision


@dataclass(frozen=True)
class ExitSettings(Settings):
    """Settings of all methods that put exits in."""

    after: str | None = setting(
        None,
        "blocks, layers or modules after which to put exits, with commas between; none: the end of"
        " each stage but the last",
        structural=True,
    )


class Method:
    """A way of gating.

    Subclasses say which sites it gates, with which gates, and which loss trains them.

    Class attributes: `needs`, what a network must have, for people; `paper`, its source; `trains`,
    what training changes; `aims`, whether training aims at a rate; `samples`, whether it draws
    decisions. An instance has a name, a line of explanation, and the dataclass of its settings.
    """

    needs: ClassVar[str] = "something to gate"
    requires: ClassVar[frozenset[str]] = frozenset({MASK})
    default_kinds: ClassVar[tuple[str, ...]] = ()
    trains: ClassVar[str] = (
        "network"  # what finetune trains: the network with the gates, or the "exits" alone
    )
    # the gates' learning rate over that of the weights, unless --set gate_lr says otherwise
    gate_lr_factor: ClassVar[float] = 1.0
    at_least: ClassVar[bool] = (
        False  # whether its target rate is one to reach, rather than to come down to
    )
    paper: ClassVar[str] = ""
    aims: ClassVar[bool] = True
    samples: ClassVar[bool] = True

    def __init__(self, name: str, summary: str, settings: type[Settings]) -> None:
        self.name, self.summary, self.settings = name, summary, settings

    def kinds(self) -> list[str]:
        """The kinds of sites that the method can gate: those that offer what it requires."""
        every = registry.all_kinds()
        return [kind.name for kind in every if self.requires <= kind.offers]

    def candidates(self, network: Network, kinds: Sequence[str] = ()) -> list[Site]:
        """The sites of these kinds, none named: the method's own; gated ones included."""
        chosen = kinds or self.default_kinds
        return [site for site in network.sites.values() if site.kind in chosen]

    def offers(self, network: Network, settings: Any, kinds: Sequence[str] = ()) -> list[Site]:
        """Those of the candidates that these settings speak of, gated ones included."""
        return self.candidates(network, kinds)

    def by_default(self, network: Network, site: Site) -> bool:
        """Whether a candidate is gated where no --include names it."""
        return True

    def refused(self, network: Network) -> dict[str, str]:
        """What a user may take for a site, but is none: name -> why, as `is depthwise`."""
        found: dict[str, str] = {}
        for kind in self.default_kinds:
            found |= registry.get(kind).refused(network.traced)
        return found

    def ready(self, network: Network, settings: Any) -> None:
        """Make sure that the network has the sites that these settings ask for.

        This comes before any are chosen. Raises SettingError.
        """

    def complete(self, network: Network, settings: Any, gater: Network | None = None) -> Any:
        """The settings with what depends on the network filled in.

        Gater: a classifier that the user gives for the gates. Raises SettingError.
        """
        if gater is not None:
            raise SettingError(
                f"expected --gater with a method that has a gater, but {self.name} has none"
            )
        return settings

    def weights(self, network: Network, gater: Network) -> None:
        """Take the weights of the classifier that the user gave for the gates."""

    def prepare(self, sites: list[str], settings: Any) -> tuple[list[str], Any]:
        """Which of the sites chosen to gate, and the settings in the form that is recorded.

        Raises SettingError.
        """
        return sites, settings

    def gate(self, site: Site, settings: Any) -> Decider:
        """A new gate for a site, opened so that it changes no prediction."""
        raise NotImplementedError

    def attach(self, network: Network, sites: Iterable[str], settings: Any) -> None:
        """Gate the named sites of `network`, in place."""
        self.ready(network, settings)
        for name in sites:
            self.insert(network, name, settings)
        network.recompile()
        network.recount()

    def insert(self, network: Network, site: str, settings: Any) -> None:
        """Put one gate in."""
        gate = self.gate(network.sites[site], settings)
        surgery.insert_gate(network.traced, site, gate, self.name)

    def begin(self, network: Network, sites: Iterable[str]) -> None:
        """Training of the gates at these sites begins, or goes on."""

    def shared(self, network: Network) -> list[Parameter]:
        """What the method has besides the gates, for all of them together.

        It is trained as they are.
        """
        return []

    def begin_epoch(
        self, network: Network, sites: Iterable[str], settings: Any, done: float
    ) -> None:
        """An epoch of training begins; `done`: the share of the training that lies behind."""

    def after_step(self, network: Network, sites: Iterable[str]) -> None:
        """The optimizer has moved the parameters."""

    def learning_rate(self, schedule: str, base: float, done: float, settings: Any) -> float:
        """The learning rate of all parameters, for their `base`.

        The share `done` of the training lies behind.
        """
        return learning_rate(schedule, base, done)

    def targets(self, settings: Any, sites: Iterable[str], epoch: int) -> dict[str, float]:
        """The rate that the gate at each of `sites` aims at when `epoch` (from 0) begins."""
        raise NotImplementedError

    def follow(
        self, settings: Any, targets: Mapping[str, float], rates: Mapping[str, float], count: int
    ) -> dict[str, float]:
        """The targets after the epoch's batch number `count` (from 1).

        In it the gates had `rates`. The targets are as they were, unless a method says otherwise.
        """
        return dict(targets)

    def loss(
        self, decisions: Mapping[str, Tensor], settings: Any, targets: Mapping[str, float]
    ) -> Tensor:
        """The weighted loss of the gates' decisions (site -> z (N, units)) with these targets.

        A scalar.
        """
        raise NotImplementedError

    def tidy(self, network: Network) -> None:
        """Let go of what the gates that a prune has left no longer need, in place."""

    def decided(self, network: Network, site: str, threshold: float | None) -> list[bool] | None:
        """For each unit of a site, whether it always runs; None where that depends on the data."""
        return self.always_runs(network.site_gates[site], threshold)

    def penalty(self, gates: Iterable[Decider], settings: Any) -> Tensor | float:
        """What training adds to the loss for the gates' own parameters.

        Nothing, unless a method says otherwise.
        """
        return 0.0

    def always_runs(self, gate: Decider, threshold: float | None) -> list[bool] | None:
        """For each unit of a data-independent gate, whether P(on) > threshold (none: its own).

        None where it depends on the data.
        """
        if gate.data_dependent or not isinstance(gate, Gate):
            return None
        limit = gate.threshold if threshold is None else torch.full_like(gate.threshold, threshold)
        with torch.no_grad():
            odds = gate.log_odds(torch.empty(1, device=gate.threshold.device))[0]
        return [bool(flag) for flag in odds > torch.logit(limit.clamp(0, 1))]


class ExitMethod(Method):
    """A way of leaving early: exits at the ends of stages, or where the setting `after` says.

    Subclasses `insert` them.
    """

    needs: ClassVar[str] = (
        "stages that end with a change of resolution (or say where with --set after=SITE,SITE)"
    )

    requires: ClassVar[frozenset[str]] = frozenset({EXIT})
    default_kinds: ClassVar[tuple[str, ...]] = ("exit",)

    def ready(self, network: Network, settings: Any) -> None:
        if settings.after is not None:
            names = [name.strip() for name in settings.after.split(",")]
            for kind in self.default_kinds:
                registry.get(kind).place(network.traced, names)
            network.recount()


def apply_decisions(
    network: Network,
    decisions: Decisions,
    *,
    wide: Sequence[str] | None = None,
    round_to: int = 1,
) -> list[str]:
    """Decide sites for good, in place, and let the methods tidy up behind that.

    Args:
        network: The network.
        decisions: What is decided, by site; sites that are left out stay as they are.
        wide: The sites whose readers get zeros in the place of units that are gone, as a recipe
            records them; none: worked out.
        round_to: See gatecli.network.surgery.decide.

    Returns:
        The wide sites.
    """
    if wide is None:
        wide = surgery.decide(network, decisions, round_to)
    else:
        surgery.settle(network, decisions, wide, round_to)
    for name in set(network.gated_by.values()):
        get(name).tidy(network)
    network.recount()
    return list(wide)


def recorded_decisions(
    network: Network, plan: Mapping[str, list[int]], dynamic: Mapping[str, list[int]]
) -> dict[str, SiteDecision]:
    """The decisions that a prune step records: kept units by site, and those still dynamic."""
    decisions = {}
    for site, kept in plan.items():
        units = network.sites[site].units
        decisions[site] = SiteDecision.of(units, kept, dynamic.get(site, ()))
    return decisions


_REGISTRY: dict[str, Method] = {}


def register(method: Method) -> None:
    """Make a method known by its name. Raises ValueError where the name is taken."""
    if method.name in _REGISTRY:
        raise ValueError(f"method `{method.name}` is registered twice")
    _REGISTRY[method.name] = method


def forget(name: str) -> None:
    """Take a method out of the registry, as tests do that register one of their own."""
    del _REGISTRY[name]


def names() -> list[str]:
    """The names of all methods, sorted."""
    return sorted(_REGISTRY)


def get(name: str) -> Method:
    """The method of that name. Raises SettingError, which lists the names, where there is none."""
    if name not in _REGISTRY:
        raise SettingError(f"expected --method to be one of {', '.join(names())}, but got `{name}`")
    return _REGISTRY[name]


def parse_settings(method: Method, given: Mapping[str, Any], base: Any = None) -> Any:
    """Check settings against the method's dataclass and return an instance of it.

    Args:
        method: whose settings these are.
        given: the settings by name; values may be the command line's strings.
        base: settings to start from; structural ones may then not change.

    Raises:
        SettingError: It names the setting, what was expected and what came.
    """
    known = {f.name: f for f in fields(method.settings)}
    start = method.settings() if base is None else base
    values = {}
    for name, value in given.items():
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise SettingError(
                f"`{name}` is no setting of {method.name} (it has {', '.join(known)}){hint}"
            )
        values[name] = checked(known[name], value)
        if (
            base is not None
            and known[name].metadata["structural"]
            and values[name] != getattr(base, name)
        ):
            raise SettingError(
                f"`{name}` shapes the gates and cannot change after attach: attach again with --set"
                f" {name}={value}"
            )
    return replace(start, **values)


def recorded_settings(method: Method, stored: Mapping[str, Any]) -> Any:
    """The settings that a checkpoint's recipe holds.

    Those that its version did not know as it meant them. Raises SettingError.
    """
    later = [
        each
        for each in fields(method.settings)
        if each.metadata["before"] and each.name not in stored
    ]
    return parse_settings(
        method, {**stored, **{each.name: each.metadata["before"](stored) for each in later}}
    )
