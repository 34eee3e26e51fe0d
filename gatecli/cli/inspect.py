"""The command `gatecli inspect`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatecli.cli.images import show_images
from gatecli.cli.options import Checkpoint, reads_checkpoints
from gatecli.cli.render import MACS_FOOT, gmacs, millions, table
from gatecli.cli.session import Session
from gatecli.cli.text import show
from gatecli.errors import SettingError

if TYPE_CHECKING:
    from gatecli.network import Network

__all__ = ["inspect"]

Site = dict[str, Any]


@reads_checkpoints
def inspect(
    session: Session,
    checkpoint: Checkpoint = None,
    kind: Annotated[
        str,
        typer.Option(
            help=(
                "Sites to list: those of one kind (block, layer, exit, branch, filter, conv,"
                " hidden), or all; none named: those that lie in a row, exits, and what is gated."
            )
        ),
    ] = "",
) -> dict[str, Any]:
    """Say what a checkpoint is, and list the sites that can be gated."""
    from gatecli.kinds import registry
    from gatecli.network.costs import expected_macs, known_rates

    if kind not in ("", "all", *registry.names()):
        raise SettingError(
            f"expected --kind to be one of {', '.join(registry.names())} or all, but got `{kind}`"
        )
    path = session.checkpoint(checkpoint)
    network = session.open(path)
    source = network.recipe.source
    show_images(session, network.input)
    sites = _sites(network)
    if not session.json_:
        usual = [each.name for each in registry.all_kinds() if each.listed]
        _print(session, network, str(path))
        _print_sites(session, sites, _shown(sites, kind, usual))
    return {
        "checkpoint": str(path),
        "arch": source.arch,
        "arch_args": source.arch_args,
        "key": source.key,
        "prefix": source.prefix,
        "num_classes": source.num_classes,
        "input_size": list(network.input.size),
        "params": network.params,
        "macs_dense": network.macs_dense,
        "macs_expected": expected_macs(network, known_rates(network)),
        "uncounted": network.uncounted,
        "sites": sites,
    }


def _sites(network: Network) -> list[Site]:
    return [
        {
            "name": site.name,
            "kind": site.kind,
            "units": site.units,
            "macs": site.macs,
            "method": network.gated_by.get(site.name),
        }
        for site in network.sites.values()
    ]


def _shown(sites: list[Site], kind: str, usual: list[str]) -> list[Site]:
    """The sites to list."""
    if kind == "all":
        return sites
    if kind:
        return [site for site in sites if site["kind"] == kind]
    return [site for site in sites if site["kind"] in usual or site["method"]]


def _print(session: Session, network: Network, path: str) -> None:
    source, size = network.recipe.source, network.input.size
    given = {name: value for name, value in source.arch_args.items() if name != "num_classes"}
    arguments = "".join(f" {name}={value}" for name, value in given.items())
    show(
        f"{path}: {source.arch}{arguments}, {source.num_classes} classes, {size[0]}x{size[1]},"
        f" {millions(network.params)} parameters, {gmacs(network.macs_dense)} GMACs"
    )


def _print_sites(session: Session, sites: list[Site], shown: list[Site]) -> None:
    columns = ("<site", "<kind", "units", "MACs", "<gated by")
    rows = [
        (site["name"], site["kind"], site["units"], f"{site['macs']:,}", site["method"] or "-")
        for site in shown
    ]
    others = Counter(site["kind"] for site in sites if site not in shown)
    left = [f"{count} of kind {name} (--kind {name})" for name, count in others.items()]
    foot = MACS_FOOT + ("; not listed: " + ", ".join(left) if left else "")
    table(session, f"{len(sites)} sites", columns, rows, foot)
