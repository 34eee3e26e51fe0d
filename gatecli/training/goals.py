"""What a training aims at: a target rate, or a price from which the target rate follows.

Prices are in accuracy, MACs or milliseconds. A goal gives the gates' targets for each epoch, says
which epoch's state is the best, and keeps what it has learnt in plain numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gatecli.errors import SettingError
from gatecli.methods.losses import mean_target
from gatecli.network import Network
from gatecli.network.price import Macs, Milliseconds
from gatecli.network.price import Price as Cost
from gatecli.stages.predict import Scores
from gatecli.stages.price import known_table
from gatecli.training.options import TrainOptions
from gatecli.training.trained import Trained
from gatecli.training.weights import PLAIN

__all__ = ["NoRate", "Price", "Row", "TargetRate", "goal_of"]

RATE_SLACK = 0.02  # an epoch may be the best if its achieved rate is at most the target plus this
MUCH = 5.0  # points of val top-1 that are worth a word
SLACK_TEXT = f"{RATE_SLACK:.2f}".removeprefix("0")
Row = Mapping[str, Any]  # an epoch's figures: val_top1, achieved_rate, macs_expected, target_rate


class TargetRate:
    """The rates that the methods' settings ask for; the first method's is the one to name."""

    def __init__(self, network: Network, trained: Sequence[Trained], options: TrainOptions) -> None:
        self.network = network
        self.trained = trained
        self.options = options
        self.units: dict[str, int] = {}
        for each in trained:
            for site in each.sites(network):
                self.units[site] = network.site_gates[site].units
        self.aiming = [each for each in trained if each.objective.traits.aims]
        self.state: dict[str, float] = {}

    def begin(self, baseline: float) -> None:
        """Take notice of the training's beginning; `baseline`: val top-1 with all gates open."""

    def figures(self, scores: Scores) -> dict[str, float]:
        """What it looks at in an epoch besides what every goal does."""
        return {}

    def targets(self, epoch: int) -> dict[str, float]:
        """The rate that each gate aims at when `epoch` (from 0) begins."""
        targets: dict[str, float] = {}
        for each in self.trained:
            sites = each.sites(self.network)
            targets.update(each.objective.targets(each.settings, sites, epoch))
        return targets

    def mean(self, targets: Mapping[str, float], of: Trained | None = None) -> float | None:
        """The mean target of one method's units, the first's if none is named.

        None where it aims at none.
        """
        own = (of or self.trained[0]).own(self.network, targets)
        if not own:
            return None
        return mean_target(own, {site: self.units[site] for site in own})

    def asked(self, of: Trained | None = None) -> float | None:
        """The mean rate to be reached at the end."""
        return self.mean(self.targets(self.options.epochs - 1), of)

    def reported(self, row: Row) -> float | None:
        """The target rate to name beside what was achieved: that of the end."""
        return self.asked()

    def meets(self, row: Row) -> bool:
        """Whether a state with these figures is what was asked for."""
        return all(self._met(each, row["achieved"][each.name]) for each in self.trained)

    def _met(self, each: Trained, rate: float) -> bool:
        target = self.asked(each)
        if target is None:
            return True
        if each.objective.traits.at_least:
            return rate >= target - RATE_SLACK
        return rate <= target + RATE_SLACK

    def rank(self, row: Row) -> tuple[float, ...] | None:
        """What the best epoch has the highest of; None where an epoch cannot be the best."""
        if self.options.keep == "last":
            return None
        return (row["val_top1"],) if self.meets(row) else None

    def learn(self, row: Row) -> None:
        """Take notice of an epoch that has ended."""

    def chosen(self, best: Row | None) -> str:
        """Which epoch was taken, and why."""
        if self.options.keep == "last":
            return f"last: epoch {self.options.epochs}, as asked"
        if best is None:
            bounds = self._bounds("came up to", "came down to")
            return f"last: epoch {self.options.epochs}, as no epoch's rate {bounds}"
        bounds = self._bounds("is at least", "is at most")
        return f"best: epoch {best['epoch']}, the highest val top-1 among those whose rate {bounds}"

    def passed_over(self, best: Row | None, last: Row) -> str:
        """What to say where the last epoch is much better: early ones may have learnt nothing."""
        if best is None or last["val_top1"] < best["val_top1"] + MUCH:
            return ""
        return (
            f"; the last epoch has {last['val_top1']:.2f} % on val at rate"
            f" {last['achieved_rate']:.2f}: --keep last takes it, and with a higher --set"
            " loss_weight it comes nearer to the target"
        )

    def _bounds(self, up: str, down: str) -> str:
        return " and ".join(self._bound(each, up, down) for each in self.aiming)

    def _bound(self, each: Trained, above: str, below: str) -> str:
        of = "" if len(self.aiming) == 1 else f" ({each.name})"
        if each.objective.traits.at_least:
            return f"{above} {self.asked(each):.2f} - {SLACK_TEXT}{of}"
        return f"{below} {self.asked(each):.2f} + {SLACK_TEXT}{of}"


class NoRate(TargetRate):
    """For methods that aim at no rate: what a training comes to is where it ends."""

    def rank(self, row: Row) -> None:
        return None

    def chosen(self, best: Row | None) -> str:
        return (
            f"last: epoch {self.options.epochs}, as {self.trained[0].name} aims at no rate"
            " that would say which epoch is the best"
        )


class BestAccuracy(TargetRate):
    """For weights alone, which change no rate."""

    def chosen(self, best: Row | None) -> str:
        if best is None:
            return super().chosen(best)  # --keep last
        return f"best: epoch {best['epoch']}, the highest val top-1"

    def passed_over(self, best: Row | None, last: Row) -> str:
        return ""


