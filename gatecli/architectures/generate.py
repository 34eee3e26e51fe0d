"""Rewrite the shipped table of architectures: python -m gatecli.architectures.generate

Run it after adding a name here, or when torchvision changes its networks; the same torchvision gives the same bytes.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gatecli.architectures.cifar import DEPTHS
from gatecli.architectures.rows import make_row, pack

RESNETS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
OTHERS: tuple[str, ...] = ()  # torchvision classifiers that are no ResNets: one row each
TABLE = Path(__file__).with_name("table.json.gz")


def listed() -> Iterator[tuple[str, dict[str, Any]]]:
    """The architecture and arguments of every row."""
    for name in RESNETS:
        yield f"torchvision:{name}", {}
        yield f"torchvision:{name}", {"stem": "cifar"}
    for name in OTHERS:
        yield f"torchvision:{name}", {}
    for depth in DEPTHS:
        yield f"cifar:resnet{depth}", {}
        yield f"cifar:resnet{depth}", {"shortcut": "pad"}


def main() -> None:
    data = pack([make_row(arch, args) for arch, args in listed()])
    TABLE.write_bytes(data)
    print(f"{TABLE}: {len(list(listed()))} rows, {len(data)} bytes")


if __name__ == "__main__":
    main()
