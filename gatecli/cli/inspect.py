"""gatecli inspect"""
from __future__ import annotations

from typing import Any

from gatecli.cli.render import MACS_FOOT, gmacs, millions, table
from gatecli.cli.session import Checkpoint, Session, reads_checkpoints


@reads_checkpoints
def inspect(session: Session, checkpoint: Checkpoint = None) -> dict[str, Any]:
    """Say what a checkpoint is, and list the sites that can be gated."""
    from gatecli.costs import expected_macs, known_rates

    path = session.checkpoint(checkpoint)
    network = session.open(path)
    source, size = network.recipe.source, network.input.size
    sites = [
        {"name": site.name, "kind": site.kind, "units": site.units, "macs": site.macs, "method": network.methods.get(site.name)} for site in network.sites.values()
    ]
    if not session.json_:
        arguments = "".join(f" {name}={value}" for name, value in source.arch_args.items() if name != "num_classes")
        print(f"{path}: {source.arch}{arguments}, {source.num_classes} classes, {size[0]}x{size[1]}, {millions(network.params)} parameters, {gmacs(network.macs_dense)} GMACs")
        rows = [(s["name"], s["kind"], s["units"], f"{s['macs']:,}", s["method"] or "-") for s in sites]
        table(session, f"{len(sites)} sites", ("<site", "<kind", "units", "MACs", "<gated by"), rows, MACS_FOOT)
    return {
        "checkpoint": str(path), "arch": source.arch, "arch_args": source.arch_args, "num_classes": source.num_classes, "input_size": list(size),
        "params": network.params, "macs_dense": network.macs_dense, "macs_expected": expected_macs(network, known_rates(network)), "sites": sites,
    }  # fmt: skip
