"""Look at gates and overrule them.

What each one decided, for losses, calibration, pruning and profiling.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gatecli import together
from gatecli.errors import SettingError
from gatecli.gates.decider import STRATEGIES, Decider
from gatecli.gates.exit import Exit

__all__ = [
    "RateMeter",
    "Record",
    "at_threshold",
    "force",
    "gates_of",
    "in_evaluation",
    "observe",
    "record_answers",
    "record_gates",
    "strategy",
    "with_thresholds",
]


def gates_of(network: nn.Module) -> dict[str, Decider]:
    """The network's gates by site."""
    return {part.site: part for part in network.modules() if isinstance(part, Decider)}


@dataclass
class Record:
    """What the gates decided in the forwards since the last `clear`.

    Attributes:
        decisions: Site -> one tensor (N, units) a forward.
        odds: Site -> one tensor (N, units) a forward.
        answers: Site -> the last forward's logits (N, K), of exits, see `record_answers`.
        end: The last forward's logits (N, K) of the final classifier, if it was watched.
    """

    decisions: dict[str, list[Tensor]] = field(default_factory=dict)
    odds: dict[str, list[Tensor]] = field(default_factory=dict)
    answers: dict[str, Tensor] = field(default_factory=dict)
    end: Tensor | None = None

    def __call__(self, gate: Decider, z: Tensor, odds: Tensor | None) -> None:
        self.decisions.setdefault(gate.site, []).append(z)
        if odds is not None:
            self.odds.setdefault(gate.site, []).append(odds)

    def latest(self) -> dict[str, Tensor]:
        """The last forward's decisions: site -> (N, units)."""
        return {site: seen[-1] for site, seen in self.decisions.items()}

    def see_end(self, logits: Tensor) -> None:
        """Keep what the final classifier says, see gatecli.network.forms.watching_end."""
        self.end = logits

    def clear(self) -> None:
        """Drop what was kept."""
        self.end = None
        self.decisions.clear()
        self.odds.clear()
        self.answers.clear()


class RateMeter:
    """Sums of decisions.

    An observer that keeps no tensors per sample, for passes over whole data sets; `total` is for
    the caller to count.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.any: dict[str, Tensor] = {}
        self.total = 0  # samples, those that left by an exit included

    def __call__(self, gate: Decider, z: Tensor, odds: Tensor | None) -> None:
        z = z.detach()
        self._add(self.sums, gate.site, z.sum(0))
        if gate.units > 1:
            self._add(self.any, gate.site, z.amax(1).sum())

    def _add(self, totals: dict[str, Tensor], site: str, more: Tensor) -> None:
        totals[site] = totals[site] + more if site in totals else more

    def gather(self) -> None:
        """Count what the other processes have counted too."""
        self.total = sum(together.gathered(self.total))
        for totals in (self.sums, self.any):
            everyone = together.gathered({site: each.cpu() for site, each in totals.items()})
            totals.clear()
            for theirs in everyone:
                for site, more in theirs.items():
                    self._add(totals, site, more)

    def rates(self) -> dict[str, list[float]]:
        """Mean decision of each unit: site -> list of `units` rates."""
        return {site: (total / self.total).tolist() for site, total in self.sums.items()}

    def busy(self) -> dict[str, float]:
        """For sites of several units, the share of samples for which any of them ran."""
        return {site: (total / self.total).item() for site, total in self.any.items()}


@contextmanager
def observe(network: nn.Module, observer: Record | RateMeter) -> Iterator[None]:
    """Call `observer` at every decision inside the block; observers do not nest."""
    gates = gates_of(network).values()
    for gate in gates:
        gate.observer = observer
    try:
        yield
    finally:
        for gate in gates:
            gate.observer = None


@contextmanager
def record_gates(network: nn.Module) -> Iterator[Record]:
    """Collect every gate's decisions and log-odds inside the block."""
    record = Record()
    with observe(network, record):
        yield record


