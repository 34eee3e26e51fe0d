"""finetune: baseline, loop, the best state, BatchNorm re-estimation, and the final figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from gatecli import together
from gatecli.data import DataSet
from gatecli.errors import Interrupted
from gatecli.methods import record_settings
from gatecli.network import Network
from gatecli.network.costs import expected_macs, site_rates
from gatecli.progress import Progress, silent
from gatecli.stages.predict import ExitScore
from gatecli.traced.recipe import Step
from gatecli.training.course import Course
from gatecli.training.curves import curves
from gatecli.training.exits import ExitLoop
from gatecli.training.loop import Loop
from gatecli.training.options import TrainOptions
from gatecli.training.pricing import with_table
from gatecli.training.run import Run
from gatecli.training.trained import trained_methods

__all__ = ["Finetuned", "finetune"]


@dataclass(frozen=True)
class Finetuned:
    """The trained network and its figures on val.

    Attributes:
        network: In evaluation mode, in the best epoch's state.
        epochs: How many there were.
        top1: Percent.
        baseline_top1: Percent, before training, all gates open.
        macs_expected: Mean MACs of an image.
        rates: Each unit's rate, by site.
        target_rate: The rate asked for; None for exits, which have none.
        chosen: Which epoch it is, and why.
        batchnorm: Val top-1 before and after the re-estimation, and which was kept.
        history: A row an epoch.
        achieved_rate: What to compare with the target: the mean over the gates of the (first)
            method trained.
        price: What both are shares of: count, macs or ms.
        exits: What exits that were trained with the network say.
        suited: The settings that nobody set and that follow from the run's length, by method.
    """

    network: Network
    epochs: int
    top1: float
    baseline_top1: float
    macs_expected: float
    rates: dict[str, list[float]]
    target_rate: float | None
    chosen: str
    batchnorm: dict[str, Any]
    history: list[dict[str, Any]]
    achieved_rate: float
    price: str
    exits: dict[str, ExitScore]
    suited: dict[str, dict[str, float]]


def finetune(  # noqa: PLR0913 - its command's options, by keyword
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

    For layer gates that is the network with them, for d-gates the exits alone.

    Args:
        network: A gated network whose input normalisation is known (see gatecli.stages.fit).
        data: Fit on its train split, chosen on its val split.
        options: How to train.
        changes: Settings of the method to change for this training, such as target_rate.
        run: Where to keep a resumable state; a run with a saved state is resumed, `network` being
            as it was when the run began. Of several processes (gatecli.together) only the first
            one has it.
        progress: Is told how far the training is.
        teacher: Who says what to learn where `options.distill` is not 0; changed to evaluation with
            all gates open. None: the network as it is now.

    Raises:
        TrainingError: There are no gates, or the loss or a weight is no longer finite.
        DataError: The data does not serve.
        CheckpointError: A state cannot be written or read.
        Interrupted: The user stopped it.
    """
    trained = trained_methods(network.recipe, changes or {}, options)
    with_table(network, trained, options, run, progress)
    kind = ExitLoop if trained[0].objective.traits.trains == "exits" else Loop
    loop = kind(network, data, trained, options, progress, teacher)
    if run is not None or together.count() > 1:
        loop.keep_in(run)
    baseline = loop.train()
    try:
        result = _finish(loop, baseline)
    except Interrupted as error:
        raise Interrupted(
            "interrupted after the last step, before the final evaluation was over"
        ) from error
    if not network.recipe.baseline:
        images = network.input.key()
        own = {"top1": baseline, "split": "val", "data": data.spec, "images": images}
        network.recipe = replace(network.recipe, baseline=own)
    return result


def _finish(loop: Course, baseline: float) -> Finetuned:
    """Go back to the best epoch, re-estimate the BatchNorm statistics, and measure."""
    network = loop.network
    position = loop.position
    with loop.descent.averaged():
        last = loop.tensors()
    if loop.run is not None:
        loop.run.save_last(last)
    best = position.best_row()
    network.load_state_dict(last if best is None else loop.best_tensors)
    chosen = loop.goal.chosen(best) + loop.goal.passed_over(best, position.history[-1])
    target = loop.goal.reported(best or position.history[-1])
    network.eval()
    batchnorm, scores = loop.finish()
    result = Finetuned(
        network=network,
        epochs=loop.options.epochs,
        top1=scores.top1,
        baseline_top1=baseline,
        macs_expected=expected_macs(network, scores.rates, scores.busy),
        rates=scores.rates,
        target_rate=target,
        chosen=chosen,
        batchnorm=batchnorm,
        history=position.history,
        achieved_rate=loop.trained[0].achieved(network, scores.rates, scores.busy),
        price=loop.trained[0].price,
        exits=loop.exit_scores(),
        suited=loop.suited,
    )
    if loop.options.channels_last:
        network.to(memory_format=torch.contiguous_format)
    network.recipe = network.recipe.with_step(_step(loop, result, scores.top5))
    return result


def _step(loop: Course, result: Finetuned, top5: float) -> Step:
    """The training as the recipe records it."""
    settings = {
        **asdict(loop.options),
        "method": loop.trained[0].name,
        "settings": record_settings(loop.trained[0].settings),
        "data": loop.data.spec,
    }
    measured = {
        "top1": result.top1,
        "top5": top5,
        "split": "val",
        "macs_expected": result.macs_expected,
        "achieved_rate": result.achieved_rate,
        "target_rate": result.target_rate,
        "price": result.price,
        "chosen": result.chosen,
        "suited": result.suited,
        "batchnorm": result.batchnorm,
        "rates": site_rates(result.rates),
        "unit_rates": result.rates,
        "exits": {site: asdict(each) for site, each in result.exits.items()},
        "curves": curves(result.history),
    }
    return Step("finetune", settings, measured)
