"""Rewrite the shipped table of architectures.

Run it (python -m gatecli.architectures.generate) when torchvision or a file in cifar/ has other
networks; the same torchvision gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchvision import models

from gatecli.architectures.arguments import accepted_args
from gatecli.architectures.cifar import NETWORKS
from gatecli.architectures.table import make_row, pack

__all__ = ["listed", "main"]

# Arguments that tensors show.
VARIANTS = {"stem": "cifar", "aux_logits": False, "shortcut": "pad", "narrow": True}
TABLE = Path(__file__).with_name("table.json.gz")


def listed() -> Iterator[tuple[str, dict[str, Any]]]:
    """The architecture and arguments of every row."""
    names = [
        *(f"torchvision:{name}" for name in models.list_models(module=models)),
        *(f"cifar:{name}" for name in NETWORKS),
    ]
    for arch in names:
        yield arch, {}
        accepted = accepted_args(arch) or {}
        for name, value in VARIANTS.items():
            if name in accepted:
                yield arch, {name: value}


def main() -> None:
    """Write the table beside this file."""
    data = pack([make_row(arch, args) for arch, args in listed()])
    TABLE.write_bytes(data)
    print(f"{TABLE}: {len(list(listed()))} rows, {len(data)} bytes")


if __name__ == "__main__":
    main()
