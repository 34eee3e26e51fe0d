"""The command `gatecli attach`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from gatecli.cli.images import show_images
from gatecli.cli.options import Checkpoint, Output, Set, reads_checkpoints
from gatecli.cli.parsing import parse_pairs
from gatecli.cli.render import gmacs, millions
from gatecli.cli.session import Session
from gatecli.cli.workspace import output_of
from gatecli.errors import SettingError

if TYPE_CHECKING:
    from gatecli.network import Network
    from gatecli.stages.attach import Attached

__all__ = ["attach"]


@reads_checkpoints
def attach(
    session: Session,
    *,
    checkpoint: Checkpoint = None,
    method: Annotated[str, typer.Option(help="How to gate; see gatecli methods.")] = "",
    set_: Set = None,
    include: Annotated[
        Optional[list[str]],
        typer.Option(help="Pattern of sites to gate, as 'layer3.*'; repeatable."),
    ] = None,
    exclude: Annotated[
        Optional[list[str]], typer.Option(help="Pattern of sites to leave alone; repeatable.")
    ] = None,
    kind: Annotated[
        Optional[list[str]],
        typer.Option(
            help=(
                "Kinds of sites to gate, with commas between, as filter; none: those that the"
                " method's paper gates. See gatecli methods and gatecli inspect --kind all."
            )
        ),
    ] = None,
    gater: Annotated[
        Optional[Path],
        typer.Option(
            help=(
                "gaternet: checkpoint of a classifier that the gater starts from; none: --set"
                " gater=NAME, untrained."
            ),
            show_default=False,
        ),
    ] = None,
    output: Output = Output(),
) -> dict[str, Any]:
    """Put a method's gates into a checkpoint.

    Predictions stay as they are, unless the method says otherwise.
    """
    from gatecli.checkpoint import write
    from gatecli.stages import attach as attaching

    settings: dict[str, Any] = dict(parse_pairs(set_))
    kinds = _named(kind)
    _check(method, settings, kinds)
    path = session.checkpoint(checkpoint)
    target = output_of(path, method, output)
    network = session.open(path)
    show_images(session, network.input)
    brought = None if gater is None else session.open_other(gater)
    result = attaching.attach(
        network,
        method,
        include=include or (),
        exclude=exclude or (),
        kinds=kinds,
        gater_network=brought,
        **settings,
    )
    write(result.network, target)
    _report(session, result, network)
    session.written(target)
    session.say("next: gatecli finetune --data ...")
    return _json(result, path, target)


def _check(method: str, settings: dict[str, Any], kinds: Sequence[str]) -> None:
    """Check what is asked for before any reading: a slip costs no time."""
    from gatecli import methods
    from gatecli.kinds import registry

    if not method:
        raise SettingError(f"expected --method NAME, one of {', '.join(methods.names())}")
    methods.parse_settings(methods.get(method), settings)
    for kind in kinds:
        registry.get(kind)


def _report(session: Session, result: Attached, before: Network) -> None:
    session.say(
        f"{before.recipe.source.arch}: {result.gates} gates of {result.method}, logits changed by"
        f" {result.max_logit_change:.1e} of the largest; {millions(result.params)} parameters,"
        f" {gmacs(result.network.macs_dense)} GMACs with all gates open"
        f" ({gmacs(before.macs_dense)} before)"
    )


def _json(result: Attached, path: Path, target: Path) -> dict[str, Any]:
    from gatecli.network.costs import expected_macs, known_rates

    return {
        "checkpoint": str(path),
        "out": str(target),
        "arch": result.network.recipe.source.arch,
        "method": result.method,
        "gates": result.gates,
        "units": result.units,
        "kinds": result.kinds,
        "params": result.params,
        "macs_dense": result.network.macs_dense,
        "macs_expected": expected_macs(result.network, known_rates(result.network)),
        "max_logit_change": result.max_logit_change,
    }


def _named(options: Sequence[str] | None) -> list[str]:
    """What an option names that may be repeated, and take several with commas between."""
    names: list[str] = []
    for option in options or ():
        names += [name.strip() for name in option.split(",") if name.strip()]
    return names
