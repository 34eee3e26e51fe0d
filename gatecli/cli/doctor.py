"""gatecli doctor: is all here that gatecli needs, and what can this machine do?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gatecli.cli.render import megabytes, table
from gatecli.cli.session import Session
from gatecli.cli.text import show

if TYPE_CHECKING:
    from gatecli.stages.doctor import Checkup, RuntimeState

__all__ = ["doctor"]


def doctor(session: Session) -> dict[str, Any]:
    """Say what is installed, what this machine can do, and what is missing for what."""
    from gatecli.stages.doctor import check

    session.say("importing torch and torchvision, as every command does")
    found = check()
    if not session.json_:
        _print(session, found)
    if found.broken:
        session.fail_after = f"{'; '.join(found.broken)}: {found.repair}"
    return asdict(found)


def _print(session: Session, found: Checkup) -> None:
    table(session, "", ("<", "<"), list(_facts(found)))
    runtimes = [_runtime(each) for each in found.runtimes]
    table(session, "runtimes", ("<--runtime", "<precisions", "<missing"), runtimes)
    extras = [
        (each.name, each.purpose, ", ".join(each.missing) or "nothing") for each in found.extras
    ]
    if extras:
        table(session, "extras", ("<extra", "<for", "<missing"), extras)
    lacking = [each.name for each in found.extras if each.missing]
    if lacking:
        show(f"all that is missing: pip install 'gatecli[{','.join(lacking)}]'")


def _facts(found: Checkup) -> Iterator[tuple[str, str]]:
    """The rows about versions and the machine."""
    for name, version in found.versions.items():
        yield name, version or "cannot be imported"
    yield "system", found.platform
    processor = found.processor
    yield "processor", f"{processor.name}; {processor.usable} of {processor.cores} cores usable"
    yield "instructions", _features(processor.features)
    said = found.threads.omp_num_threads
    told = "" if said is None else f" (OMP_NUM_THREADS={said})"
    yield "threads", f"{found.threads.torch or 'not known'}{told}"
    yield "allocator", found.allocator
    yield "GPU", ", ".join(_gpu(each) for each in found.gpus) or _no_gpu(found.cuda)


def _features(features: dict[str, bool] | None) -> str:
    if features is None:
        return "not known"
    there = [name for name, has in features.items() if has]
    absent = [name for name, has in features.items() if not has]
    return ", ".join(there) + (f"; no {', '.join(absent)}" if absent else "")


def _gpu(gpu: dict[str, Any]) -> str:
    memory = gpu["memory_bytes"]
    return f"{gpu['name']} ({megabytes(memory)})" if memory else str(gpu["name"])


def _no_gpu(cuda: str | None) -> str:
    return f"none (torch is built for CUDA {cuda})" if cuda else "none"


def _runtime(state: RuntimeState) -> tuple[str, str, str]:
    precisions = [
        f"{each} (slow here)" if each in state.slow else each for each in state.precisions
    ]
    missing = state.missing or "nothing"
    if state.install:
        missing += f": {state.install}"
    return state.name, ", ".join(precisions), missing
