"""The share that gates let run of all the cost that they can save: a rate, with a price.

    rate = 1 - mean over images of saved(z) / the most that can be saved

MACs are saved by the formula of gatecli.network.costs. Milliseconds are a table's: what each site
takes less with a share of its units than with all, of what those that save more have left of its
nodes,

    saved(z) = sum over sites s of (ms_s(1) - ms_s(share that runs)) sum over nodes n of w_sn left_n

where left_n is the product of 1 - share closed over these others, and w_sn is the node's share of
the site's MACs. So what lies in something closed, and what two sites save of one node, counts once.
Where no two sites save of one node, and milliseconds go with units, both are sum c_i (1 - z_i), and
the rate sum c_i z_i / sum c_i.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from gatecli.errors import SettingError
from gatecli.network.costs import Part, Rates, closed_at, parts_of, total
from gatecli.network.network import Network
from gatecli.network.price import overlaps, times_of
from gatecli.traced.latency import Curve, LatencyTable, cheapest, curve_at
from gatecli.traced.site import Saving

__all__ = ["PricedMacs", "PricedMilliseconds", "PricedRate"]

Closed = Callable[[str, Saving], Any]


class PricedRate(ABC):
    """The share of the cost that the gates at some sites can save that they let run.

    Args:
        network: The network.
        sites: Those of the gates; all others run.

    Raises:
        SettingError: They can save nothing.
    """

    def __init__(self, network: Network, sites: Sequence[str]) -> None:
        self.sites = frozenset(sites)
        self._savable = float(self._saved(self._most_closed))
        if self._savable <= 0:
            raise SettingError(
                f"expected gates that save {self.unit}, but these {len(self.sites)} save none:"
                " train with price=count"
            )

    unit: str

    def _most_closed(self, site: str, saving: Saving) -> float:
        """How much of what a site may save is closed where most is saved."""
        return float(site in self.sites)

    @abstractmethod
    def _saved(self, closed: Closed) -> Any:
        """What is saved, numbers or tensors (N,), as `closed` gives them."""

    def of_decisions(self, decisions: Mapping[str, Tensor]) -> Tensor:
        """A scalar with a gradient, of z (N, units) by site."""
        known: dict[tuple[str, bool], Tensor] = {}

        def closed(site: str, saving: Saving) -> Any:
            if site not in decisions or site not in self.sites:
                return 0.0
            key = (site, saving.per_unit)
            if key not in known:
                known[key] = _closed(decisions[site].float(), saving)
            return known[key]

        saved = torch.as_tensor(self._saved(closed))
        return 1 - saved.mean() / self._savable

    def effects(self, units: Mapping[str, int]) -> dict[str, Tensor]:
        """What each unit's decision adds to the rate while all others run, (units,) by site."""
        ones = {site: torch.ones(1, count, requires_grad=True) for site, count in units.items()}
        of_all = torch.autograd.grad(
            self.of_decisions(ones), list(ones.values()), allow_unused=True
        )
        found = {}
        for (site, z), effect in zip(ones.items(), of_all, strict=True):
            found[site] = torch.zeros_like(z[0]) if effect is None else effect[0]
        return found

    def of_rates(
        self, network: Network, rates: Rates, busy: Mapping[str, float] | None = None
    ) -> float:
        """The same from rates, as `expected_macs` takes them."""
        own = {site: rates[site] for site in rates if site in self.sites}

        def closed(site: str, saving: Saving) -> float:
            return closed_at(network, own, busy or {}, (site, saving))

        return 1 - float(self._saved(closed)) / self._savable


def _closed(z: Tensor, saving: Saving) -> Tensor:
    """How much of what a site may save its decisions do: (N, units) -> (N,).

    A product where units save only together: its gradient is what closing one more would save.
    """
    return 1 - z.mean(1) if saving.per_unit else (1 - z).prod(1)


class PricedMacs(PricedRate):
    """Of MACs."""

    unit = "MACs"

    def __init__(self, network: Network, sites: Sequence[str]) -> None:
        self._parts: list[Part] = []
        for part in parts_of(network.traced):
            if any(site in sites for site, _ in part.savings):
                self._parts.append(part)
        super().__init__(network, sites)

    def _saved(self, closed: Closed) -> Any:
        return sum(part.macs for part in self._parts) - total(self._parts, closed)


class PricedMilliseconds(PricedRate):
    """Of milliseconds, by a table.

    Static ones where prune decides for good, dynamic ones where gates look at images: what the
    trained network is to run. Where a part of a site takes more than all of it, closing that part
    costs: what gatecli.network.price.Milliseconds says, with a gradient.
    """

    unit = "milliseconds"

    def __init__(self, network: Network, sites: Sequence[str], table: LatencyTable) -> None:
        own = [site for site in table.sites if site in sites]
        self._left = overlaps(network.traced, own)
        self._first = {site: network.sites[site].savings[0] for site in self._left}
        self._curves = {site: times_of(table.sites[site]) for site in self._left}
        super().__init__(network, sites)

    def effects(self, units: Mapping[str, int]) -> dict[str, Tensor]:
        """As if milliseconds went with units: where a curve begins says little of where it ends."""
        straight = copy(self)
        straight._curves = {}
        for site, curve in self._curves.items():
            least = curve_at(curve, cheapest(curve))
            straight._curves[site] = [[0.0, least], [1.0, curve_at(curve, 1.0)]]
        return PricedRate.effects(straight, units)

    def _most_closed(self, site: str, saving: Saving) -> float:
        return 1 - cheapest(self._curves[site]) if site in self._curves else 0.0

    def _saved(self, closed: Closed) -> Any:
        result: Any = 0.0
        for site, left in self._left.items():
            curve = self._curves[site]
            running = 1 - torch.as_tensor(closed(site, self._first[site]))
            here = curve_at(curve, 1.0) - _at(curve, running)
            result = result + here * total(left, closed)
        return result


def _at(curve: Curve, share: Tensor) -> Tensor:
    """Milliseconds at shares (N,) of running units, as `curve_at` says, with a gradient.

    At a point it is that of closing more.
    """
    points: Tensor = torch.tensor(curve, dtype=share.dtype, device=share.device)
    x, y = points[:, 0].contiguous(), points[:, 1]
    if len(curve) == 1:
        return y[0].expand_as(share)
    right = torch.searchsorted(x, share.detach()).clamp(1, len(curve) - 1)
    left = right - 1
    width = (x[right] - x[left]).clamp(min=1e-9)
    part = ((share - x[left]) / width).clamp(min=0.0)
    return y[left] + (y[right] - y[left]) * part
