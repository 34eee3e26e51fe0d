"""Checkpoints: read whatever users have, write one safe file, and rebuild a network from it by
replaying its structural steps.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gatecli import limits, methods
from gatecli.architectures.build import (
    at_most,
    build,
    build_pretrained,
    build_skeleton,
    is_callable_name,
    switches,
)
from gatecli.architectures.identify import Found, found_for, identify
from gatecli.checkpoint.atomic import check_name, replacing
from gatecli.checkpoint.formats import check_sizes, file_sha256, header_fits, read_tensors
from gatecli.errors import ArchitectureError, CheckpointError, GatecliError, SettingError
from gatecli.graph.rewrite import renamed
from gatecli.network import Network
from gatecli.traced.recipe import InputSpec, Recipe, Source, Step

KEY = "gatecli"


@dataclass(frozen=True)
class Reading:
    """What the user says about a checkpoint.

    The architecture (None: find it), and how its images were prepared (None: as recorded).
    """

    arch: str | None = None
    arch_args: Mapping[str, Any] | None = None
    trust_pickle: bool = False
    input_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    leaves: Sequence[str] = ()


def load(path: str | os.PathLike[str], arch: str | None = None, **how: Any) -> Network:
    """Load a checkpoint, gatecli's own or a plain one, as a network in evaluation mode that really
    skips.

    Args: arch: the architecture, needed where the file names a callable
    (`package.module:callable`), which is never imported on the file's word. how: further fields of
    `Reading`.
    Raises: CheckpointError, ArchitectureError.
    """
    return read(Path(path), Reading(arch=arch, **how))[0].eval()


def read(path: Path, how: Reading = Reading()) -> tuple[Network, list[str]]:
    """The network in a file, in evaluation mode, and notes for people on what had to be assumed."""
    recipe = read_recipe(path)
    network, notes = (
        _read_plain(path, how) if recipe is None else (_read_own(path, recipe, how), [])
    )
    return network, [*notes, *_uncounted(network)]


def _uncounted(network: Network) -> list[str]:
    unknown = network.uncounted
    if not unknown:
        return []
    return [
        "MACs leave out"
        f" {', '.join(f'`{name}`' for name in unknown[:6])}{', ...' if unknown[6:] else ''}: how"
        " much that costs is not known"
    ]


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
    if _names_a_library(path):
        pretrained = build_pretrained(str(path))
        tensors, given = (
            pretrained.state_dict(),
            {
                **switches(str(path), pretrained),
                **(how.arch_args or {}),
            },
        )
        how = replace(how, arch=how.arch or str(path), arch_args=given)
        sha256, size_bytes = "", sum(t.numel() * t.element_size() for t in tensors.values())
    else:
        tensors = read_tensors(path, how.trust_pickle)
        sha256, size_bytes = file_sha256(path), path.stat().st_size
    found = _find(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, how)
    source = Source(
        found.arch,
        dict(found.args),
        dict(found.names),
        path.name,
        sha256,
        size_bytes,
        leaves=list(how.leaves),
    )
    size = how.input_size or (found.input_size, found.input_size)
    channels = (
        0 if is_callable_name(found.arch) else found.channels
    )  # 0: the network's first convolution says how many
    network, notes = _network(
        Recipe(source, InputSpec(size, channels, how.mean or found.mean, how.std or found.std))
    )
    _fill(network, tensors, path, strict=False)
    source = replace(
        source, params=network.params, macs=network.macs_dense, num_classes=network.num_classes
    )
    network.recipe = replace(network.recipe, source=source)
    return network, [*found.notes, *notes]


def _names_a_library(path: Path) -> bool:
    return str(path).startswith(("torchvision:", "timm:")) and not path.exists()


def _find(path: Path, shapes: Mapping[str, tuple[int, ...]], how: Reading) -> Found:
    try:
        if how.arch is not None:
            return found_for(how.arch, dict(how.arch_args or {}), shapes)
        found = identify(shapes)
        return (
            found_for(found.arch, {**found.args, **how.arch_args}, shapes)
            if how.arch_args
            else found
        )
    except ArchitectureError as error:
        raise ArchitectureError(f"{path.name}: {error}") from error


def _read_own(path: Path, recipe: Recipe, how: Reading) -> Network:
    source = recipe.source
    if how.arch is not None and how.arch != source.arch:
        raise ArchitectureError(
            f"{path.name} was made from `{source.arch}`, but --arch says `{how.arch}`"
        )
    if is_callable_name(source.arch) and how.arch is None:
        raise CheckpointError(
            f"{path.name} names its architecture as `{source.arch}`, code that gatecli does not"
            f" import on a file's word: if you trust it, say so with --arch {source.arch} (library:"
            " arch=...)"
        )
    given = recipe.input
    height, width = given.size
    if how.input_size is None and height * width > limits.INPUT_PIXELS:
        raise CheckpointError(
            f"{path.name} says that its images have {height} x {width} pixels, which are more than"
            f" {limits.INPUT_PIXELS:,}: if they do, say so with --input-size {height}x{width}"
        )
    spec = replace(
        given,
        size=how.input_size or given.size,
        mean=how.mean or given.mean,
        std=how.std or given.std,
    )
    tensors = _own_tensors(path)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    ceiling = limits.network(
        len(tensors), numbers, pruned=any(step.op == "prune" for step in recipe.steps)
    )
    try:
        with at_most(*ceiling):
            network, _ = _network(replace(recipe, input=spec))
    except GatecliError as error:
        raise type(error)(f"{path.name}: {error}") from error
    except Exception as error:  # whatever a damaged recipe may bring a replay to
        raise CheckpointError(
            f"{path.name} has steps that cannot be replayed ({_line(error)}): the file is damaged"
        ) from error
    _fill(network, tensors, path, strict=True)
    if (
        network.boundaries
    ):  # what modules cost whose connections are fixed depends on which of these are the same
        network.recount()
    return network


def _own_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors by the names that the file has, even where all of these begin with `module.`.

    Copies, as a mapped file may be replaced.
    """
    try:
        found = load_file(path)
        check_sizes(found, path)
        return {
            name: tensor.to(
                torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True
            )
            for name, tensor in found.items()
        }
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path.name} is damaged or cut off: {_line(error)}") from error


