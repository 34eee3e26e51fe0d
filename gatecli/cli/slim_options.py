"""The options of gatecli slim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Optional

import typer

from gatecli.cli.options import Workers
from gatecli.errors import SettingError
from gatecli.runtimes import registry

__all__ = ["GOALS", "How", "Wanted"]

METHOD = "ind-perbatch"  # docs/results.md: the one for a plain network that runs anywhere
GOALS = ("max_drop", "max_gmacs", "max_ms")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the smaller network shall keep to: one of three."""

    max_drop: Annotated[
        Optional[float],
        typer.Option(
            help="As cheap as it gets, at most so many points of val top-1 below the source."
        ),
    ] = None
    max_gmacs: Annotated[
        Optional[float],
        typer.Option(help="As accurate as it gets, for at most so many GMACs an image."),
    ] = None
    max_ms: Annotated[
        Optional[float],
        typer.Option(help="The same for so many milliseconds an image, in --runtime."),
    ] = None

    @property
    def named(self) -> tuple[str, float]:
        """The goal's option, without its dashes, and its number.

        Raises:
            SettingError: Several goals are named, or none.
        """
        given = {name: getattr(self, name) for name in GOALS if getattr(self, name) is not None}
        options = [f"--{name.replace('_', '-')} {value:g}" for name, value in given.items()]
        if len(given) != 1:
            raise SettingError(
                "expected one of --max-drop, --max-gmacs and --max-ms, but got"
                f" {' and '.join(options) or 'none of them'}"
            )
        return next(iter(given.items()))


@dataclass(frozen=True, kw_only=True)
class How:
    """The options that say what is gated, how it is trained, and where it is timed."""

    method: Annotated[str, typer.Option(help="How to gate; see gatecli methods.")] = METHOD
    set_: Annotated[
        Optional[list[str]],
        typer.Option("--set", help="name=value, a setting of the method; repeatable."),
    ] = None
    kind: Annotated[
        Optional[list[str]],
        typer.Option(
            help=(
                "Kinds of sites to gate, with commas between; none: the method's own, or where the"
                " network has none of these the first that it can gate."
            )
        ),
    ] = None
    include: Annotated[
        Optional[list[str]], typer.Option(help="Pattern of sites to gate; repeatable.")
    ] = None
    exclude: Annotated[
        Optional[list[str]], typer.Option(help="Pattern of sites to leave alone; repeatable.")
    ] = None
    epochs: Annotated[int, typer.Option(help="Epochs with gates.", min=1)] = 20
    last_epochs: Annotated[
        Optional[int],
        typer.Option(
            help="Epochs of what prune leaves; none: a quarter of --epochs; 0: leave it so.",
            min=0,
        ),
    ] = None
    lr: Annotated[float, typer.Option(help="Learning rate at the start, with gates.")] = 0.05
    last_lr: Annotated[
        Optional[float],
        typer.Option(help="The same of the last epochs; none: a tenth of --lr."),
    ] = None
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images a batch.")] = 64
    workers: Workers = None
    runtime: Annotated[
        str, typer.Option(help=f"Where it is timed: {', '.join(registry.names())}.")
    ] = "native"
    precision: Annotated[str, typer.Option(help="fp32 or bf16, there.")] = "fp32"

    @property
    def finish_epochs(self) -> int:
        """Epochs of the last training."""
        return max(1, self.epochs // 4) if self.last_epochs is None else self.last_epochs

    @property
    def finish_lr(self) -> float:
        """Its learning rate."""
        return self.lr / 10 if self.last_lr is None else self.last_lr
