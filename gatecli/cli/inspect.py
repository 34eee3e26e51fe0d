"""gatecli inspect"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import typer

from gatecli.cli.render import MACS_FOOT, gmacs, millions, table
from gatecli.cli.session import Checkpoint, Session, reads_checkpoints
from gatecli.cli.text import show
from gatecli.errors import SettingError

USUAL = ("block", "layer", "exit")
KINDS = (*USUAL, "branch", "filter", "conv")


@reads_checkpoints
def inspect(
    session: Session,
    checkpoint: Checkpoint = None,
    kind: Annotated[
        str,
        typer.Option(
            help=(
                "Sites to list: block, layer, exit, branch, filter, conv or all; none named: the"
                " first three, and what is gated."
            )
        ),
    ] = "",
) -> dict[str, Any]:
    """Say what a checkpoint is, and list the sites that can be gated."""
    from gatecli.costs import expected_macs, known_rates

    if kind not in ("", "all", *KINDS):
        raise SettingError(
            f"expected --kind to be one of {', '.join(KINDS)} or all, but got `{kind}`"
        )
    path = session.checkpoint(checkpoint)
    network = session.open(path)
    source, size = network.recipe.source, network.input.size
    sites = [
        {
            "name": site.name,
            "kind": site.kind,
            "units": site.units,
            "macs": site.macs,
            "method": network.methods.get(site.name),
        }
        for site in network.sites.values()
    ]
    if not session.json_:
        arguments = "".join(
            f" {name}={value}" for name, value in source.arch_args.items() if name != "num_classes"
        )
        show(
            f"{path}: {source.arch}{arguments}, {source.num_classes} classes, {size[0]}x{size[1]},"
            f" {millions(network.params)} parameters, {gmacs(network.macs_dense)} GMACs"
        )
        shown = [
            s
            for s in sites
            if kind == "all"
            or s["kind"] == kind
            or (not kind and (s["kind"] in USUAL or s["method"]))
        ]
        rows = [
            (s["name"], s["kind"], s["units"], f"{s['macs']:,}", s["method"] or "-") for s in shown
        ]
        others = Counter(s["kind"] for s in sites if s not in shown)
        more = (
            "; not listed: "
            + ", ".join(f"{count} of kind {name} (--kind {name})" for name, count in others.items())
            if others
            else ""
        )
        table(
            session,
            f"{len(sites)} sites",
            ("<site", "<kind", "units", "MACs", "<gated by"),
            rows,
            MACS_FOOT + more,
        )
    return {
        "checkpoint": str(path),
        "arch": source.arch,
        "arch_args": source.arch_args,
        "num_classes": source.num_classes,
        "input_size": list(size),
        "params": network.params,
        "macs_dense": network.macs_dense,
        "macs_expected": expected_macs(network, known_rates(network)),
        "uncounted": network.uncounted,
        "sites": sites,
    }
