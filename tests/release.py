"""Try what `make release` has built: is all of it there, and does it run where nothing else is?

    python tests/release.py dist

makes an environment of its own, installs the wheel with the extra `demo` from the package index
(some gigabytes, for torch), and runs `gatecli doctor` and `gatecli demo` in it.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

__all__ = ["lacking", "main"]

ROOT = Path(__file__).parent.parent


def lacking(dist: Path) -> list[str]:
    """Files under version control that the source distribution, or the wheel, has not."""
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tracked = set(listed.stdout.splitlines())
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        installed = set(archive.namelist())
    package = {name for name in tracked if name.startswith("gatecli/")}
    return sorted((tracked - packed) | (package - installed))


def main() -> None:
    """Compare lists of files, then install and run."""
    dist = Path(sys.argv[1]).resolve()
    left_out = lacking(dist)
    if left_out:
        sys.exit(f"not in the packages: {', '.join(left_out)}")
    (wheel,) = dist.glob("*.whl")
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        commands = Path(folder, "bin")
        subprocess.run([commands / "pip", "install", "--quiet", f"{wheel}[demo]"], check=True)
        for command in ("doctor", "demo"):
            subprocess.run([commands / "gatecli", command], cwd=folder, check=True)


if __name__ == "__main__":
    main()