def _network(recipe: Recipe) -> tuple[Network, list[str]]:
    """The source architecture, traced, with the recipe's structural steps replayed.

    Its tensors are still to be filled.
    """
    source = recipe.source
    module = build_skeleton(source.arch, source.arch_args)
    network = Network(module, recipe, source.names, source.leaves)
    if any(
        tensor.is_meta and name not in network.state_dict()
        for name, tensor in network.named_buffers()
    ):  # constants, which no file holds
        module = skeleton_with_weights(source)
        network = Network(module, recipe, source.names, source.leaves)
    dropped = _first_parts(
        renamed(name, source.names) for name in module.state_dict()
    ) - _first_parts(network.state_dict())
    for step in recipe.steps:
        if step.op == "attach":
            _attach(network, step)
        elif step.op == "prune" and step.settings["plan"]:
            methods.apply_plan(
                network,
                step.settings["plan"],
                *(
                    step.settings.get(name, usual)
                    for name, usual in (("round_to", 1), ("dynamic", {}), ("wide", []))
                ),
            )
    notes = [f"dropped {', '.join(sorted(dropped))}: evaluation never runs it"] if dropped else []
    return network.eval(), notes


def _attach(network: Network, step: Step) -> None:
    """Replay one attach; each gates something new, or a file could have it done without end."""
    sites: list[str] = step.settings["sites"]
    method = methods.get(step.settings["method"])
    settings = methods.recorded_settings(method, step.settings["settings"])
    method.ready(network, settings)
    for site in sites:
        if site not in network.sites:
            raise CheckpointError(f"the recipe gates `{site}`, which this network does not have")
        if site in network.methods:
            raise CheckpointError(f"the recipe gates `{site}` twice")
    if not sites:
        raise CheckpointError(f"the recipe attaches {method.name} to nothing")
    with torch.device("meta"):  # the file's tensors fill them
        method.attach(network, sites, settings)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _first_parts(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def skeleton_with_weights(source: Source) -> nn.Module:
    """The plain architecture with random weights, as it was before anything was attached."""
    return build(source.arch, source.arch_args)


def _fill(network: Network, tensors: Mapping[str, Tensor], path: Path, strict: bool) -> None:
    """Load the tensors, every one where `strict`.

    A plain file may lack `num_batches_tracked` and hold heads that were dropped.
    """
    wanted = network.state_dict()
    given = {name: tensor for name, tensor in tensors.items() if strict or name in wanted}
    for name in wanted:
        if name not in given and name.endswith("num_batches_tracked") and not strict:
            given[name] = torch.tensor(0)
    missing, extra = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    odd = [name for name in given if name in wanted and _kind(given[name]) != _kind(wanted[name])]
    if missing or extra or odd:
        what = (
            f"lacks `{missing[0]}`"
            if missing
            else (
                f"has `{extra[0]}` too much"
                if extra
                else f"has `{odd[0]}` as {_kind(given[odd[0]])} for {_kind(wanted[odd[0]])}"
            )
        )
        raise CheckpointError(
            f"{path.name} does not hold the tensors that its recipe asks for: it {what}"
        )
    network.load_state_dict(given, assign=True)
    if any(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()]):
        raise CheckpointError(
            f"{path.name}: the architecture keeps tensors that no file stores; build it with --arch"
            " package.module:callable"
        )
    for name, parameter in network.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise CheckpointError(
                f"{path.name} is of no use: its tensor `{name}` holds values that are not finite (a"
                " training that diverged?)"
            )


