"""What a shell completes, and that none of it imports torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from commandline import run

import gatecli
from gatecli import methods
from gatecli.cli.app import COMMANDS, app
from gatecli.cli.completion import WORDS
from gatecli.cli.words import text
from gatecli.kinds import registry

ROOT = Path(gatecli.__file__).parent.parent
NO_TORCH = """import sys
for name in ("torch", "numpy", "safetensors", "fvcore"):
    sys.modules[name] = None  # whoever imports it fails
from gatecli.cli.app import main
main()
"""


def program(*line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, where torch cannot be imported."""
    return subprocess.run(
        [sys.executable, "-c", NO_TORCH, *line],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
    )


def completed(line: str) -> list[str]:
    """What bash is offered for the last word of a line."""
    words = line.split(" ")
    done = program(
        COMP_WORDS=" ".join(words),
        COMP_CWORD=str(len(words) - 1),
        _GATECLI_COMPLETE="complete_bash",
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


def test_the_words_are_those_of_the_registries() -> None:
    """Where they are not: python -m gatecli.cli.words."""
    assert WORDS.read_text(encoding="utf-8") == text()


def test_commands_and_options() -> None:
    assert set(completed("gatecli ")) == set(COMMANDS)
    assert completed("gatecli att") == ["attach"]
    assert "--method" in completed("gatecli attach --m")


def test_methods_and_kinds() -> None:
    assert completed("gatecli attach --method ") == methods.names()
    assert completed("gatecli methods cg") == ["cgnet"]
    assert completed("gatecli attach --kind ") == registry.names()
    assert completed("gatecli attach --kind block,fil") == ["block,filter"]


def test_settings_are_those_of_the_method() -> None:
    assert completed("gatecli attach --method gateconnect --set fan") == ["fan_in="]
    assert completed("gatecli attach --method cgnet --set fan") == []


@pytest.mark.parametrize("line", ["gatecli prune re", "gatecli export --split "])
def test_the_shell_completes_files(line: str) -> None:
    """Nothing is offered, so that the shell goes on with names of files."""
    assert completed(line) == []


def test_zsh_shows_help_with_its_brackets() -> None:
    done = program(
        _TYPER_COMPLETE_ARGS="gatecli finetune --tensorb", _GATECLI_COMPLETE="complete_zsh"
    )
    assert "gatecli[report]" in done.stdout and '"--tensorboard"' in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_is_one_for_that_shell(shell: str) -> None:
    done = program("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0 and f"_GATECLI_COMPLETE=complete_{shell}" in done.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.stdout, text=True, check=True)


def test_gatecli_alone_shows_the_road() -> None:
    done = program()
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert len(lines) == 5 and max(map(len, lines)) <= 80
    for command in ("attach", "finetune", "prune", "profile", "export", "methods", "demo"):
        assert command in COMMANDS and f"gatecli {command}" in done.stdout
    assert "gatecli --help" in lines[-1]


def test_an_unknown_command_is_a_usage_error() -> None:
    assert run("no-such-command").code == 2


def test_all_help_texts_keep_their_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in brackets in an option's help is on the screen."""
    monkeypatch.setenv("COLUMNS", "400")
    seen = 0
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        texts = [getattr(each, "help", None) or "" for each in command.params]
        brackets = re.findall(r"\[[^\]]*\]", " ".join([command.help or "", *texts]))
        if brackets:
            screen = run(name, "--help").out
            assert all(each in screen for each in brackets), (name, brackets)
        seen += len(brackets)
    assert seen


@pytest.mark.parametrize("line", ["eval --[bold]x", "[red]x"])
def test_usage_errors_keep_their_brackets(line: str) -> None:
    done = run(*line.split())
    assert done.code == 2 and line.split()[-1] in done.err
