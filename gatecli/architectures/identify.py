"""Find the architecture from the names and shapes of a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gatecli.architectures.arguments import check_args, is_callable_name, split_arch
from gatecli.architectures.comparison import (
    SPELLINGS,
    Comparison,
    Spelt,
    Unfit,
    canonical,
    compare,
)
from gatecli.architectures.shapes import (
    CHANNEL_ARGS,
    CHANNELS,
    CLASSES,
    COUNTER,
    POSITIONS,
    Shape,
)
from gatecli.architectures.table import (
    USUAL_SIZE,
    Row,
    Statistics,
    find_rows,
    image_size,
    make_row,
    positions,
    table,
)
from gatecli.architectures.timm_table import timm_rows
from gatecli.architectures.twins import Assumed, assumed_of, note, timm_twins
from gatecli.errors import ArchitectureError
from gatecli.traced.recipe import SaidInput

__all__ = ["Found", "found_for", "identify"]

WAY_OUT = "name it with --arch torchvision:NAME or --arch package.module:callable"


@dataclass(frozen=True)
class Found:
    """An architecture that fits a checkpoint.

    Attributes:
        arch: its name.
        args: its arguments: `build(arch, args)` has the tensors, once they are renamed.
        names: parts of canonical tensor names -> the checkpoint's spelling, {"fc": "linear"}.
        input_size: side of its images in pixels.
        mean: of its images' values in [0, 1]; None where the data set's own is meant.
        std: the standard deviation of the same.
        assumed: what no tensor tells, the likeliest to be otherwise first.
        said: what the file says of its images.
    """

    arch: str
    args: dict[str, Any]
    names: dict[str, str]
    input_size: int
    mean: Statistics
    std: Statistics
    assumed: tuple[Assumed, ...] = ()
    said: SaidInput | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed, in one line for people; none where nothing was."""
        line = note(self.assumed)
        return (line,) if line else ()

    @property
    def fixes_size(self) -> bool:
        """Whether an argument fixes the images' size, as positions among the tensors do.

        A config of transformers has an `image_size` whether or not the network has positions.
        """
        return "image_size" in self.args and split_arch(self.arch)[0] != "transformers"

    @property
    def channels(self) -> int:
        """Channels of the images; 3 where no argument says otherwise."""
        return int(self.args.get(CHANNEL_ARGS.get(split_arch(self.arch)[0], ""), 3))


def identify(shapes: Mapping[str, Sequence[int]], *, nearest: bool = True) -> Found:
    """The one known architecture with these tensors.

    Its numbers of classes and input channels are whatever the tensors have.

    Args:
        shapes: the tensors' shapes by name.
        nearest: whether an error names the nearest ones, which takes its time.

    Raises:
        Unfit: none fits.
        ArchitectureError: several do.
    """
    plain = _tuples(shapes)
    rows = [row for row in table() if len(row.tensors) == len(plain)]
    families = SPELLINGS if nearest else {row.family for row in rows}
    spelt = {family: canonical(plain, family) for family in families}
    fits = _fits(rows, spelt)
    if len(fits) == 1:
        row, result = fits[0]
        return _found(row, row.args, result, spelt[row.family][1], named=False)
    if fits:
        titles = ", ".join(_title(row) for row, _ in fits)
        raise ArchitectureError(f"several architectures fit these tensors: {titles}; {WAY_OUT}")
    known = _from_timm(plain)
    if known is not None:
        return known
    listing = "; ".join(_nearest(spelt)) if nearest else "not asked for"
    raise Unfit(f"no known architecture has these tensors, the nearest are {listing}; {WAY_OUT}")


def _fits(rows: Sequence[Row], spelt: Mapping[str, Spelt]) -> list[tuple[Row, Comparison]]:
    """The rows that differ in nothing."""
    fits = []
    for row in rows:
        own = spelt[row.family][0]
        if row.tensors.keys() != own.keys():
            continue  # nearly always, and cheaper than to compare shapes
        result = compare(row.tensors, own)
        if not result.differing:
            fits.append((row, result))
    return fits


