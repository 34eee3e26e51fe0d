"""gatecli slim: the whole road from a trained network to a smaller one, in one command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from gatecli.cli.options import READING, Checkpoint, Data, Output, reads_checkpoints
from gatecli.cli.parsing import parse_pairs
from gatecli.cli.recipe_file import (
    group_of,
    read_recipe_file,
    set_common,
    spelled_name,
    told_by,
)
from gatecli.cli.resuming import named
from gatecli.cli.road import Road
from gatecli.cli.road_state import SLIM, State, latest, road_file
from gatecli.cli.session import Session
from gatecli.cli.slim_options import How, Wanted
from gatecli.cli.slim_steps import Asked, Slimming
from gatecli.cli.slim_table import goal_facts, print_rows, rows_of
from gatecli.cli.trust import option_of
from gatecli.cli.typed import options_spelled
from gatecli.cli.workspace import default_out
from gatecli.errors import GatecliError, Interrupted, SettingError

__all__ = ["slim"]

# what only the command line says: how this one run behaves, and whether code may run
TYPED = ("recipe", "resume", "force", "json_", "quiet", "debug", "trust_pickle", "help")


@reads_checkpoints
def slim(
    session: Session,
    context: typer.Context,
    *,
    checkpoint: Checkpoint = None,
    data: Data = None,
    wanted: Wanted = Wanted(),
    how: How = How(),
    recipe: Annotated[
        Optional[Path],
        typer.Option(
            help="YAML file with these options, as `max-drop: 1`; what is typed comes before it.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the one that was stopped last.")
    ] = False,
    output: Output = Output(),
) -> dict[str, Any]:
    """Make a smaller network: attach, finetune, prune, finetune what is left, profile.

    Each step is a command, printed before it runs; its file stays. Stopped, it goes on with
    --resume, or when the same is typed again.
    """
    import torch

    params = dict(context.params)
    if recipe is not None:
        params |= told_by(read_recipe_file(recipe), recipe, context, TYPED)
    if resume:
        params |= _resumed(context, params, *latest())
    set_common(session, params)
    asked = _asked(params)
    _check(asked)
    road = Road(
        session,
        road_file(SLIM, asked.out),
        _about(params),
        session.threads or torch.get_num_threads(),
        again="gatecli slim --resume",
    )
    road.check_free(asked.outs, source=asked.source, force=asked.force)
    torch.set_num_threads(road.state.threads)
    work = Slimming(session, road, asked)
    try:
        slimmed = work.slim()
        rows = rows_of(work, slimmed)
    except (Interrupted, KeyboardInterrupt) as error:
        raise road.stopped() from error
    road.finish()
    goal = goal_facts(asked, rows)
    _report(session, asked, rows, goal)
    after = rows[-1]
    return {
        "checkpoint": str(asked.source),
        "out": str(asked.out),
        "arch": slimmed.tuned["arch"],
        "method": asked.how.method,
        "params": after["params"],
        "macs_dense": after["macs_dense"],
        "macs_expected": after["macs_expected"],
        "steps": _steps(road),
        "rows": rows,
        "goal": goal,
        "threads": road.state.threads,
    }


def _steps(road: Road) -> list[dict[str, Any]]:
    """The commands of the road, as the JSON has them."""
    steps = []
    for each in road.steps:
        line = f"gatecli {each.line}"
        steps.append({"command": line, "out": each.out, "seconds": each.seconds})
    return steps


def _resumed(
    context: typer.Context, params: Mapping[str, Any], path: Path, state: State
) -> dict[str, Any]:
    """The options of a row that was stopped.

    Raises:
        SettingError: What is typed says otherwise, or the options name what a file's word is not
            enough for.
    """
    told = told_by(state.about, path, context, TYPED)
    for name in named(context):
        was = state.about.get(spelled_name(name))
        if was is not None and _kept(params[name]) != was:
            raise SettingError(
                f"--resume goes on with the options of the run: {option_of(name)} was {was}, not"
                f" {params[name]}; leave it out, or begin again without --resume"
            )
    out = told.get("out")
    if out is not None and not Path(out).resolve().is_relative_to(Path.cwd().resolve()):
        raise SettingError(
            f"{path} names {out}, which a state's word is not enough for: if that is right, say it"
            f" again with --out {out}"
        )
    return told


def _about(params: Mapping[str, Any]) -> dict[str, Any]:
    """The options as a state keeps them, and a recipe would have them."""
    kept = {}
    for name, value in params.items():
        if name not in TYPED and value not in (None, (), []):
            kept[spelled_name(name)] = _kept(value)
    return kept


def _kept(value: Any) -> Any:
    """An option's value as JSON has it."""
    if isinstance(value, (list, tuple)):
        return [str(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _asked(params: Mapping[str, Any]) -> Asked:
    """What the options come to.

    Raises:
        SettingError: One that is needed is missing, or goals contradict each other.
    """
    goal, limit = group_of(params, Wanted).named
    for name, what in (("checkpoint", "a checkpoint"), ("data", "a data set: --data DATA")):
        if params[name] is None:
            raise SettingError(f"expected {what}, but none is named")
    source = Path(params["checkpoint"])
    reading = options_spelled(params, READING)
    out = params["out"]
    return Asked(
        source=source,
        data=params["data"],
        goal=goal,
        limit=limit,
        how=group_of(params, How),
        reading=reading,
        code=_code(params),
        out=default_out(source, "slim") if out is None else Path(out),
        force=params["force"],
    )


def _code(params: Mapping[str, Any]) -> list[str]:
    """The option that names code, which every file made of this source needs again."""
    from gatecli.architectures.arguments import is_callable_name

    arch = params["arch"]
    return ["--arch", arch] if arch and is_callable_name(arch) else []


def _check(asked: Asked) -> None:
    """Check what can be before any work: a slip costs no time.

    Raises:
        SettingError: A value is none.
    """
    from gatecli import methods
    from gatecli.kinds import registry as kinds
    from gatecli.runtimes import registry as runtimes
    from gatecli.training import TrainOptions

    how = asked.how
    method = methods.get(how.method)
    methods.parse_settings(method, parse_pairs(how.set_))
    traits = method.objective.traits
    if traits.trains != "network" or traits.at_least or not traits.aims:
        raise SettingError(
            f"expected --method to be one whose rate follows from a goal, but {how.method} has"
            " none such: take another, or go step by step (gatecli attach)"
        )
    for kind in how.kind or ():
        for name in kind.split(","):
            kinds.get(name.strip())
    runtimes.get(how.runtime).require(how.precision)
    goal: dict[str, Any] = {asked.goal: asked.limit}
    TrainOptions(epochs=how.epochs, lr=how.lr, batch_size=how.batch_size, **goal)
    TrainOptions(epochs=max(1, how.finish_epochs), lr=how.finish_lr, workers=how.workers)
    if not asked.source.exists() and ":" not in str(asked.source):
        raise GatecliError(f"{asked.source} does not exist")


def _report(
    session: Session, asked: Asked, rows: list[dict[str, Any]], goal: Mapping[str, Any]
) -> None:
    if not session.json_:
        print_rows(session, asked, rows)
    words = f"--{asked.goal.replace('_', '-')} {asked.limit:g}"
    if goal["met"]:
        session.say(f"{words} is met: {goal['reached']:.4g}")
    else:
        session.say(
            f"note: {words} is not met, but {goal['reached']:.4g}: more --epochs, or a goal nearer"
            " to the source"
        )
    session.say(f"the result is {asked.out}; every step's file is beside it")
