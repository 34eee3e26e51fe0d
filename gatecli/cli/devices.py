"""What --device names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gatecli.errors import SettingError

if TYPE_CHECKING:
    import torch

__all__ = ["device_named"]


def device_named(name: str) -> torch.device:
    """Return the device that --device names.

    Args:
        name: auto (a GPU where there is one), cpu, cuda, cuda:INDEX or mps.

    Raises:
        SettingError: It is none of these, or not in this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if kind not in there or (index and not index.isdecimal()):
        raise SettingError(
            f"expected --device to be auto, cpu, cuda, cuda:INDEX or mps, but got `{name}`"
        )
    if int(index or 0) >= there[kind]:
        raise SettingError(
            f"expected --device to be there, but got `{name}` and this machine has {there[kind]}"
            f" {kind} devices"
        )
    return torch.device(name)
