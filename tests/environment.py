"""A virtual environment with one package, what that requires, and nothing else."""

from __future__ import annotations

import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement


def environment(folder: Path, package: str) -> Path:
    """Make it in `folder`, of links to what is installed here, so that it costs neither time nor a
    network; returns its Python.
    """
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for each in _required(package):
        for name in {file.parts[0] for file in each.files or ()} - {"..", "__pycache__"}:
            link = packages / name
            if not link.exists():  # `nvidia` belongs to several
                link.symlink_to(Path(str(each.locate_file(name))).resolve())
    return folder / "bin" / "python"


def _required(package: str) -> list[Distribution]:
    found: dict[str, Distribution] = {}
    names = [package]
    while names:
        name = names.pop()
        if name not in found:
            found[name] = distribution(name)
            required = [Requirement(line) for line in found[name].requires or ()]
            names += [
                each.name
                for each in required
                if each.marker is None or each.marker.evaluate({"extra": ""})
            ]
    return list(found.values())
