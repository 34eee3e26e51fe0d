"""How gatecli finetune trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Optional

import typer

from gatecli.cli.options import Workers

__all__ = ["Training"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """The options that say how to train: gatecli.TrainOptions', but for the seed.

    Names and defaults stand here again, as `--help` shows them and must not import torch.
    """

    epochs: Annotated[int, typer.Option(help="Passes over the training split.")] = 100
    lr: Annotated[float, typer.Option(help="Learning rate at the start.")] = 0.1
    batch_size: Annotated[int, typer.Option(help="Images a batch, of all processes.")] = 256
    accumulate: Annotated[
        int, typer.Option(help="Batches whose gradients make one step, each with its own loss.")
    ] = 1
    optimizer: Annotated[str, typer.Option(help="sgd or adamw.")] = "sgd"
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 1e-4
    momentum: Annotated[float, typer.Option(help="Momentum of SGD; AdamW's beta1.")] = 0.9
    clip_grad: Annotated[
        Optional[float],
        typer.Option(
            help="Norm of all gradients together that longer ones are shortened to.",
            show_default=False,
        ),
    ] = None
    ema: Annotated[
        Optional[float],
        typer.Option(
            help=(
                "Keep an average of the weights that keeps this share of itself in each step, as"
                " 0.999; it is validated and written instead of them."
            ),
            show_default=False,
        ),
    ] = None
    schedule: Annotated[
        str, typer.Option(help="step (x0.1 at 30, 60 and 90 % of the epochs), cosine or constant.")
    ] = "step"
    milestones: Annotated[
        Optional[str],
        typer.Option(
            help=(
                "Epochs before which --schedule step lowers the learning rate, as 150,250, in place"
                " of these."
            ),
            show_default=False,
        ),
    ] = None
    warmup: Annotated[
        float,
        typer.Option(help="Epochs (or part of one) in which the learning rate rises from 0."),
    ] = 0.0
    nesterov: Annotated[bool, typer.Option("--nesterov", help="Nesterov's momentum.")] = False
    precision: Annotated[
        str, typer.Option(help="fp32, bf16 (autocast), or fp16 (the same, on a GPU).")
    ] = "fp32"
    augment: Annotated[
        Optional[str],
        typer.Option(
            help=(
                "none, shift, crop-flip or imagenet; none given: the data set's own; randaugment:"
                " that one, then RandAugment."
            )
        ),
    ] = None
    erase: Annotated[
        float, typer.Option(help="Chance of an image that a rectangle of it is erased.")
    ] = 0.0
    mixup: Annotated[
        float, typer.Option(help="Mix images in pairs, in shares of Beta(A, A), as 0.2; 0: do not.")
    ] = 0.0
    cutmix: Annotated[
        float,
        typer.Option(
            help="The same for rectangles of images, as 1; with both, each batch has one of them."
        ),
    ] = 0.0
    label_smoothing: Annotated[float, typer.Option(help="Label smoothing.")] = 0.0
    workers: Workers = None
    channels_last: Annotated[
        bool,
        typer.Option(
            "--channels-last",
            help="Images and weights lie in memory pixel by pixel, which suits some processors.",
        ),
    ] = False
    bn_batches: Annotated[
        int, typer.Option(help="Batches to re-estimate BatchNorm statistics with; 0: leave them.")
    ] = 200
    bn_batch_size: Annotated[
        Optional[int],
        typer.Option(
            help="Images in each of these batches; none: as in training.", show_default=False
        ),
    ] = None
    bn_gates: Annotated[
        str,
        typer.Option(help="Gates in these batches: sampled, or decided as evaluation does."),
    ] = "sampled"
    keep: Annotated[
        str,
        typer.Option(
            help=(
                "Epoch to end with: the best on val among those that came down to the target rate,"
                " or the last."
            )
        ),
    ] = "best"
    sync_norms: Annotated[
        bool,
        typer.Option(
            "--sync-norms",
            help="BatchNorms normalise by the batch of all processes, not each by its part.",
        ),
    ] = False
    save_every: Annotated[float, typer.Option(help="Seconds between saved states.")] = 60.0
    max_drop: Annotated[
        Optional[float],
        typer.Option(
            help=(
                "Lower the target rate as long as val top-1 stays within so many points of the"
                " baseline, and keep the cheapest such state."
            )
        ),
    ] = None
    max_gmacs: Annotated[
        Optional[float],
        typer.Option(
            help=(
                "Lower the target rate until an image costs at most so many GMACs, and keep the"
                " most accurate such state."
            )
        ),
    ] = None
    max_ms: Annotated[
        Optional[float],
        typer.Option(
            help=(
                "The same for milliseconds, by the table that gatecli price has put into the"
                " checkpoint."
            )
        ),
    ] = None
    any_machine: Annotated[
        bool,
        typer.Option("--any-machine", help="Take that table wherever it was measured."),
    ] = False
    runtime: Annotated[
        Optional[str],
        typer.Option(
            help="With --set price=ms: where milliseconds are measured; none: native, or where the"
            " checkpoint's table was.",
            show_default=False,
        ),
    ] = None
    cache_features: Annotated[
        bool,
        typer.Option(
            "--cache-features",
            help="Exits: compute what they see once, for all epochs; goes without augmentation.",
        ),
    ] = False
    train: Annotated[
        Optional[str],
        typer.Option(
            help=(
                "Attached methods to train together, with commas between, as"
                " early-exit,aig-perbatch; none: the latest. --set is for the first. weights: the"
                " network alone, its gates, if any, deciding as they do."
            ),
            show_default=False,
        ),
    ] = None
    distill: Annotated[
        float,
        typer.Option(
            help="Weight of a loss that draws the answers to a teacher's: knowledge distillation."
        ),
    ] = 0.0
    temperature: Annotated[
        float, typer.Option(help="By which distillation softens both answers.")
    ] = 4.0