def _from_timm(plain: dict[str, Shape]) -> Found | None:
    """The plainest of timm's architectures with these tensors; None where there is none.

    Raises:
        ArchitectureError: there is one by the table, but timm is not installed.
    """
    rows = timm_rows(plain)
    for row in rows:
        arch = f"timm:{row.name}"
        counts = row.counts(plain)
        args = {"num_classes": counts[CLASSES]} if CLASSES in counts else {}
        if counts.get(CHANNELS, 3) != 3:
            args["in_chans"] = counts[CHANNELS]
        try:
            closed = make_row(arch, args, leave_open=False)
        except ArchitectureError as error:
            if "not installed" in str(error):
                raise ArchitectureError(f"these are the tensors of {arch}: {error}") from error
            continue  # another release of timm
        result = compare(closed.tensors, plain)
        if not result.differing:
            found = _found(closed, args, result, {}, named=True)
            return replace(found, assumed=tuple(timm_twins(arch, [each.name for each in rows])))
    return None


def _nearest(spelt: Mapping[str, Spelt]) -> list[str]:
    """The three architectures that differ least, and how."""
    results = [(row, compare(row.tensors, spelt[row.family][0])) for row in table()]
    results.sort(key=lambda pair: pair[1].differing)
    listing = []
    for row, result in results[:3]:
        listing.append(f"{_title(row)} ({result.describe(spelt[row.family][1])})")
    return listing


def found_for(arch: str, args: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> Found:
    """The same for an architecture that the user names.

    Args:
        arch: its name.
        args: its arguments; what they leave out is taken from the tensors where these show it.
        shapes: the tensors' shapes by name.

    Raises:
        Unfit: it has other tensors.
        ArchitectureError: there is no such network, or it does not take `args`.
    """
    plain = _tuples(shapes)
    rows = rows_for(arch, args, plain)
    own, names = canonical(plain, rows[0].family)
    results = [compare(row.tensors, own) for row in rows]
    place = next((n for n, result in enumerate(results) if not result.differing), 0)
    row = rows[place]
    result = results[place]
    if result.differing:
        raise Unfit(
            f"the tensors are not those of {arch}: {result.describe(names)}; without --arch it is"
            " looked up"
        )
    return _found(row, {**row.args, **args}, result, names, named=True)


def rows_for(arch: str, args: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> list[Row]:
    """The rows that an architecture may have with these arguments. As `found_for`."""
    check_args(arch, args)
    rows = [_with_counts(row, args) for row in find_rows(arch, args)]
    if not rows and is_callable_name(arch):
        return [_callable_row(arch, args, _tuples(shapes))]
    return rows or [make_row(arch, args)]


def _tuples(shapes: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    return {name: tuple(shape) for name, shape in shapes.items() if not name.endswith(COUNTER)}


def _with_counts(row: Row, args: Mapping[str, Any]) -> Row:
    """The row with the counts that are given put into its shapes."""
    given = {
        CLASSES: args.get("num_classes", CLASSES),
        CHANNELS: args.get(CHANNEL_ARGS[split_arch(row.arch)[0]], CHANNELS),
    }
    if "image_size" in args:
        given[POSITIONS] = positions(row.tensors, args["image_size"])
    tensors = {}
    for name, shape in row.tensors.items():
        tensors[name] = tuple(given.get(size, size) for size in shape)
    return replace(row, tensors=tensors)


def _callable_row(arch: str, args: Mapping[str, Any], plain: dict[str, Shape]) -> Row:
    """The row of a callable, which is given a class count only if it needs one.

    It may have a default, and mean something else by the word.
    """
    try:
        row = make_row(arch, args, leave_open=False)
    except ArchitectureError:
        return make_row(arch, args)
    return make_row(arch, args) if compare(row.tensors, plain).differing else row


def _found(
    row: Row,
    args: Mapping[str, Any],
    result: Comparison,
    names: dict[str, str],
    *,
    named: bool,
) -> Found:
    full = dict(args)
    counts = result.counts
    if CLASSES in counts:
        full["num_classes"] = counts[CLASSES]
    if counts.get(CHANNELS, 3) != 3:
        full[CHANNEL_ARGS[split_arch(row.arch)[0]]] = counts[CHANNELS]
    size = full.get("image_size", row.input_size)
    if POSITIONS in counts:
        size = image_size(row.tensors, counts[POSITIONS])
        if size != USUAL_SIZE:
            full["image_size"] = size
    is_usual = full.get(CHANNEL_ARGS.get(split_arch(row.arch)[0], ""), 3) == 3
    return Found(
        arch=row.arch,
        args=full,
        names=names,
        input_size=size,
        mean=row.mean if is_usual else None,  # ImageNet's are for three channels
        std=row.std if is_usual else None,
        assumed=assumed_of(row.arch, args, row.tensors, named=named),
    )


def _title(row: Row) -> str:
    return row.arch + "".join(f" {key}={value}" for key, value in row.args.items())
