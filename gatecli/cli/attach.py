"""The command `gatecli attach`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from gatecli.cli.images import show_images
from gatecli.cli.render import gmacs, millions
from gatecli.cli.session import Checkpoint, Force, Out, Session, Set, parse_pairs, reads_checkpoints
from gatecli.cli.workspace import default_out


@reads_checkpoints
def attach(
    session: Session,
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
    out: Out = None,
    force: Force = False,
) -> dict[str, Any]:
    """Put a method's gates into a checkpoint.

    Predictions stay as they are, unless the method says otherwise.
    """
    from gatecli import methods
    from gatecli.checkpoint import check_output, write
    from gatecli.errors import SettingError
    from gatecli.kinds import registry
    from gatecli.network.costs import expected_macs, known_rates
    from gatecli.stages import attach as attaching

    if not method:
        raise SettingError(f"expected --method NAME, one of {', '.join(methods.names())}")
    settings: dict[str, Any] = dict(parse_pairs(set_))
    methods.parse_settings(
        methods.get(method), settings
    )  # before any reading: a slip costs no time
    for name in named(kind):
        registry.get(name)
    path = session.checkpoint(checkpoint)
    target = out or default_out(path, method)
    check_output(target, force, [path])
    network = session.open(path)
    show_images(session, network.input)
    brought = None if gater is None else session.open_other(gater)
    result = attaching.attach(
        network,
        method,
        include=include or (),
        exclude=exclude or (),
        kinds=named(kind),
        gater_network=brought,
        **settings,
    )
    write(result.network, target)
    session.say(
        f"{network.recipe.source.arch}: {result.gates} gates of {method}, logits changed by"
        f" {result.max_logit_change:.1e} of the largest; {millions(result.params)} parameters,"
        f" {gmacs(result.network.macs_dense)} GMACs with all gates open"
        f" ({gmacs(network.macs_dense)} before)"
    )
    session.written(target)
    session.say("next: gatecli finetune --data ...")
    return {
        "checkpoint": str(path),
        "out": str(target),
        "arch": network.recipe.source.arch,
        "method": method,
        "gates": result.gates,
        "units": result.units,
        "kinds": result.kinds,
        "params": result.params,
        "macs_dense": result.network.macs_dense,
        "macs_expected": expected_macs(result.network, known_rates(result.network)),
        "max_logit_change": result.max_logit_change,
    }


def named(options: Sequence[str] | None) -> list[str]:
    """What an option names that may be repeated, and take several with commas between."""
    names: list[str] = []
    for option in options or ():
        names += [name.strip() for name in option.split(",") if name.strip()]
    return names
