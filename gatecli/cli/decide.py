"""gatecli prune --decide: by rates alone, or by what a runtime takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from gatecli.cli.price import Where, how_of
from gatecli.cli.progress import Reporter
from gatecli.cli.render import percent
from gatecli.cli.session import Session
from gatecli.errors import SettingError
from gatecli.runtimes import registry

if TYPE_CHECKING:
    from torch import Tensor

    from gatecli.network import Network
    from gatecli.network.costs import Rates
    from gatecli.stages.predict import Scores
    from gatecli.stages.prune import How
    from gatecli.stages.prune_measured import DecidedBy

__all__ = ["Asked", "Deciding", "facts", "say_measured"]

WAYS = ("rate", "measured")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to prune by, see gatecli.stages.prune_measured."""

    how: How
    rates: Rates | None
    round_to: int
    images: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Deciding:
    """The options that say what decides about what the rates leave open."""

    decide: Annotated[
        str,
        typer.Option(
            help=(
                "rate, or measured: what rates leave open stays dynamic only where the runtime is"
                " faster so, and is else decided by rate > --static (then .5)."
            )
        ),
    ] = "rate"
    runtime: Annotated[
        Optional[str],
        typer.Option(
            help=f"With --decide measured: {', '.join(registry.names())}; none: native.",
            show_default=False,
        ),
    ] = None
    precision: Annotated[
        Optional[str],
        typer.Option(help="With --decide measured: fp32 or bf16, there.", show_default=False),
    ] = None

    def check(self) -> None:
        """Make sure that they go together.

        Raises:
            SettingError: They do not.
        """
        if self.decide not in WAYS:
            raise SettingError(
                f"expected --decide to be one of {', '.join(WAYS)}, but got `{self.decide}`"
            )
        if self.decide == "rate" and (self.runtime or self.precision):
            raise SettingError(
                "--runtime and --precision say where --decide measured measures: expected it with"
                " them"
            )

    def measured(self, session: Session, network: Network, asked: Asked) -> DecidedBy:
        """Prune by what the runtime takes."""
        from gatecli.stages.prune_measured import prune_measured

        where = Where(runtime=self.runtime, precision=self.precision)
        return prune_measured(
            network,
            asked.how,
            how_of(session, where),
            rates=asked.rates,
            round_to=asked.round_to,
            images=asked.images,
            progress=Reporter(session),
        )


def say_measured(
    session: Session, measured: DecidedBy, before: Scores | None, after: Scores | None
) -> None:
    """Say what was decided, what each way takes, and what it costs in accuracy."""
    for site, reason in measured.decided.items():
        session.say(f"{site}: {reason}")
    if measured.ms:
        ways = ", ".join(f"{ms:.4g} ms {name}" for name, ms in measured.ms.items())
        session.say(f"measured: {ways}; taken: {measured.taken}")
    if before is not None and after is not None:
        session.say(
            f"val top-1 {percent(before.top1)} before, {percent(after.top1)} after"
            f" ({after.top1 - before.top1:+.2f})"
        )


def facts(measured: DecidedBy | None, before: Scores | None) -> dict[str, Any]:
    """What was decided as JSON has it."""
    if measured is None:
        return {"decided": {}}
    return {
        "decided": measured.decided,
        "taken": measured.taken,
        "ms": measured.ms,
        "top1_before": None if before is None else before.top1,
    }
