"""hf-hub:ORG/NAME: a hub's folder, fetched where there is a network."""

from __future__ import annotations

import re
from pathlib import Path

from gatecli.checkpoint.said.config import CONFIG, PREPROCESSOR
from gatecli.errors import CheckpointError, reason

__all__ = ["HUB", "fetched", "names_a_hub"]

HUB = "hf-hub:"
NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", re.ASCII)
WANTED = [CONFIG, PREPROCESSOR, "model*.safetensors", "model.safetensors.index.json"]
OLD_WANTED = [CONFIG, PREPROCESSOR, "pytorch_model*.bin", "pytorch_model.bin.index.json"]


def names_a_hub(path: Path) -> bool:
    """Whether a user's checkpoint argument names a hub's folder rather than a file."""
    return str(path).startswith(HUB) and not path.exists()


def fetched(name: str) -> Path:
    """The local folder of a hub's one, downloaded unless it is in the cache.

    Only what the user types comes here: no file can cause a download.

    Raises:
        CheckpointError: the name is none, a package is missing, or it cannot be had.
    """
    repository = name.removeprefix(HUB)
    if not NAME.fullmatch(repository):
        raise CheckpointError(f"expected {HUB}ORGANISATION/NAME but got `{name}`")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"`{name}` needs huggingface_hub: pip install 'gatecli[timm]' (or download the folder"
            " elsewhere, and name it)"
        ) from error
    where, _, revision = repository.partition("@")
    try:
        for patterns in (WANTED, OLD_WANTED):
            folder = Path(
                snapshot_download(where, revision=revision or None, allow_patterns=patterns)
            )
            if any(folder.glob("model*.safetensors")):
                break
    except Exception as error:  # the network, the disk, the hub's client: each has its own
        raise CheckpointError(
            f"`{name}` cannot be had from the hub ({reason(error, 160)}): download its folder"
            " elsewhere, with config.json and model.safetensors, and name that"
        ) from error
    return folder
