"""From what is told, what a file says and what a library states to one record of the images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatecli import limits
from gatecli.architectures.build import is_callable_name
from gatecli.checkpoint.plausible import check_covers, check_said, check_told
from gatecli.data.libraries import library_input
from gatecli.errors import CheckpointError
from gatecli.traced.images import InputSpec, SaidInput

if TYPE_CHECKING:
    from gatecli.architectures.identify import Found
    from gatecli.checkpoint.loading import Reading
    from gatecli.network import Network

__all__ = ["assumptions", "input_of", "recorded_input", "told"]

Layers = Sequence[tuple[str, SaidInput]]


def told(how: Reading) -> SaidInput:
    """What the user says of the images, checked.

    Raises:
        SettingError: numbers that cannot be so, or that contradict each other.
    """
    check_told(how)
    return SaidInput(
        where="the command line",
        size=how.input_size,
        resize=how.resize,
        crop=how.crop,
        interpolation=how.interpolation,
        mean=how.mean,
        std=how.std,
    )


def input_of(found: Found, how: Reading, said: SaidInput | None = None) -> InputSpec:
    """The images of a plain checkpoint's network, each field with where it comes from.

    Args:
        found: the architecture.
        how: what the user says; it goes before all else.
        said: what the file says, or what lies beside it; it goes before the library's word.

    Raises:
        SettingError: the user says what cannot be so.
        CheckpointError: the file does.
    """
    layers: list[tuple[str, SaidInput]] = [("told", told(how))]
    if said is not None:
        check_said(said, told(how))
        layers.append(("file", said))
    library = library_input(found.arch, found.args)
    if library is not None:
        layers.append(("library", library))
    own = is_callable_name(found.arch)
    spec = InputSpec(size=(1, 1), channels=0 if own else found.channels)
    spec = _with_size(spec, layers, found)
    spec = _with_statistics(spec, layers, found)
    spec = _with_scaling(spec, layers)
    return _with_classes(spec, how, said)


def _from(spec: InputSpec, origin: str, **fields: Any) -> InputSpec:
    """The record with fields, all from one origin."""
    return replace(spec, **fields, origin={**spec.origin, **dict.fromkeys(fields, origin)})


def _first(layers: Layers, name: str) -> tuple[str, Any]:
    """The first thing that is said of a field, and whence; "", None: nothing."""
    for origin, said in layers:
        value = getattr(said, name)
        if value is not None:
            return origin, value
    return "", None


def _with_size(spec: InputSpec, layers: Layers, found: Found) -> InputSpec:
    """A size that positions in the tensors fix goes before what a file or library says."""
    spec = replace(spec, origin={"channels": "file"})
    fixed = found.fixes_size
    origin, size = _first(layers[:1] if fixed else layers, "size")
    if size is None:
        origin = "file" if fixed else "assumed"
        size = (found.input_size, found.input_size)
    return _from(spec, origin, size=tuple(size))


def _with_statistics(spec: InputSpec, layers: Layers, found: Found) -> InputSpec:
    """Mean and deviation; the library's are of three channels, and so are ImageNet's."""
    known = found.mean is not None
    fitting = [layer for layer in layers if layer[0] != "library" or known]
    for name in ("mean", "std"):
        origin, values = _first(fitting, name)
        if values is None and known:
            origin, values = "assumed", getattr(found, name)
        if values is not None:
            spec = _from(spec, origin, **{name: tuple(values)})
    return spec


def _with_scaling(spec: InputSpec, layers: Layers) -> InputSpec:
    origin, interpolation = _first(layers, "interpolation")
    if interpolation is not None:
        spec = _from(spec, origin, interpolation=interpolation)
    for origin, said in layers:
        if said.resize is not None or said.crop is not None:
            return _scaled_by(spec, origin, said)
    return _from(spec, "assumed", resize=None, crop=None)


def _scaled_by(spec: InputSpec, origin: str, said: SaidInput) -> InputSpec:
    """The record with what one source says of resizing and cropping.

    A number of pixels that was said for another size of images is scaled with it.
    """
    mode = said.crop_mode or ("squash" if len(said.resize or ()) == 2 else "center")
    resize = _shared(spec.size, said.crop, mode) if said.crop else ()
    if said.resize is not None:
        resize = _as_said(said.resize, said.size or spec.size, spec.size)
        if origin == "told":
            check_covers(resize, spec.size)
    return _from(spec, origin, resize=resize, crop=said.crop, crop_mode=mode)


def _shared(size: tuple[int, int], share: float, mode: str) -> tuple[int, ...]:
    """What is resized to where a share is cut out, as timm rounds it."""
    both = tuple(math.floor(side / share) for side in size)
    return both[:1] if mode == "center" and both[0] == both[1] else both


def _as_said(
    resize: tuple[int, ...], old: tuple[int, int], size: tuple[int, int]
) -> tuple[int, ...]:
    """Pixels that were said for images of the `old` size, for those of another one."""
    if old == size:
        return resize
    pairs = zip((resize[0], resize[-1]), size, old, strict=True)
    both = tuple(side * new // was for side, new, was in pairs)
    return both[:1] if len(resize) == 1 and both[0] == both[1] else both


def _with_classes(spec: InputSpec, how: Reading, said: SaidInput | None) -> InputSpec:
    if how.class_order is not None:
        spec = _from(spec, "told", class_order=how.class_order)
    if said is not None and said.classes is not None:
        spec = _from(spec, "file", classes=tuple(said.classes))
    return spec


def recorded_input(path: Path, recorded: InputSpec, how: Reading) -> InputSpec:
    """The images that the network of a gatecli checkpoint takes.

    Raises:
        CheckpointError: the file asks for larger ones than are allowed.
        SettingError: the user says what cannot be so.
    """
    height, width = recorded.size
    if how.input_size is None and height * width > limits.INPUT_PIXELS:
        raise CheckpointError(
            f"{path.name} says that its images have {height} x {width} pixels, which are more than"
            f" {limits.INPUT_PIXELS:,}: if they do, say so with --input-size {height}x{width}"
        )
    said = told(how)
    spec = recorded
    for name in ("mean", "std", "interpolation"):
        if getattr(said, name) is not None:
            spec = _from(spec, "told", **{name: getattr(said, name)})
    spec = _with_new_size(spec, said)
    if how.class_order is not None:
        if how.class_order != "file" and spec.whence("classes") == "data":
            # named in the order of then
            spec = replace(spec, classes=None)
        spec = _from(spec, "told", class_order=how.class_order)
    return spec


def _with_new_size(spec: InputSpec, said: SaidInput) -> InputSpec:
    """The record with a size and a scaling that are told; a scaling recorded follows the size."""
    was = SaidInput(
        where="", size=spec.size, resize=spec.resize, crop=spec.crop, crop_mode=spec.crop_mode
    )
    if said.size is not None:
        spec = _from(spec, "told", size=said.size)
    if said.resize is not None or said.crop is not None:
        return _scaled_by(spec, "told", said)
    if said.size is not None and spec.resize is not None:
        if was.crop is not None:
            was = replace(was, resize=None)
        return _scaled_by(spec, spec.whence("resize"), was)
    return spec


def assumptions(network: Network) -> list[str]:
    """Notes on what is taken for granted of the images of a user's own network.

    ImageNet's normalisation is one of three channels: with others the data set's own is meant.
    """
    spec, notes = network.input, []
    if spec.whence("size") == "assumed":
        height, width = spec.size
        notes.append(f"images are taken to be {height}x{width} (if not: --input-size)")
    names = [name for name in ("mean", "std") if spec.origin.get(name) == "assumed"]
    if not names:
        return notes
    if spec.channels == 3:
        options = ", ".join(f"--{name}" for name in names)
        verb = "are" if len(names) == 2 else "is"
        said = f"their {' and '.join(names)} {verb} taken to be ImageNet's (if not: {options})"
        return [*notes, said]
    origin = {name: whence for name, whence in spec.origin.items() if name not in names}
    unknown = replace(spec, **dict.fromkeys(names), origin=origin)  # type: ignore[arg-type]
    network.recipe = replace(network.recipe, input=unknown)
    return notes
