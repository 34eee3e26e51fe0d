"""What a report knows of a checkpoint: the network, its figures, and what images showed."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gatecli.network import Network
from gatecli.network.costs import known_rates
from gatecli.progress import Progress, silent
from gatecli.report.looking import Seen
from gatecli.stages.profile import Profile, profile
from gatecli.stages.subject import Subject, source_of, subject_of

__all__ = ["Material", "material_of", "timed"]

REPEATS = 10  # timed calls of each network
CHUNK = 1 << 20  # bytes hashed at a time


@dataclass(frozen=True, kw_only=True)
class Material:
    """All that a report tells of one checkpoint.

    Attributes:
        name: The file's name.
        place: What commands call it.
        sha256: Of the file; empty where there is none.
        network: What it holds.
        subject: The same with its figures, at the rates that are known.
        source: What it was made of, in figures.
        seen: What images showed; None where there were none.
        blind: Why there were none.
        times: What was timed; None where nothing was.
        seed: Of what is random in drawing.
    """

    name: str
    place: str
    sha256: str
    network: Network
    subject: Subject
    source: Subject
    seen: Seen | None = None
    blind: str = ""
    times: Profile | None = None
    seed: int = 0


def material_of(
    path: Path, network: Network, *, seen: Seen | None = None, blind: str = "", seed: int = 0
) -> Material:
    """Gather what is known of a checkpoint without timing it.

    Args:
        path: The file.
        network: What it holds.
        seen: What images showed.
        blind: Why there were none.
        seed: Of what is random in drawing.

    Raises:
        CheckpointError: Its recipe records something that cannot be.
    """
    source = source_of(network)
    is_file = path.is_file()
    size = path.stat().st_size if is_file else source.file_bytes
    rates = known_rates(network)
    return Material(
        name=path.name,
        place=shlex.quote(str(path)),
        sha256=_hashed(path) if is_file else "",
        network=network,
        subject=subject_of(path.name, network, size, rates),
        source=source,
        seen=seen,
        blind=blind,
        seed=seed,
    )


def timed(material: Material, runtimes: Sequence[str], progress: Progress = silent) -> Profile:
    """Time a checkpoint beside its source, single images, gates deciding by the known rates.

    Args:
        material: Of the checkpoint.
        runtimes: Their names.
        progress: Is told of each call.

    Raises:
        SettingError: There is no such runtime, or it is not installed.
        ExportError: It cannot take the network.
    """
    return profile(
        material.source,
        [material.subject],
        repeats=REPEATS,
        runtimes=runtimes,
        progress=progress,
    )


def _hashed(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            found.update(part)
    return found.hexdigest()
