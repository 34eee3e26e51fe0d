"""What decides about a site: it can be observed, forced, and told how to decide.

Two things decide: a `Gate` (gatecli.gates.gate), which runs units by P(on), and an `Exit`
(gatecli.gates.exit), which lets samples leave by a score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from gatecli.gates.cache import Forgetful

__all__ = ["STRATEGIES", "Decider", "Observer"]

STRATEGIES = ("threshold", "stochastic", "always-on")
Observer = Callable[["Decider", Tensor, "Tensor | None"], None]


class Decider(Forgetful):
    """Base of all that decides about a site's units.

    Attributes:
        site: The name of the site.
        units: How many units it decides.
        threshold: Buffer (units,), calibrated or not; `limit` says what it means.
        strategy: How evaluation decides, one of STRATEGIES.
        observer: Called with (decider, decisions, scores) at every forward, see
            gatecli.gates.observe.
        forced: Decisions (units,) or (N, units) in place of its own, see
            gatecli.gates.observe.force.
        rows: Which samples of the batch are here, where others have left by an exit; None: all.
        data_dependent: Whether decisions depend on the input.
        fresh_rate: The rate as attached.
        undecayed: Names of its parameters that weight decay leaves alone.
        by_unit: Names of its parameters of which each unit has entries of its own.
        draws: Whether there is anything for the strategy `stochastic` to draw.
        in_float32: Whether it computes in float32 in a network of half precision: with a few
            numbers an image that is quicker on CPUs, and as it was calibrated. It takes any
            precision then.
    """

    threshold: Tensor
    data_dependent = True
    fresh_rate = 1.0
    undecayed: tuple[str, ...] = ()
    by_unit: tuple[str, ...] = ()
    draws = True
    in_float32 = False

    def __init__(self, site: str, units: int, threshold: float = 0.5) -> None:
        super().__init__()
        self.site, self.units = site, units
        self.register_buffer("threshold", torch.full((units,), threshold))
        self.strategy = "threshold"
        self.observer: Observer | None = None
        self.forced: Tensor | None = None
        self.rows: Tensor | None = None

    def limit(self) -> Tensor:
        """The scores, as observers are told them, from which on units are on: (units,)."""
        raise NotImplementedError

    def keep(self, units: Sequence[int]) -> None:
        """Decide for these units alone."""
        self.units = len(units)
        rows = torch.tensor(units, device=self.threshold.device)
        self.threshold = self.threshold.index_select(0, rows)

    def drop_inputs(self, kept: Tensor, gone: Tensor, constants: Tensor) -> None:
        """Read the channels `kept` of the input alone.

        Those `gone` have always had the values `constants`.
        """

    def own_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The gate and what is in it, by path, but for other gates.

        Those of sites within this one, as a convolution's in a block, have names within its name.
        """
        others: list[str] = []
        for path, module in self.named_modules():
            if any(path.startswith(other) for other in others):
                continue
            if path and isinstance(module, Decider):
                others.append(f"{path}.")
            else:
                yield path, module

    def own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters in `own_modules`, by name."""
        for path, module in self.own_modules():
            yield from module.named_parameters(path, recurse=False)

    def report(self, z: Tensor, scores: Tensor | None) -> None:
        """Tell the observer, if there is one, of decisions and scores, both (N, units)."""
        if self.observer is not None:
            self.observer(self, z, scores)

    def obeyed(self, x: Tensor) -> Tensor:
        """The forced decisions for the samples of x: (N, units)."""
        if self.forced is None:
            raise RuntimeError(f"no decisions are forced on `{self.site}`")
        forced = self.forced
        is_for_each = forced.ndim == 2 and len(forced) > 1
        if self.rows is not None and is_for_each:
            forced = forced[self.rows.to(forced.device)]
        return forced.to(x.device, x.dtype).expand(x.shape[0], self.units)
