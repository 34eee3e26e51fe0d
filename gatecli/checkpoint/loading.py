"""Read a network from any checkpoint: gatecli's own by its recipe, a plain one by its tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from gatecli import limits
from gatecli.architectures.build import at_most, build_pretrained, is_callable_name, switches
from gatecli.architectures.identify import Found, found_for, identify
from gatecli.checkpoint.atomic import check_name
from gatecli.checkpoint.formats import file_sha256, header_fits, read_tensors
from gatecli.checkpoint.pictures import assumptions, input_of, recorded_input
from gatecli.checkpoint.replay import fill, replayed
from gatecli.checkpoint.state_dicts import check_sizes
from gatecli.errors import ArchitectureError, CheckpointError, GatecliError
from gatecli.network import Network
from gatecli.traced.recipe import Recipe, Source

KEY = "gatecli"  # of the recipe in a file's metadata


@dataclass(frozen=True)
class Reading:
    """What the user says about a checkpoint.

    Attributes:
        arch: the architecture; None: find it.
        arch_args: its arguments.
        trust_pickle: whether code in the file may run.
        input_size: (height, width) of its images in pixels; None, as below: as recorded.
        mean: of its images' normalisation.
        std: of its images' normalisation.
        resize: what image files are scaled to before they are cropped: (shorter side,), or exactly
            (height, width).
        crop: the share of the scaled picture that is cut out.
        interpolation: how pictures are scaled.
        class_order: of an image folder's classes: names, natural or file.
        leaves: patterns of module paths that tracing keeps whole.
    """

    arch: str | None = None
    arch_args: Mapping[str, Any] | None = None
    trust_pickle: bool = False
    input_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: tuple[int, ...] | None = None
    crop: float | None = None
    interpolation: str | None = None
    class_order: str | None = None
    leaves: Sequence[str] = ()


def load(path: str | os.PathLike[str], arch: str | None = None, **how: Any) -> Network:
    """Load a checkpoint, gatecli's own or a plain one.

    Args:
        path: the file.
        arch: the architecture, needed where the file names a callable (`package.module:callable`),
            which is never imported on the file's word.
        how: further fields of `Reading`.

    Returns:
        The network in evaluation mode. It really skips.

    Raises:
        CheckpointError: the file cannot be read.
        ArchitectureError: its architecture is not known, or another.
    """
    return read(Path(path), Reading(arch=arch, **how))[0].eval()


def read(path: Path, how: Reading = Reading()) -> tuple[Network, list[str]]:
    """The network in a file, in evaluation mode, and notes for people on what had to be assumed."""
    recipe = read_recipe(path)
    if recipe is None:
        network, notes = _read_plain(path, how)
    else:
        network = read_own(path, recipe, how)
        notes = []
    return network, [*notes, *_uncounted(network)]


def _uncounted(network: Network) -> list[str]:
    unknown = [f"`{name}`" for name in network.uncounted]
    if not unknown:
        return []
    if len(unknown) > 6:
        unknown[6:] = ["..."]
    return [f"MACs leave out {', '.join(unknown)}: how much that costs is not known"]


def read_recipe(path: Path) -> Recipe | None:
    """The recipe in a gatecli checkpoint; None for any other file, readable or not."""
    check_name(path)
    if not path.is_file() or not header_fits(path):
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError):
        return None
    return Recipe.from_json(metadata[KEY], path.name) if KEY in metadata else None


@dataclass(frozen=True, kw_only=True)
class _Plain:
    """The tensors of a plain checkpoint, and the file that they are from.

    `sha256` is empty where a library has built them.
    """

    tensors: dict[str, Tensor]
    sha256: str
    size_bytes: int


def _read_plain(path: Path, how: Reading) -> tuple[Network, list[str]]:
    if _names_a_library(path):
        plain, how = _pretrained(str(path), how)
    else:
        tensors = read_tensors(path, how.trust_pickle)
        size_bytes = path.stat().st_size
        plain = _Plain(tensors=tensors, sha256=file_sha256(path), size_bytes=size_bytes)
    shapes = {name: tuple(tensor.shape) for name, tensor in plain.tensors.items()}
    found = _find(path, shapes, how)
    source = Source(
        arch=found.arch,
        arch_args=dict(found.args),
        names=dict(found.names),
        file=path.name,
        sha256=plain.sha256,
        file_bytes=plain.size_bytes,
        leaves=list(how.leaves),
    )
    network, notes = replayed(Recipe(source=source, input=input_of(found, how)))
    fill(network, plain.tensors, path, strict=False)
    source = replace(
        source, params=network.params, macs=network.macs_dense, num_classes=network.num_classes
    )
    network.recipe = replace(network.recipe, source=source)
    guesses = assumptions(network) if is_callable_name(found.arch) else []
    return network, [*found.notes, *guesses, *notes]


def _names_a_library(path: Path) -> bool:
    return str(path).startswith(("torchvision:", "timm:")) and not path.exists()


def _pretrained(name: str, how: Reading) -> tuple[_Plain, Reading]:
    """A library's own network, and how it is to be read."""
    model = build_pretrained(name)
    tensors = model.state_dict()
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    args = {**switches(name, model), **(how.arch_args or {})}
    plain = _Plain(tensors=tensors, sha256="", size_bytes=size_bytes)
    return plain, replace(how, arch=how.arch or name, arch_args=args)


def _find(path: Path, shapes: Mapping[str, tuple[int, ...]], how: Reading) -> Found:
    try:
        if how.arch is not None:
            return found_for(how.arch, dict(how.arch_args or {}), shapes)
        found = identify(shapes)
        if not how.arch_args:
            return found
        return found_for(found.arch, {**found.args, **how.arch_args}, shapes)
    except ArchitectureError as error:
        raise ArchitectureError(f"{path.name}: {error}") from error


def read_own(path: Path, recipe: Recipe, how: Reading) -> Network:
    """The network in one of gatecli's own checkpoints, whose recipe has been read."""
    _check_arch(path, recipe.source.arch, how.arch)
    recipe = replace(recipe, input=recorded_input(path, recipe.input, how))
    tensors = _own_tensors(path)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    pruned = any(step.op == "prune" for step in recipe.steps)
    try:
        with at_most(*limits.network(len(tensors), numbers, pruned)):
            network, _ = replayed(recipe)
    except GatecliError as error:
        raise type(error)(f"{path.name}: {error}") from error
    except Exception as error:  # whatever a damaged recipe may bring a replay to
        raise CheckpointError(
            f"{path.name} has steps that cannot be replayed ({_line(error)}): the file is damaged"
        ) from error
    fill(network, tensors, path, strict=True)
    network.recount()  # what some modules cost depends on values: on which connections are the same
    return network


def _check_arch(path: Path, own: str, given: str | None) -> None:
    """Raises an error unless the architecture may be built that the file names."""
    if given is not None and given != own:
        raise ArchitectureError(f"{path.name} was made from `{own}`, but --arch says `{given}`")
    if given is None and is_callable_name(own):
        raise CheckpointError(
            f"{path.name} names its architecture as `{own}`, code that gatecli does not import on a"
            f" file's word: if you trust it, say so with --arch {own} (library: arch=...)"
        )


def _own_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors by the names that the file has, even where all of these begin with `module.`.

    They are copies, as a mapped file may be replaced.
    """
    try:
        found = load_file(path)
        check_sizes(found, path)
        return {name: _copied(tensor) for name, tensor in found.items()}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path.name} is damaged or cut off: {_line(error)}") from error


def _copied(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.to(dtype, copy=True)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
