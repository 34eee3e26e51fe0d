"""Run gatecli's commands as a user would, and read what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def gatecli(*words: object) -> dict[str, Any]:
    """Run a command with --json; its notes go to stderr as they come."""
    line = [str(word) for word in words]
    print("$ gatecli", *line, file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "gatecli", *line, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found
