"""The command line's wiring: one Typer program, one function a command."""

from __future__ import annotations

import copy
import io
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer
import typer.core

from gatecli.cli import (
    attach,
    calibrate,
    demo,
    doctor,
    evaluate,
    export,
    finetune,
    gates,
    inspect,
    methods,
    price,
    profile,
    prune,
    replay,
    report,
    run,
    several,
    slim,
    state,
)
from gatecli.cli.commands import command
from gatecli.cli.text import printable, show, tell

__all__ = ["COMMANDS", "PlainCommand", "PlainGroup", "app", "start"]

MARKUP = getattr(typer.core, "HAS_RICH", True)  # whether typer reads help texts as rich's markup

# What somebody is told who types `gatecli` alone.
ROAD = (
    "gatecli attach resnet50.pt --method NAME  put gates in; see gatecli methods",
    "gatecli finetune --data imagefolder:DIR   train the gates and the weights",
    "gatecli prune && gatecli profile          remove what never runs; compare costs",
    "gatecli export --format onnx              a file that runs without gatecli",
    "All of it on real digits: gatecli demo. All commands: gatecli --help",
)


class _Plain:
    """Shows help as it is written, [brackets] too, and errors in printable characters."""

    def format_help(self, context: Any, formatter: Any) -> None:
        super(_Plain, _escaped(self)).format_help(context, formatter)  # type: ignore[misc]

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Names of commands and options, with help texts that shells show as they are."""
        found: list[Any] = super().shell_complete(ctx, incomplete)  # type: ignore[misc]
        for each in found:
            each.help = _escaped_text(each.help)
        return found

    def parse_args(self, context: Any, args: list[str]) -> list[str]:
        try:
            rest: list[str] = super().parse_args(context, args)  # type: ignore[misc]
        except Exception as error:
            if hasattr(error, "message"):
                error.message = printable(error.message)
            raise
        return rest


class PlainCommand(_Plain, typer.core.TyperCommand):
    """A command in plain text."""


class PlainGroup(_Plain, typer.core.TyperGroup):
    """The program in plain text."""


def _escaped(shown: Any) -> Any:
    """A copy of a command, or of a parameter, whose help rich does not take for markup."""
    shown = copy.copy(shown)
    if getattr(shown, "help", None):
        shown.help = _escaped_text(shown.help)
    if hasattr(shown, "params"):
        shown.params = [_escaped(each) for each in shown.params]
    if hasattr(shown, "commands"):
        shown.commands = {name: _escaped(each) for name, each in shown.commands.items()}
    return shown


def _escaped_text(help: str | None) -> str | None:
    from rich.markup import escape

    return escape(help) if MARKUP and help else help


app = typer.Typer(
    cls=PlainGroup,
    name="gatecli",
    help=(
        "Put gates into a trained image classifier, train them, and remove what never runs:"
        " smaller, really faster, with an honest table."
    ),
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "attach": attach.attach,
    "finetune": finetune.finetune,
    "calibrate": calibrate.calibrate,
    "price": price.price,
    "prune": prune.prune,
    "profile": profile.profile,
    "eval": evaluate.evaluate,
    "export": export.export,
    "run": run.run,
    "gates": gates.gates,
    "report": report.report,
    "inspect": inspect.inspect,
    "methods": methods.methods,
    "log": state.log,
    "use": state.use,
    "slim": slim.slim,
    "replay": replay.replay,
    "demo": demo.demo,
    "doctor": doctor.doctor,
}
for name, body in COMMANDS.items():
    app.command(name, cls=PlainCommand)(command(body))


def _version(asked: bool) -> None:  # noqa: FBT001 - typer calls it
    if asked:
        from gatecli import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        for line in ROAD:
            show(line)


def start() -> None:
    """Run the program in a process of its own, and end it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(app(prog_name="gatecli"))  # however it was started: completion is by that name
    except SystemExit as end:
        several.leave(end.code)
        raise
    except Exception as error:  # with --debug
        text = "".join(traceback.format_exception(error))
        for line in text.splitlines():
            tell(line)
        sys.exit(1)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the work is done: nothing is left to say
