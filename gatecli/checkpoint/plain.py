"""A plain checkpoint: what it holds, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gatecli.architectures.build import build_pretrained, switches
from gatecli.checkpoint.said.config import said_beside
from gatecli.checkpoint.said.facts import Said
from gatecli.checkpoint.said.folder import HUB_NAMES, listed_weights, weights_at
from gatecli.checkpoint.said.hub import fetched, names_a_hub
from gatecli.checkpoint.said.inside import said_inside

if TYPE_CHECKING:
    from gatecli.checkpoint.loading import Reading

__all__ = ["Plain", "Shapes", "names_a_library", "open_plain"]

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Plain:
    """What a plain checkpoint holds, and what is known beside it.

    Attributes:
        held: all that is in it.
        path: of the file; of shards, of their folder.
        tensors: the network's by name, once it has been found.
        key: the keys in the file that lead to it, joined by dots.
        prefix: what was taken off its tensors' names.
        file: the file's name.
        sha256: of the file; empty where a library has built the tensors.
        size_bytes: its size.
        said: what it says of itself, the binding first.
        module: the network itself, where the file holds it, once it has been found; its code was
            trusted.
        is_pretrained: whether the library that the user names has built it.
        notes: for people.
    """

    held: Any
    path: Path
    file: str
    sha256: str
    size_bytes: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    key: str = ""
    prefix: str = ""
    said: tuple[Said, ...] = ()
    module: nn.Module | None = None
    is_pretrained: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def shapes(self) -> Shapes:
        """The tensors' shapes by name."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def names_a_library(path: Path) -> bool:
    """Whether a checkpoint argument names a library's own pretrained network."""
    return str(path).startswith(("torchvision:", "timm:")) and not path.exists()


def open_plain(path: Path, how: Reading) -> tuple[Plain, Reading]:
    """Read a checkpoint that is none of gatecli's own; and how it is to be read on.

    Raises:
        CheckpointError: it cannot be read.
    """
    if names_a_library(path):
        return _pretrained(str(path), how)
    place = fetched(str(path)) if names_a_hub(path) else path
    weights = weights_at(place)
    content = weights.read(trust_pickle=how.trust_pickle)
    first = weights.files[0]
    notes: list[str] = []
    said = [said_inside(content, _metadata(first))]
    if path != first or _is_hubs(first):
        beside, notes = said_beside(first.parent)
        said.insert(0, beside)
    if weights.again is not None:
        notes.append(f"{weights.again.name} holds the same tensors as {first.name}")
    plain = Plain(
        held=content,
        path=first if weights.index is None else first.parent,
        file=weights.title,
        sha256=weights.sha256(),
        size_bytes=weights.size_bytes,
        said=tuple(each for each in said if each is not None),
        notes=notes,
    )
    return plain, how


def _is_hubs(file: Path) -> bool:
    """Whether a config.json beside a file is about it: by its name, or as it is the only one."""
    if not file.with_name("config.json").is_file():
        return False
    return file.name in HUB_NAMES or listed_weights(file.parent) == [file]


def _metadata(file: Path) -> Mapping[str, str]:
    """The words in a safetensors file's header; none of another's."""
    try:
        with safe_open(file, "pt") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def _pretrained(name: str, how: Reading) -> tuple[Plain, Reading]:
    """A library's own network, and how it is to be read."""
    model = build_pretrained(name)
    tensors = model.state_dict()
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    args = {**switches(name, model), **(how.arch_args or {})}
    plain = Plain(
        held=tensors,
        path=Path(name),
        file=name,
        sha256="",
        size_bytes=size_bytes,
        is_pretrained=True,
    )
    return plain, replace(how, arch=how.arch or name, arch_args=args)