class Price(TargetRate):
    """At most `max_drop` points of val top-1 below the baseline, at most a budget.

    The budget is one of MACs (`max_gmacs`) or of milliseconds (`max_ms`).

    The target rate follows from what val says: it is lowered, from 1 on, as long as the accuracy
    holds; where it does not, the target goes up again by half of the step, which stays halved. With
    a budget alone it is lowered until the budget is met, and stays there.
    """

    def __init__(self, network: Network, trained: Sequence[Trained], options: TrainOptions) -> None:
        super().__init__(network, trained, options)
        traits = trained[0].objective.traits
        if len(trained) > 1 or traits.at_least or not traits.aims:
            raise SettingError(
                "--max-drop, --max-gmacs and --max-ms find the rate of layer gates alone, but"
                f" {', '.join(each.name for each in trained)} are trained"
            )
        self.cost = _cost(network, options)
        budget = options.max_gmacs if options.max_ms is None else options.max_ms
        self.limit = None if budget is None else budget * self.cost.scale
        self.fixed = self.cost.least(network, self.units)
        if self.limit is not None and self.limit < self.fixed:
            raise SettingError(
                f"{self.cost.option} {budget:g} is out of reach: with all {len(self.units)}"
                f" gated branches off, {self.cost.said(self.fixed)} are left"
            )
        # in half of the epochs it can come down to .2
        step = min(0.25, max(0.02, 1.6 / options.epochs))
        self.floor: float | None = None  # known when the training begins
        self.state = {"target": 1 - step, "step": step}

    def figures(self, scores: Scores) -> dict[str, float]:
        return {self.cost.key: self.cost.of(self.network, scores.rates, scores.busy)}

    def begin(self, baseline: float) -> None:
        self.floor = None if self.options.max_drop is None else baseline - self.options.max_drop

    def targets(self, epoch: int) -> dict[str, float]:
        return dict.fromkeys(self.units, self.state["target"])

    def asked(self, of: Trained | None = None) -> float:
        return self.state["target"]

    def reported(self, row: Row) -> float:
        """That of the epoch itself: the next ones' may be another."""
        return float(row["target_rate"])

    def meets(self, row: Row) -> bool:
        return self._accurate(row) and self._cheap(row)

    def _cheap(self, row: Row) -> bool:
        return self.limit is None or bool(row[self.cost.key] <= self.limit)

    def _accurate(self, row: Row) -> bool:
        return self.floor is None or bool(row["val_top1"] >= self.floor)

    def passed_over(self, best: Row | None, last: Row) -> str:
        return ""  # the price says which epoch is the best

    def rank(self, row: Row) -> tuple[float, ...]:
        """Those that meet the price first, else the nearest to it.

        Of those that meet it the cheapest is best, or for a budget alone the most accurate.
        """
        accuracy = row["val_top1"]
        thrift = -row[self.cost.key]
        if self.meets(row):
            return (1, accuracy, thrift) if self.floor is None else (1, thrift, accuracy)
        return (0.5, thrift, accuracy) if self._accurate(row) else (0, accuracy, thrift)

    def learn(self, row: Row) -> None:
        target = self.state["target"]
        step = self.state["step"]
        if not self._accurate(row):
            self.state = {"target": min(1.0, target + step / 2), "step": step / 2}
        elif self.floor is not None or not self.meets(row):
            lower = min(target, row["achieved_rate"]) - step
            self.state["target"] = max(0.0, self._needed(row), lower)

    def _needed(self, row: Row) -> float:
        """The rate that would meet a budget alone, if cost went with rate as it does now.

        There is no need to go lower.
        """
        spent = row[self.cost.key] - self.fixed
        if self.limit is None or self.floor is not None or spent <= 0:
            return 0.0
        share: float = (self.limit - self.fixed) / spent
        rate: float = row["achieved_rate"]
        return 0.98 * rate * share

    def chosen(self, best: Row | None) -> str:
        assert best is not None  # every epoch has a rank
        limits = []
        if self.options.max_drop is not None:
            limits.append(f"at most {self.options.max_drop:g} points below the baseline")
        if self.limit is not None:
            limits.append(f"at most {self.limit / self.cost.scale:g} {self.cost.unit}")
        what = " and ".join(limits)
        if not self.meets(best):
            return f"nearest: epoch {best['epoch']}; no epoch was {what}"
        merit = "most accurate" if self.floor is None else "cheapest"
        return f"best: epoch {best['epoch']}, the {merit} that was {what}"


def _cost(network: Network, options: TrainOptions) -> Cost:
    """What is held down: MACs, or milliseconds where these are limited.

    Raises:
        SettingError: Both are limited, or there is no table that says milliseconds here.
    """
    if options.max_ms is None:
        return Macs()
    if options.max_gmacs is not None:
        raise SettingError("expected one of --max-gmacs and --max-ms, but got both")
    table = known_table(network, any_machine=options.any_machine)
    if table is None:
        raise SettingError(
            "--max-ms needs a latency table of this very network: measure one first (gatecli"
            " price CHECKPOINT --runtime NAME)"
        )
    return Milliseconds(table)


def goal_of(network: Network, trained: Sequence[Trained], options: TrainOptions) -> TargetRate:
    """What `options` aim at.

    Raises:
        SettingError: It is out of reach.
    """
    limits = (options.max_drop, options.max_gmacs, options.max_ms)
    if any(limit is not None for limit in limits):
        return Price(network, trained, options)
    if any(each.objective.traits.aims for each in trained):
        return TargetRate(network, trained, options)
    if trained[0].method is PLAIN:
        return BestAccuracy(network, trained, options)
    return NoRate(network, trained, options)
