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


def schedule(epochs: object, bn_batches: int) -> list[object]:
    """finetune's options for small networks, with statistics estimated anew from these batches."""
    how = ["--lr", 0.05, "--batch-size", 64, "--schedule", "cosine"]
    return ["--epochs", epochs, *how, "--bn-batches", bn_batches]


def milliseconds(row: dict[str, Any]) -> str:
    """A row of profile: its latency at batch 1 and 32."""
    return " / ".join(f"{row['latency_ms'][size]['median']:.1f}" for size in ("1", "32"))