@contextmanager
def record_answers(network: nn.Module, record: Record) -> Iterator[None]:
    """Let `record` collect inside the block what each exit answers.

    In training an exit answers for all images, whoever leaves there.
    """

    def keep(exit_: nn.Module, _: Any, said: tuple[Tensor, Tensor]) -> None:
        assert isinstance(exit_, Exit)
        record.answers[exit_.site] = said[0]

    exits = [gate for gate in gates_of(network).values() if isinstance(gate, Exit)]
    hooks = [exit_.register_forward_hook(keep) for exit_ in exits]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def force(network: nn.Module, decisions: Mapping[str, Sequence[int] | Tensor]) -> Iterator[None]:
    """Fix the units' decisions of the named sites, whatever the gates say.

    Args: decisions: site -> `units` values 0 or 1 for all samples, or a tensor (N, units).
    Raises: SettingError where a site carries no gate, or the number of units or a value is wrong.
    """
    gates = gates_of(network)
    before = {site: gate.forced for site, gate in gates.items()}
    fixed = {site: _checked(gates, site, units) for site, units in decisions.items()}
    for site, units in fixed.items():
        gates[site].forced = units
    try:
        yield
    finally:
        for site, gate in gates.items():
            gate.forced = before[site]


def _checked(gates: Mapping[str, Decider], site: str, units: Sequence[int] | Tensor) -> Tensor:
    if site not in gates:
        raise SettingError(
            f"expected a gated site but got `{site}`; gated are: {', '.join(gates) or 'none'}"
        )
    try:
        # where the gate is, so that no call has to fetch them
        z = torch.as_tensor(units, dtype=torch.float32, device=gates[site].threshold.device)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        z = torch.full((), torch.nan)
    if (
        z.ndim not in (1, 2)
        or z.shape[-1] != gates[site].units
        or not bool(((z == 0) | (z == 1)).all())
    ):
        raise SettingError(
            f"expected {gates[site].units} decisions of 0 or 1 for site `{site}` but got {units}"
        )
    return z


@contextmanager
def strategy(network: nn.Module, name: str) -> Iterator[None]:
    """Let evaluation decide by `name`, one of STRATEGIES, inside the block."""
    if name not in STRATEGIES:
        raise SettingError(
            f"expected the strategy to be one of {', '.join(STRATEGIES)}, but got `{name}`"
        )
    gates = gates_of(network).values()
    _check_draws(name, gates)
    before = [gate.strategy for gate in gates]
    for gate in gates:
        gate.strategy = name
    try:
        yield
    finally:
        for gate, name_before in zip(gates, before, strict=True):
            gate.strategy = name_before


def _check_draws(name: str, gates: Iterable[Decider]) -> None:
    certain = [gate.site for gate in gates if not gate.draws]
    if name == "stochastic" and certain:
        raise SettingError(
            "expected the strategy to be threshold or always-on, as the gate of"
            f" `{certain[0]}` draws no decisions, but got one that draws them"
        )


@contextmanager
def in_evaluation(network: nn.Module) -> Iterator[None]:
    """Put the network into evaluation mode inside the block.

    Behind it, each of its parts is back in the mode that it was in.
    """
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def at_threshold(network: nn.Module, threshold: float | None) -> Iterator[None]:
    """Let every gate run its units where P(on) > `threshold` inside the block.

    None: each gate's own. Exits keep theirs, which are no probabilities.
    """
    gates = {site: gate for site, gate in gates_of(network).items() if not isinstance(gate, Exit)}
    given = (
        {}
        if threshold is None
        else {site: torch.full_like(gate.threshold, threshold) for site, gate in gates.items()}
    )
    with with_thresholds(network, given):
        yield


@contextmanager
def with_thresholds(network: nn.Module, thresholds: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the gates at these sites decide by these thresholds, each (units,), inside the block."""
    gates = gates_of(network)
    before = {site: gates[site].threshold for site in thresholds}
    for site, threshold in thresholds.items():
        gates[site].threshold = threshold
    try:
        yield
    finally:
        for site, own in before.items():
            gates[site].threshold = own
