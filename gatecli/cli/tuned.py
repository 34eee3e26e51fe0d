"""What gatecli finetune says of what came out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatecli.cli.render import exit_facts, gmacs
from gatecli.cli.session import Session

if TYPE_CHECKING:
    from gatecli.network import Network
    from gatecli.training import Finetuned, Run

__all__ = ["next_command", "report_tuned", "tuned_json"]


def next_command(network: Network) -> str:
    """The command that comes next."""
    if not network.gated_by:
        return "profile"
    return "calibrate --max-drop 1" if network.site_exits else "prune"


def report_tuned(session: Session, result: Finetuned, run: Run) -> None:
    """Say what came out of a training."""
    session.say(f"chosen {result.chosen}")
    norms = result.batchnorm
    if norms["after"] is not None:
        session.say(
            f"BatchNorm re-estimated: val top-1 {norms['before']:.2f} before, {norms['after']:.2f}"
            f" after; kept: {norms['kept']}"
        )
    for site, each in result.exits.items():
        chosen = "" if each.top1_chosen is None else f", {each.top1_chosen:.2f} of those"
        session.say(
            f"{site}: {100 * each.share:.1f} % leave; top-1 {each.top1_all:.2f} of all val"
            f" images{chosen}"
        )
    session.say(
        f"val top-1 {result.top1:.2f} (all gates open before training: {result.baseline_top1:.2f}),"
        f" {_rates(result)}, {gmacs(result.macs_expected)} GMACs of"
        f" {gmacs(result.network.macs_dense)}; log, best and last state in {run.folder}"
    )


def _rates(result: Finetuned) -> str:
    """What to say of the rate that was reached."""
    from gatecli import methods
    from gatecli.training.pricing import WORDS

    step = result.network.recipe.last("finetune")
    if not result.network.gated_by:
        return "no gates"
    if step is not None and step.settings["method"] in methods.names():
        objective = methods.get(step.settings["method"]).objective
        if objective.traits.trains == "exits":
            return "no exit taken until gatecli calibrate"
    asked = "" if result.target_rate is None else f" for {result.target_rate:.2f} asked"
    return f"rate {result.achieved_rate:.3f}{asked}{WORDS[result.price]}"


def tuned_json(result: Finetuned, path: Path, target: Path) -> dict[str, Any]:
    """The command's JSON.

    Args:
        result: What came out.
        path: The checkpoint that was read.
        target: The one that was written.
    """
    from gatecli.network.costs import site_rates

    network = result.network
    return {
        "checkpoint": str(path),
        "out": str(target),
        "arch": network.recipe.source.arch,
        "epochs": result.epochs,
        "split": "val",
        "top1": result.top1,
        "baseline_top1": result.baseline_top1,
        "params": network.params,
        "macs_dense": network.macs_dense,
        "macs_expected": result.macs_expected,
        "rates": site_rates(result.rates),
        "target_rate": result.target_rate,
        "achieved_rate": result.achieved_rate,
        "price": result.price,
        "chosen": result.chosen,
        "batchnorm": result.batchnorm,
        "suited": result.suited,
        "history": result.history,
        **exit_facts(result.exits),
    }
