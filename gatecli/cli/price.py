"""gatecli price: what gated units take in a runtime; and the options of who uses such a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from gatecli.cli.options import Checkpoint, Output, reads_checkpoints
from gatecli.cli.precision import say_if_slow
from gatecli.cli.progress import Reporter
from gatecli.cli.render import table as print_table
from gatecli.cli.session import Session
from gatecli.cli.workspace import output_of
from gatecli.errors import SettingError
from gatecli.runtimes import registry

if TYPE_CHECKING:
    from gatecli.network import Network
    from gatecli.stages.price import How
    from gatecli.traced.latency import LatencyTable

__all__ = ["Where", "how_of", "price", "priced", "say_table", "table_facts"]

REPEATS = 30
FOOT = (
    "ms of single images, against all of the site's units running without a gate; of the fastest"
    " calls"
)


@dataclass(frozen=True, kw_only=True)
class Where:
    """The options that say where milliseconds are measured."""

    runtime: Annotated[
        Optional[str],
        typer.Option(
            help=f"Where milliseconds are measured: {', '.join(registry.names())}; none: native, or"
            " where the checkpoint's table was.",
            show_default=False,
        ),
    ] = None
    precision: Annotated[
        Optional[str], typer.Option(help="fp32 or bf16, there.", show_default=False)
    ] = None
    any_machine: Annotated[
        bool,
        typer.Option(
            "--any-machine",
            help="Take the checkpoint's table of milliseconds wherever it was measured.",
        ),
    ] = False

    def check_used(self, *, used: bool, needs: str) -> None:
        """Refuse them where no milliseconds are asked for.

        Raises:
            SettingError: `needs` says what they belong to.
        """
        if not used and (self.runtime or self.precision or self.any_machine):
            raise SettingError(
                f"--runtime, --precision and --any-machine are for milliseconds: expected {needs}"
            )


def how_of(session: Session, where: Where, repeats: int = REPEATS) -> How:
    """Where to measure, made sure of, with a note if this machine is slow at it."""
    from gatecli.stages.price import How

    how = How(
        runtime=where.runtime or "native", precision=where.precision or "fp32", repeats=repeats
    )
    how.check()
    say_if_slow(session, how.precision)
    return how


@reads_checkpoints
def price(
    session: Session,
    *,
    checkpoint: Checkpoint = None,
    runtime: Annotated[str, typer.Option(help=f"One of {', '.join(registry.names())}.")] = "native",
    precision: Annotated[str, typer.Option(help="fp32 or bf16, while it is timed.")] = "fp32",
    repeats: Annotated[int, typer.Option(help="Timed calls of each variant.")] = REPEATS,
    output: Output = Output(),
) -> dict[str, Any]:
    """Measure the milliseconds that each gated unit takes in a runtime, and keep the table.

    finetune and calibrate --max-ms go by it. Attach and prune make another network, which has none.
    """
    from gatecli.checkpoint import write
    from gatecli.stages import price as pricing

    where = Where(runtime=runtime, precision=precision)
    how = how_of(session, where, repeats)
    path = session.checkpoint(checkpoint)
    target = output_of(path, "priced", output)
    network = session.open_gated(path, "time")
    result, table = pricing.price(network, how, progress=Reporter(session))
    write(result, target)
    if not session.json_:
        _print(session, table)
    say_table(session, table)
    _say_grains(session, network, table)
    session.written(target)
    return {
        "checkpoint": str(path),
        "out": str(target),
        "arch": network.recipe.source.arch,
        "params": network.params,
        "macs_dense": network.macs_dense,
        **table_facts(table),
    }


def priced(session: Session, network: Network, where: Where) -> tuple[Network, LatencyTable]:
    """The network with its table of milliseconds, measured now where it has none."""
    from gatecli.stages.price import known_table
    from gatecli.stages.price import price as measure

    table = known_table(
        network,
        runtime=where.runtime,
        precision=where.precision,
        any_machine=where.any_machine,
    )
    if table is None:
        network, table = measure(network, how_of(session, where), progress=Reporter(session))
    say_table(session, table)
    return network, table


def say_table(session: Session, table: LatencyTable) -> None:
    """Say where a table holds, and how far it is from the clock."""
    off = 100 * (table.estimated_ms / table.measured_ms - 1) if table.measured_ms else 0.0
    off = round(off, 1) + 0.0  # never -0
    session.say(
        f"milliseconds in {table.where}: {table.all_on_ms:.4g} with all units running and none"
        f" gated; with every second site closed or halved {table.estimated_ms:.4g} by the table,"
        f" {table.measured_ms:.4g} measured ({off:+.1f} %)"
    )


def table_facts(table: LatencyTable) -> dict[str, Any]:
    """The table as JSON has it."""
    facts = table.facts()
    facts["error"] = table.estimated_ms / table.measured_ms - 1 if table.measured_ms else None
    return facts


def _say_grains(session: Session, network: Network, table: LatencyTable) -> None:
    """Say in which multiples calibrate will keep units."""
    found = {(network.sites[site].kind, times.grain) for site, times in table.sites.items()}
    for kind, grain in sorted(found):
        if grain > 1:
            session.say(
                f"{table.runtime} is quicker with multiples of {grain} units of kind {kind}:"
                " calibrate --max-ms keeps to them"
            )


def _print(session: Session, table: LatencyTable) -> None:
    rows = []
    for name, times in table.sites.items():
        gate = f"{times.dynamic[-1][1]:.3g}" if times.dynamic else ""
        closed = f"{times.dynamic[0][1]:.3g}" if times.dynamic else ""
        removed = f"{times.static[0][1]:.3g}" if times.static[0][0] == 0 else ""
        rows.append((name, removed, closed, gate))
    columns = ("<site", "removed", "closed by its gate", "gated, running")
    print_table(session, "milliseconds by site", columns, rows, FOOT)
