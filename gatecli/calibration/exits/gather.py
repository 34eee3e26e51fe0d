"""One pass over val: what each exit would say of every image, and what else runs by then."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gatecli import together
from gatecli.calibration.exits.samples import OperatingPoint, Samples, leaves
from gatecli.data import DataSet, Walk, batches, steps
from gatecli.data.walk import DEALT
from gatecli.gates.observe import record_gates
from gatecli.network import Network
from gatecli.network.compare import require_finite
from gatecli.network.costs import exits_before, leaving_costs
from gatecli.progress import Progress
from gatecli.stages.predict import ask_exits

__all__ = ["gather", "rates_at"]


def gather(
    network: Network, data: DataSet, batch_size: int, workers: int | None, progress: Progress
) -> tuple[Samples, dict[str, Tensor]]:
    """Every exit's score of every image of val, who is right, and what leaving there costs.

    Returns:
        The samples, their costs in MACs, and the other gates' decisions with nobody leaving, site
        -> (N, units).
    """
    split = data.splits["val"]
    scores: list[Tensor] = []
    right: list[Tensor] = []
    decided: dict[str, list[Tensor]] = {}
    images = batches(
        split,
        input=network.input,
        batch_size=batch_size,
        walk=Walk(divided=DEALT, device=network.device),
        workers=workers,
    )
    with (
        torch.no_grad(),
        record_gates(network) as record,
        progress.task("scores on val", steps(split, batch_size)) as task,
    ):
        for x, y in images:
            record.clear()
            answers, sure, logits = ask_exits(network, x)
            require_finite(logits)
            scores.append(torch.stack(list(sure.values()), 1).float().cpu())
            hits = [each.argmax(1).cpu() == y for each in (*answers.values(), logits)]
            right.append(torch.stack(hits, 1))
            for site, z in record.latest().items():
                decided.setdefault(site, []).append(z.cpu())
            task.advance()
    together.agree_to_go_on(progress)
    scores = together.in_order(scores)
    right = together.in_order(right)
    sites = max(together.gathered(list(decided)), key=len)  # one may have had no batch
    decisions = {site: torch.cat(together.in_order(decided.get(site, []))) for site in sites}
    costs = leaving_costs(network, decisions)
    costs = costs if len(costs) > 1 else costs[0]
    return Samples.of(torch.cat(scores), torch.cat(right), costs), decisions


def rates_at(
    network: Network, decisions: Mapping[str, Tensor], samples: Samples, point: OperatingPoint
) -> dict[str, list[float]]:
    """Each site's rates at an operating point, as shares of all samples.

    A sample that has left before a site runs nothing there.

    Args:
        network: Whose exits and other gates they are.
        decisions: Of the other gates with nobody leaving, site -> (N, units).
        samples: What the same pass saw.
        point: The exits' thresholds and shares.
    """
    exits = list(network.site_exits)
    left = leaves(samples.margins, point.thresholds)
    rates = {site: [share] for site, share in zip(exits, point.shares, strict=False)}
    for site, z in decisions.items():
        before = [exits.index(name) for name in exits_before(network.traced, site)]
        comes = ~torch.isin(left, torch.tensor(before, dtype=left.dtype))
        rates[site] = (z.double() * comes[:, None]).mean(0).tolist()
    return rates
