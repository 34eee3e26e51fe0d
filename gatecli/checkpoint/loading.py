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
from gatecli.architectures.identify import Found
from gatecli.architectures.wanted import Wanted
from gatecli.checkpoint.atomic import check_name
from gatecli.checkpoint.choosing import choose
from gatecli.checkpoint.formats import file_sha256, header_fits, read_file
from gatecli.checkpoint.replay import fill, replayed
from gatecli.checkpoint.state_dicts import check_sizes
from gatecli.errors import ArchitectureError, CheckpointError, GatecliError
from gatecli.network import Network
from gatecli.network.counting import costs_need_values
from gatecli.traced.recipe import InputSpec, Recipe, Source

__all__ = [
    "KEY",
    "Reading",
    "load",
    "read",
    "read_own",
    "read_recipe",
]

KEY = "gatecli"  # of the recipe in a file's metadata
ONE_NETWORK = "a checkpoint of gatecli's own holds one network: --key and --prefix say nothing here"


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
        leaves: patterns of module paths that tracing keeps whole.
        key: the keys in the file that lead to the network, joined by dots; empty: found.
        prefix: of the names of the network's tensors; empty: found.
    """

    arch: str | None = None
    arch_args: Mapping[str, Any] | None = None
    trust_pickle: bool = False
    input_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    leaves: Sequence[str] = ()
    key: str = ""
    prefix: str = ""


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
        notes = [ONE_NETWORK] if how.key or how.prefix else []
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
    """What a plain checkpoint holds, and the file that it is from.

    `sha256` is empty where a library has built it.
    """

    held: Any
    sha256: str
    size_bytes: int


def _read_plain(path: Path, how: Reading) -> tuple[Network, list[str]]:
    if _names_a_library(path):
        plain, how = _pretrained(str(path), how)
    else:
        held = read_file(path, trust_pickle=how.trust_pickle)
        size_bytes = path.stat().st_size
        plain = _Plain(held=held, sha256=file_sha256(path), size_bytes=size_bytes)
    wanted = Wanted(arch=how.arch, args=dict(how.arch_args or {}))
    chosen = choose(path, plain.held, wanted, how.key, how.prefix)
    found = chosen.found
    source = Source(
        arch=found.arch,
        arch_args=dict(found.args),
        names=dict(found.names),
        file=path.name,
        sha256=plain.sha256,
        file_bytes=plain.size_bytes,
        leaves=list(how.leaves),
        key=chosen.key,
        prefix=chosen.prefix,
    )
    network, notes = replayed(Recipe(source=source, input=_input(found, how)))
    fill(network, chosen.tensors, path, strict=False)
    source = replace(
        source, params=network.params, macs=network.macs_dense, num_classes=network.num_classes
    )
    network.recipe = replace(network.recipe, source=source)
    guesses = _guess_input(network, how) if is_callable_name(found.arch) else []
    return network, [*chosen.notes, *found.notes, *guesses, *notes]


def _input(found: Found, how: Reading) -> InputSpec:
    channels = found.channels
    if is_callable_name(found.arch):
        channels = 0  # the network's first convolution says how many
    return InputSpec(
        size=how.input_size or (found.input_size, found.input_size),
        channels=channels,
        mean=how.mean or found.mean,
        std=how.std or found.std,
    )


def _guess_input(network: Network, how: Reading) -> list[str]:
    """Notes on what is taken for granted of the images of a user's own network.

    ImageNet's normalisation is one of three channels: with others the data set's own is meant.
    """
    spec, notes = network.input, []
    if how.input_size is None:
        height, width = spec.size
        notes.append(f"images are taken to be {height}x{width} (if not: --input-size)")
    if how.mean is not None and how.std is not None:
        return notes
    if spec.channels == 3:
        return [*notes, "their mean and std are taken to be ImageNet's (if not: --mean, --std)"]
    network.recipe = replace(network.recipe, input=replace(spec, mean=how.mean, std=how.std))
    return notes


def _names_a_library(path: Path) -> bool:
    return str(path).startswith(("torchvision:", "timm:")) and not path.exists()


def _pretrained(name: str, how: Reading) -> tuple[_Plain, Reading]:
    """A library's own network, and how it is to be read."""
    model = build_pretrained(name)
    tensors = model.state_dict()
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    args = {**switches(name, model), **(how.arch_args or {})}
    plain = _Plain(held=tensors, sha256="", size_bytes=size_bytes)
    return plain, replace(how, arch=how.arch or name, arch_args=args)


def read_own(path: Path, recipe: Recipe, how: Reading) -> Network:
    """The network in one of gatecli's own checkpoints, whose recipe has been read."""
    _check_arch(path, recipe.source.arch, how.arch)
    recipe = replace(recipe, input=_own_input(path, recipe.input, how))
    tensors = _own_tensors(path)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    pruned = any(step.op == "prune" for step in recipe.steps)
    try:
        with at_most(*limits.network(len(tensors), numbers, pruned=pruned)):
            network, _ = replayed(recipe)
    except GatecliError as error:
        raise type(error)(f"{path.name}: {error}") from error
    except Exception as error:  # whatever a damaged recipe may bring a replay to
        raise CheckpointError(
            f"{path.name} has steps that cannot be replayed ({_line(error)}): the file is damaged"
        ) from error
    fill(network, tensors, path, strict=True)
    if costs_need_values(network.traced):
        network.recount()
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


def _own_input(path: Path, recorded: InputSpec, how: Reading) -> InputSpec:
    """The images that the network takes.

    Raises:
        CheckpointError: the file asks for larger ones than are allowed.
    """
    height, width = recorded.size
    if how.input_size is None and height * width > limits.INPUT_PIXELS:
        raise CheckpointError(
            f"{path.name} says that its images have {height} x {width} pixels, which are more than"
            f" {limits.INPUT_PIXELS:,}: if they do, say so with --input-size {height}x{width}"
        )
    return replace(
        recorded,
        size=how.input_size or recorded.size,
        mean=how.mean or recorded.mean,
        std=how.std or recorded.std,
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
