"""A network, or a file that export wrote, ready to be asked about single images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gatecli.exporting.facts import Facts

__all__ = ["Answer", "Runner"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is said of one image.

    Attributes:
        logits: (K,), float32.
        exit: number of the exit taken, the number of exits for none; None: the file does not say.
        skipped: the sites whose gates were all closed; None: the file does not say.
    """

    logits: Tensor
    exit: int | None
    skipped: list[str] | None


@dataclass(frozen=True, kw_only=True)
class Runner:
    """What answers single images (1, C, H, W), normalised.

    Attributes:
        answer: computes everything that is told of an image.
        call: computes the logits alone, for timing.
        facts: what is known of the network.
    """

    answer: Callable[[Tensor], Answer]
    call: Callable[[Tensor], Any]
    facts: Facts
