"""Which network a plain checkpoint is: as the user, the file or else its tensors say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gatecli import limits
from gatecli.architectures.argument import Argument
from gatecli.architectures.arguments import accepted_args, check_args
from gatecli.architectures.build import at_most, build_skeleton
from gatecli.architectures.identify import Found, found_for
from gatecli.architectures.shapes import shapes_of
from gatecli.architectures.table import knows
from gatecli.architectures.timm_table import known_to_timm
from gatecli.architectures.transformers_library import config_args, renamed_by_library
from gatecli.architectures.wanted import Wanted
from gatecli.checkpoint.choosing import choose
from gatecli.checkpoint.formats import tensors_in
from gatecli.checkpoint.plain import Plain, Shapes
from gatecli.checkpoint.said.facts import Said
from gatecli.errors import ArchitectureError, GatecliError
from gatecli.traced.recipe import SaidInput

if TYPE_CHECKING:
    from gatecli.checkpoint.loading import Reading

__all__ = ["find"]


def find(plain: Plain, how: Reading) -> tuple[Found, Plain]:
    """The architecture of a checkpoint: as the user, the file or else the tensors say.

    Returns:
        It, and the checkpoint, whose tensors the library may have renamed.

    Raises:
        ArchitectureError: none fits, or what the file says contradicts its tensors.
    """
    args = dict(how.arch_args or {})
    if how.arch is not None:
        found, plain = _chosen(plain, how, how.arch, args)
        assumed = () if plain.is_pretrained else found.assumed
        return replace(found, assumed=assumed, said=_images(plain)), plain
    notes: list[str] = []
    for said in plain.said:
        if said.library == "transformers":
            return _of_transformers(plain, said)
        by_name, why = _named(said, plain, how)
        notes += why
        if by_name is not None:
            found, plain = by_name
            _check_count(said, found, plain)
            if said.is_binding:
                found = replace(found, assumed=())
            return _with_notes(found, plain, notes)
    found, plain = _chosen(plain, how, None, args)
    for said in plain.said:
        _check_count(said, found, plain)
    return _with_notes(found, plain, notes)


def _chosen(
    plain: Plain, how: Reading, arch: str | None, args: Mapping[str, Any]
) -> tuple[Found, Plain]:
    """The network in a file that is an architecture's, or any known one's, and its tensors."""
    chosen = choose(plain.path, plain.held, Wanted(arch=arch, args=args), how.key, how.prefix)
    filled = replace(
        plain,
        tensors=chosen.tensors,
        module=chosen.module,
        key=chosen.key,
        prefix=chosen.prefix,
        notes=[*plain.notes, *chosen.notes],
    )
    return chosen.found, filled


def _with_notes(found: Found, plain: Plain, notes: list[str]) -> tuple[Found, Plain]:
    return replace(found, said=_images(plain)), replace(plain, notes=[*plain.notes, *notes])


def _images(plain: Plain) -> SaidInput | None:
    return next((said.input for said in plain.said if said.input is not None), None)


def _named(said: Said, plain: Plain, how: Reading) -> tuple[tuple[Found, Plain] | None, list[str]]:
    """The architecture that a file names; None where it names none that is known.

    Raises:
        ArchitectureError: what it says is binding, and the tensors are another network's.
    """
    candidates = [arch for arch in _candidates(said) if _is_known(arch)]
    if not candidates:
        if said.arch and said.is_binding:
            return None, [f"{said.where} says that it is `{said.arch}`, which is not known here"]
        return None, []
    failed: list[ArchitectureError] = []
    for arch, own in _attempts(candidates, said):
        try:
            return _chosen(plain, how, arch, {**own, **(how.arch_args or {})}), []
        except ArchitectureError as error:
            failed.append(error)
    if said.is_binding:
        raise _contradiction(said, failed, plain, how)
    return None, []


def _contradiction(
    said: Said, failed: Sequence[ArchitectureError], plain: Plain, how: Reading
) -> ArchitectureError:
    """The error of a file that says what its tensors are not.

    Args:
        said: What it says.
        failed: Why each architecture that it may mean does not fit.
        plain: The file.
        how: How it is read.
    """
    try:
        truth = f"its tensors are those of {_chosen(plain, how, None, {})[0].arch}"
    except ArchitectureError:
        missing = [each for each in failed if "not installed" in str(each)]
        if missing:
            return missing[0]
        truth = str(failed[-1])
    return ArchitectureError(
        f"{said.where} says that it is `{said.arch}`, but {truth}: correct that file, or say which"
        " it is with --arch"
    )


def _attempts(candidates: Sequence[str], said: Said) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the file may mean: each architecture as it is, and for images of the size it says."""
    size = said.input.size if said.input is not None else None
    for arch in candidates:
        try:
            accepted = accepted_args(arch) or {}
            own = _fitting(accepted, said.args)
        except ArchitectureError:  # without timm: the attempt says so
            yield arch, {}
            continue
        yield arch, own
        if size is not None and "img_size" in accepted and size[0] == size[1]:
            yield arch, {**own, "img_size": size[0]}


def _candidates(said: Said) -> list[str]:
    if not said.arch:
        return []
    libraries = [said.library] if said.library == "torchvision" else ["torchvision", "timm"]
    return [f"{library}:{said.arch}" for library in libraries]


def _is_known(arch: str) -> bool:
    return known_to_timm(arch[5:]) if arch.startswith("timm:") else knows(arch)


def _fitting(accepted: Mapping[str, Argument], args: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a file's arguments that an architecture takes."""
    return {key: args[key] for key in accepted if key in args and accepted[key].takes(args[key])}


def _check_count(said: Said, found: Found, plain: Plain) -> None:
    """Raises ArchitectureError where a binding class count is not that of the tensors."""
    there = found.args.get("num_classes")
    if said.num_classes is None or there in (None, said.num_classes) or not said.is_binding:
        return
    raise ArchitectureError(
        f"{said.where} says that there are {said.num_classes} classes, but the tensors in"
        f" {plain.file} are for {there}: correct that file, or say what it is with --arch"
        f" {found.arch}"
    )


def _of_transformers(plain: Plain, said: Said) -> tuple[Found, Plain]:
    """A network of transformers, by its folder's config."""
    arch = f"transformers:{said.arch}"
    args = config_args(said.args, said.num_classes)
    plain = replace(plain, tensors=tensors_in(plain.held, plain.path))
    numbers = sum(tensor.numel() for tensor in plain.tensors.values())
    try:
        check_args(arch, args)
        with at_most(*limits.network(len(plain.tensors), numbers, pruned=False)):
            ours = shapes_of(build_skeleton(arch, args))
        _check_head(said, ours, plain)
        tensors = renamed_by_library(arch, args, plain.tensors)
    except GatecliError as error:
        raise type(error)(f"{said.where}: {error}") from error
    renamed = replace(plain, tensors=tensors)
    found = found_for(arch, args, renamed.shapes)
    return replace(found, assumed=(), said=said.input), renamed


def _check_head(said: Said, ours: Shapes, plain: Plain) -> None:
    """Raises ArchitectureError where only a class count differs from the file's."""
    for name, shape in ours.items():
        there = plain.shapes.get(name, shape)
        if shape != there and shape[1:] == there[1:] and shape[:1] == (said.num_classes,):
            raise ArchitectureError(
                f"it says that there are {shape[0]} classes, but the tensors in {plain.file} are"
                f" for {there[0]}: correct that file"
            )
