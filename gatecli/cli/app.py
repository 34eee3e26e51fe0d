"""The command line's wiring: one Typer program, one function a command."""
from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

from gatecli.cli import attach, calibrate, demo, evaluate, export, finetune, gates, inspect, methods, profile, prune, run, state
from gatecli.cli.session import command

app = typer.Typer(
    name="gatecli",
    help="Put gates into a trained image classifier, train them, and remove what never runs: smaller, really faster, with an honest table.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "attach": attach.attach,
    "finetune": finetune.finetune,
    "calibrate": calibrate.calibrate,
    "prune": prune.prune,
    "profile": profile.profile,
    "eval": evaluate.evaluate,
    "export": export.export,
    "run": run.run,
    "gates": gates.gates,
    "inspect": inspect.inspect,
    "methods": methods.methods,
    "log": state.log,
    "use": state.use,
    "demo": demo.demo,
}
for name, body in COMMANDS.items():
    app.command(name)(command(body))


def _version(asked: bool) -> None:
    if asked:
        from gatecli import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _main(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version.")) -> None:
    pass


def main() -> None:
    """The console script."""
    sys.exit(app())
