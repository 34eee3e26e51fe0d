"""What this machine is, as far as a latency depends on it."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["allocator", "describe", "features", "kind", "slow_precision"]

CPUINFO = Path("/proc/cpuinfo")
FAST_BF16 = ("amx_bf16", "avx512_bf16", "bf16")  # flags of Intel and AMD, and of Arm

MAPS = Path("/proc/self/maps")
ALLOCATORS = ("tcmalloc", "jemalloc", "mimalloc")  # as their libraries' names have them

# What makes networks fast, and the flags of which one says that it is there.
FEATURES = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "AMX": ("amx_tile",),
    "NEON": ("asimd",),
    "SVE": ("sve",),
    "bf16": FAST_BF16,
}

VECTORS = ("avx512f", "avx2", "avx", "asimd")  # flags, those of the widest registers first


def describe(device: torch.device | None = None) -> str:
    """The processor's name, for people and to tell machines apart.

    Args:
        device: Where the network is; a GPU's name stands before that of the processor.
    """
    if device is not None and device.type == "cuda":
        import torch

        return f"{torch.cuda.get_device_name(device)}, {describe()}"
    for line in _lines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return " ".join(value.split())
    return platform.processor() or platform.machine()


def kind() -> str:
    """The processor's name with its widest registers: virtual ones have few names."""
    flags = _flags()
    widest = next((each for each in VECTORS if each in flags), "")
    return f"{describe()} ({widest})" if widest else describe()


def features() -> dict[str, bool] | None:
    """Which instructions the processor has, by their names; None: nothing here tells.

    Those of another family of processors are left out.
    """
    flags = _flags()
    if not flags:
        return None
    others = ("AVX2", "AVX-512", "VNNI", "AMX") if "asimd" in flags else ("NEON", "SVE")
    return {
        name: bool(flags & set(found)) for name, found in FEATURES.items() if name not in others
    }


def allocator() -> str:
    """Who allocates memory: a library that was loaded for it, or the system's own."""
    try:
        loaded = MAPS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        loaded = ""
    for name in ALLOCATORS:
        if f"lib{name}" in loaded:
            return name
    return " ".join(platform.libc_ver()).strip() or sys.platform


def slow_precision(precision: str, device: str = "cpu") -> str:
    """What to say before measuring in a precision that this CPU has no instructions for.

    Args:
        precision: What the weights are.
        device: The kind of device that computes; of others than a CPU nothing is said.
    """
    if device != "cpu" or precision != "bf16" or not CPUINFO.exists():
        return ""
    if _flags() & set(FAST_BF16):
        return ""
    return (
        "this CPU has no instructions for bf16 (AMX or AVX512-BF16): it is ten times slower than"
        " fp32 here"
    )


def _flags() -> set[str]:
    for line in _lines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return set(value.split())
    return set()


def _lines() -> list[str]:
    try:
        return CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
