"""Read a network from any checkpoint: gatecli's own by its recipe, a plain one by its tensors."""

from __future__ import annotations

import functools
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
from gatecli.architectures.build import at_most, is_callable_name
from gatecli.architectures.identify import Found
from gatecli.checkpoint.atomic import check_name
from gatecli.checkpoint.candidates import collected
from gatecli.checkpoint.evidence import SOFTMAX, ends_in_softmax, found_by_class, witness
from gatecli.checkpoint.finding import find
from gatecli.checkpoint.formats import header_fits
from gatecli.checkpoint.pictures import assumptions, input_of, recorded_input
from gatecli.checkpoint.plain import Plain, open_plain
from gatecli.checkpoint.replay import fill, replayed
from gatecli.checkpoint.said.note import said_note
from gatecli.checkpoint.state_dicts import check_sizes, dense
from gatecli.errors import ArchitectureError, CheckpointError, GatecliError
from gatecli.network import Network
from gatecli.network.counting import costs_need_values
from gatecli.network.precision import in_precision
from gatecli.traced.recipe import Recipe, Source

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
        resize: what image files are scaled to before they are cropped: (shorter side,), or exactly
            (height, width).
        crop: the share of the scaled picture that is cut out.
        interpolation: how pictures are scaled.
        class_order: of an image folder's classes: names, natural or file.
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
    resize: tuple[int, ...] | None = None
    crop: float | None = None
    interpolation: str | None = None
    class_order: str | None = None
    leaves: Sequence[str] = ()
    key: str = ""
    prefix: str = ""


def load(
    path: str | os.PathLike[str], arch: str | None = None, *, precision: str = "fp32", **how: Any
) -> Network:
    """Load a checkpoint, gatecli's own or a plain one.

    Args:
        path: the file.
        arch: the architecture, needed where the file names a callable (`package.module:callable`),
            which is never imported on the file's word.
        precision: what its weights are while it runs: fp32, or bf16, which halves memory, and time
            on CPUs with instructions for it. A network in bf16 is for running alone.
        how: further fields of `Reading`.

    Returns:
        The network in evaluation mode. It really skips.

    Raises:
        CheckpointError: the file cannot be read.
        ArchitectureError: its architecture is not known, or another.
        SettingError: there is no such precision.
    """
    return in_precision(read(Path(path), Reading(arch=arch, **how))[0].eval(), precision)


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


def _read_plain(path: Path, how: Reading) -> tuple[Network, list[str]]:
    plain, how = open_plain(path, how)
    try:
        found, plain = _found(plain, how)
        build = functools.partial(_built, plain=plain, how=how, path=path)
        built = None
        proof: list[str] = []
        if plain.module is not None:
            witnessed = witness(plain.module, plain, found, build, told=how.arch is not None)
            found, built = witnessed.found, witnessed.built
            proof = [witnessed.note]
    except ArchitectureError as error:
        raise type(error)(f"{path.name}: {error}") from error
    network, dropped = built or build(found)
    notes = [*plain.notes, *found.notes, *proof]
    notes += [*said_note(found, how), *_assumed(network, found), *dropped]
    if ends_in_softmax(network):
        network, _ = build(found, softmax=True)
        notes.append(SOFTMAX)
    return network, notes


def _found(plain: Plain, how: Reading) -> tuple[Found, Plain]:
    """The architecture, by the tensors, or else by the class of the module that the file holds."""
    try:
        return find(plain, how)
    except ArchitectureError:
        modules = [each for each in collected(plain.held) if each.module is not None]
        if len(modules) != 1 or modules[0].module is None or how.arch is not None:
            raise
        tensors = dense(modules[0].tensors, plain.path)
        own = replace(plain, tensors=tensors, module=modules[0].module)
        by_class = found_by_class(modules[0].module, own)
        if by_class is None:
            raise
        return by_class, own


def _built(
    found: Found, *, plain: Plain, how: Reading, path: Path, softmax: bool = False
) -> tuple[Network, list[str]]:
    """The network of an architecture, filled, and notes on what was left out.

    `softmax`: whether one at its end is taken off.
    """
    source = Source(
        arch=found.arch,
        arch_args=dict(found.args),
        names=dict(found.names),
        file=plain.file,
        sha256=plain.sha256,
        file_bytes=plain.size_bytes,
        leaves=list(how.leaves),
        key=plain.key,
        prefix=plain.prefix,
        assumed=[each.to_json() for each in found.assumed],
        softmax=softmax,
    )
    network, notes = replayed(Recipe(source=source, input=input_of(found, how, found.said)))
    fill(network, plain.tensors, path, strict=False)
    source = replace(
        source, params=network.params, macs=network.macs_dense, num_classes=network.num_classes
    )
    network.recipe = replace(network.recipe, source=source)
    return network, notes


def _assumed(network: Network, found: Found) -> list[str]:
    """Notes on what is taken for granted of the images of a user's own network."""
    return assumptions(network) if is_callable_name(found.arch) else []


def read_own(path: Path, recipe: Recipe, how: Reading) -> Network:
    """The network in one of gatecli's own checkpoints, whose recipe has been read."""
    _check_arch(path, recipe.source.arch, how.arch)
    recipe = replace(recipe, input=recorded_input(path, recipe.input, how))
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
