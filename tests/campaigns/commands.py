"""gatecli's commands: in this process, and judged by what they print."""

from __future__ import annotations

from dataclasses import dataclass

from typer.testing import CliRunner

from campaigns.outcome import FAILED, REFUSED, RIGHT
from gatecli.cli.app import app

LONGEST = 600 + len("error: ")


@dataclass(frozen=True, kw_only=True)
class Done:
    """A command's exit code and what it printed."""

    code: int
    out: str
    err: str
    escaped: str = ""

    def judge(self) -> tuple[str, str]:
        """Verdict and detail: it worked, it refused in one clear line, or it failed."""
        if self.escaped:
            return FAILED, self.escaped
        if self.code == 0:
            return RIGHT, ""
        if self.code == 2:
            return REFUSED, "usage"
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        last = errors[-1] if errors else self.err[-200:]
        fault = _fault(self.code, self.err, errors)
        return (FAILED, f"{fault}: {last}") if fault else (REFUSED, last)


def command(*args: object) -> Done:
    """Run `gatecli ARGS` here."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="gatecli")
    error = result.exception
    escaped = "" if error is None or isinstance(error, SystemExit) else repr(error)
    return Done(code=result.exit_code, out=result.stdout, err=result.stderr, escaped=escaped)


def _fault(code: int, err: str, errors: list[str]) -> str:
    """What is wrong with a refusal; empty where nothing is."""
    if code != 1:
        return f"exit code {code}"
    if "a bug in gatecli" in err or "Traceback" in err:
        return "said to be a bug"
    if len(errors) != 1 or not err.rstrip("\n").endswith(errors[0]):
        return "not one line"
    if len(errors[0]) > LONGEST:
        return f"a line of {len(errors[0])} characters"
    return "" if errors[0].isprintable() else "a line that is not printable"