def _kind(tensor: Tensor) -> str:
    return (
        f"{'floating' if tensor.is_floating_point() else 'whole'} numbers of shape"
        f" {tuple(tensor.shape)}"
    )


def check_output(out: Path, force: bool, inputs: Sequence[Path] = ()) -> None:
    """Refuse, before any work, an output that exists (without `force`), is an input, or lies where
    nothing can be written.
    """
    check_name(out)
    if any(out.exists() and given.exists() and out.samefile(given) for given in inputs):
        raise CheckpointError(
            f"{out} is the input: gatecli never overwrites what it reads; name another file with"
            " --out"
        )
    if out.exists() and not force:
        raise CheckpointError(
            f"{out} exists already: use --force to replace it, or --out to name another file"
        )
    if out.is_dir():
        raise CheckpointError(f"cannot write {out}: it is a folder; name a file with --out")
    if not out.parent.is_dir():
        raise CheckpointError(f"cannot write {out}: the folder {out.parent} does not exist")
    if not os.access(out.parent, os.W_OK):
        raise CheckpointError(f"cannot write {out}: the folder {out.parent} is not writable")


def write(network: Network, path: str | os.PathLike[str], reload: bool = False) -> None:
    """Write the network and its recipe, all or nothing.

    Args: reload: read what was written again before it takes the place of `path`, and compare:
    every tensor, and the MACs of every node.
    Raises: CheckpointError where it cannot be written (a full disk, say); GatecliError where it
    could not be read again.
    """
    path = Path(path)
    if not network.recipe.source.arch:
        raise SettingError(
            "this network has no architecture that a file could name: attach with"
            " arch='package.module:callable'"
        )
    check = partial(_check_reload, network) if reload else None
    save_tensors(network.state_dict(), path, {KEY: network.recipe.to_json()}, check)


def _check_reload(network: Network, path: Path) -> None:
    """Raises GatecliError unless the file at `path` holds `network`."""
    recipe = network.recipe
    try:
        again = _read_own(path, recipe, Reading(arch=recipe.source.arch))
    except GatecliError as error:
        raise GatecliError(
            f"what was to be written cannot be read again ({error}): this is a bug in gatecli;"
            " nothing was written"
        ) from error
    ours, theirs = network.state_dict(), again.state_dict()
    other = [name for name in ours if not _equal(ours[name].cpu(), theirs[name])]
    if other or again.macs_dense != network.macs_dense or again.methods != network.methods:
        what = f"`{other[0]}`" if other else "the structure"
        raise GatecliError(
            f"what was to be written reads as another network ({what} differs): this is a bug in"
            " gatecli; nothing was written"
        )


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.equal(ours.to(theirs.dtype), theirs)


def save_tensors(
    tensors: Mapping[str, Tensor],
    path: Path,
    metadata: Mapping[str, str],
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a safetensors file, all or nothing.

    `check` looks at the file before it takes its place. Raises CheckpointError.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    owners = Counter(
        _storage(tensor) for tensor in plain.values()
    )  # the format refuses tensors that share memory
    try:
        with replacing(path) as temporary:
            save_file(
                {
                    name: (
                        tensor.clone()
                        if _is_view(tensor) or owners[_storage(tensor)] > 1
                        else tensor
                    )
                    for name, tensor in plain.items()
                },
                temporary,
                dict(metadata),
            )
            if check is not None:
                check(temporary)
    except SafetensorError as error:
        raise CheckpointError(
            f"cannot write {path}: {str(error).rpartition('error: ')[2]}"
        ) from error


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_view(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
