"""finetune: baseline, loop, the best state, BatchNorm re-estimation, and the final figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from gatecli.costs import expected_macs, overall_rate, site_rates
from gatecli.data import DataSet
from gatecli.errors import Interrupted
from gatecli.inference import ExitScore
from gatecli.network import Network
from gatecli.progress import Progress, silent
from gatecli.traced.recipe import Step
from gatecli.training.exits import ExitLoop
from gatecli.training.loop import Loop
from gatecli.training.options import TrainOptions
from gatecli.training.run import Run
from gatecli.training.trained import trained_methods


@dataclass(frozen=True)
class Finetuned:
    """The trained network and its figures on val.

    `top1` percent, `rates` per unit, `history` a row an epoch.

    `chosen` says which epoch it is and why; `batchnorm` holds val top-1 before and after the
    re-estimation and which was kept.
    """

    network: Network
    epochs: int
    top1: float
    baseline_top1: float
    macs_expected: float
    rates: dict[str, list[float]]
    target_rate: float | None  # None: exits have none
    chosen: str
    batchnorm: dict[str, Any]
    history: list[dict[str, Any]]
    achieved_rate: float  # mean over the gates of the (first) method trained
    exits: dict[str, ExitScore]  # of exits that have been trained with the network


def finetune(
    network: Network,
    data: DataSet,
    options: TrainOptions = TrainOptions(),
    *,
    changes: Mapping[str, Any] | None = None,
    run: Run | None = None,
    progress: Progress = silent,
    teacher: Network | None = None,
) -> Finetuned:
    """Train what the latest attached method trains, or those that `options.train` names, in place.

    For layer gates, the network with them.

    Args:
        network: a gated network whose input normalisation is known (see gatecli.inputs).
        data: fit on its train split, chosen on its val split.
        changes: settings of the method to change for this training, such as target_rate.
        run: where to keep a resumable state; a run with a saved state is resumed, `network` being
            as it was when the run began.
        teacher: who says what to learn where `options.distill` is not 0; changed to evaluation with
            all gates open. None: the network as it is now.
    Raises: TrainingError without gates, or when the loss or a weight is no longer finite;
    DataError; CheckpointError where a state cannot be written or read; Interrupted.
    """
    trained = trained_methods(network.recipe, changes or {}, options.methods)
    loop = (ExitLoop if trained[0].method.trains == "exits" else Loop)(
        network, data, trained, options, run, progress, teacher
    )
    saved = run.saved() if run is not None else None
    if run is not None and saved is not None:
        loop.restore(run, *saved)
    else:
        loop.save()  # whatever happens from now on, there is a state to resume from
    baseline = loop.train()
    try:
        result = _finish(loop, baseline)
    except Interrupted as error:
        raise Interrupted(
            "interrupted after the last step, before the final evaluation was over"
        ) from error
    network.recipe = replace(
        network.recipe,
        baseline=network.recipe.baseline or {"top1": baseline, "split": "val", "data": data.spec},
    )
    return result


def _finish(loop: Loop, baseline: float) -> Finetuned:
    network, position = loop.network, loop.position
    if loop.run is not None:
        loop.run.save_last(network.state_dict())
    best = None if position.best is None else position.history[position.best]
    if best is not None:
        network.load_state_dict(loop.best_tensors)
    chosen, target = loop.goal.chosen(best), loop.goal.reported(best or position.history[-1])
    network.eval()
    batchnorm, scores = loop.finish()
    result = Finetuned(
        network,
        loop.options.epochs,
        scores.top1,
        baseline,
        expected_macs(network, scores.rates, scores.busy),
        scores.rates,
        target,
        chosen,
        batchnorm,
        position.history,
        overall_rate(loop.trained[0].own(network, scores.rates)),
        loop.exit_scores(),
    )
    measured = {
        "top1": scores.top1,
        "top5": scores.top5,
        "split": "val",
        "macs_expected": result.macs_expected,
        "achieved_rate": result.achieved_rate,
        "target_rate": target,
        "chosen": chosen,
        "batchnorm": batchnorm,
        "rates": site_rates(scores.rates),
        "unit_rates": scores.rates,
        "exits": {site: asdict(each) for site, each in result.exits.items()},
    }
    network.recipe = network.recipe.with_step(
        Step(
            "finetune",
            {
                **asdict(loop.options),
                "method": loop.method.name,
                "settings": asdict(loop.settings),
                "data": loop.data.spec,
            },
            measured,
        )
    )
    return result
