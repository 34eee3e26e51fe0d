"""What is installed, what this machine can do, and what is missing for what."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from typing import Any

import gatecli
from gatecli.runtimes import machine, registry
from gatecli.stages import installed, torch_facts
from gatecli.stages.installed import Extra

__all__ = ["Checkup", "Processor", "RuntimeState", "Threads", "check"]


@dataclass(frozen=True, kw_only=True)
class Processor:
    """The processor.

    Attributes:
        name: As the system calls it.
        cores: Logical ones.
        usable: Those that this process may use.
        features: Instructions that make networks fast {name: there}; None: nothing here tells.
    """

    name: str
    cores: int
    usable: int
    features: dict[str, bool] | None


@dataclass(frozen=True, kw_only=True)
class Threads:
    """How many threads compute.

    Attributes:
        torch: What torch takes without --threads; None: torch cannot be imported.
        omp_num_threads: The variable of the environment; None: it is not set.
    """

    torch: int | None
    omp_num_threads: str | None


@dataclass(frozen=True, kw_only=True)
class RuntimeState:
    """One runtime on this machine.

    Attributes:
        name: As --runtime takes it.
        about: What it is.
        precisions: Those that it has.
        slow: Those of them that this processor has no instructions for.
        missing: What it lacks here; None: nothing.
        install: The command that brings it; None: there is no need, or no such command.
    """

    name: str
    about: str
    precisions: tuple[str, ...]
    slow: tuple[str, ...]
    missing: str | None
    install: str | None


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """All that `gatecli doctor` says.

    Attributes:
        versions: Of gatecli, Python, torch and torchvision; None: it cannot be imported.
        platform: The system.
        processor: Its processor.
        threads: How many threads compute.
        allocator: Who allocates memory.
        gpus: [{`name`, `memory_bytes`}]; of Apple's the memory is None.
        cuda: The version of CUDA that torch was built for, or None.
        runtimes: Where networks can run.
        extras: What else can be installed, and what of it is missing.
        broken: What is wrong with what every command needs; empty: nothing.
        repair: The command that may mend it; None: nothing is broken.
    """

    versions: dict[str, str | None]
    platform: str
    processor: Processor
    threads: Threads
    allocator: str
    gpus: tuple[dict[str, Any], ...]
    cuda: str | None
    runtimes: tuple[RuntimeState, ...]
    extras: tuple[Extra, ...]
    broken: tuple[str, ...]
    repair: str | None


def check() -> Checkup:
    """Look at this machine and at what is installed. No network is built."""
    torch = torch_facts.ask()
    broken = [f"{name} cannot be imported ({why})" for name, why in torch["errors"].items()]
    broken += [f"gatecli needs {each}" for each in installed.core_missing()]
    versions: dict[str, str | None] = {
        "gatecli": gatecli.__version__,
        "python": platform.python_version(),
    }
    for name in torch_facts.LIBRARIES:
        versions[name] = torch["versions"].get(name)
    return Checkup(
        versions=versions,
        platform=platform.platform(),
        processor=_processor(),
        threads=Threads(
            torch=torch.get("threads"), omp_num_threads=os.environ.get("OMP_NUM_THREADS")
        ),
        allocator=machine.allocator(),
        gpus=tuple(torch.get("gpus", ())),
        cuda=torch.get("cuda"),
        runtimes=tuple(_runtime(name) for name in registry.names()),
        extras=tuple(installed.extras()),
        broken=tuple(broken),
        repair=_repair(torch["errors"]) if broken else None,
    )


def _processor() -> Processor:
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else cores
    return Processor(
        name=machine.describe(), cores=cores, usable=usable, features=machine.features()
    )


def _runtime(name: str) -> RuntimeState:
    runtime = registry.get(name)
    missing = runtime.missing() or None
    can_install = missing and runtime.extra
    return RuntimeState(
        name=name,
        about=runtime.about,
        precisions=runtime.precisions,
        slow=tuple(each for each in runtime.precisions if machine.slow_precision(each)),
        missing=missing,
        install=f"pip install '{installed.NAME}[{runtime.extra}]'" if can_install else None,
    )


def _repair(errors: dict[str, str]) -> str:
    """What may mend it: torch and torchvision have to fit one another."""
    if errors:
        return f"pip install --upgrade --force-reinstall {' '.join(torch_facts.LIBRARIES)}"
    return f"pip install --upgrade {installed.NAME}"
