"""What a file says of its network, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gatecli.traced.recipe import SaidInput

__all__ = ["Said"]


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a file, or what lies beside it, says.

    Attributes:
        where: what says it, as "config.json".
        library: whose name `arch` is: timm, torchvision, transformers; empty: not said.
        arch: the architecture's name there; empty: not said.
        args: its arguments; for transformers its whole config.
        num_classes: how many classes.
        input: what it says of images.
        is_binding: whether tensors that contradict it are refused; else it is passed over.
        odd: keys whose values make no sense.
    """

    where: str
    library: str = ""
    arch: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    num_classes: int | None = None
    input: SaidInput | None = None
    is_binding: bool = False
    odd: tuple[str, ...] = ()
