"""What is said of images but cannot be so: refused, with what was probably meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gatecli.errors import CheckpointError, SettingError
from gatecli.traced.images import INTERPOLATIONS, ORDERS, SaidInput

if TYPE_CHECKING:
    from gatecli.checkpoint.loading import Reading

__all__ = ["check_covers", "check_said", "check_told"]

BYTE = 255  # what other tools' means and deviations of pixels count to


@dataclass(frozen=True, kw_only=True)
class _Statistics:
    """Mean and deviation as somebody says them.

    Attributes:
        mean: the one.
        std: the other.
        names: what they are called there.
        doubt: how a refusal begins.
    """

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    names: tuple[str, str]
    doubt: str


def check_told(how: Reading) -> None:
    """Check what the user says of the images.

    Raises:
        SettingError: it cannot be so, or contradicts itself.
    """
    given = _Statistics(mean=how.mean, std=how.std, names=("--mean", "--std"), doubt="")
    wrong = _implausible(given)
    if wrong is not None:
        raise SettingError(wrong)
    if how.interpolation not in (None, *INTERPOLATIONS):
        listing = ", ".join(INTERPOLATIONS)
        raise SettingError(
            f"expected --interpolation to be one of {listing}, but got `{how.interpolation}`"
        )
    if how.class_order not in (None, *ORDERS):
        listing = ", ".join(ORDERS)
        raise SettingError(
            f"expected --class-order to be one of {listing}, but got `{how.class_order}`"
        )
    if how.crop is not None and not 0 < how.crop <= 1:
        raise SettingError(
            f"expected --crop to be a share above 0 and at most 1, as 0.875, but got {how.crop:g}"
        )
    if how.resize is not None and how.crop is not None:
        raise SettingError(
            "expected --resize or --crop, but got both: the share that is cut out follows from"
            " --resize and the size, and --resize from the share"
        )


def check_covers(resize: tuple[int, ...], size: tuple[int, int]) -> None:
    """Compare what pictures are scaled to with what is cut out of them.

    Raises:
        SettingError: it is smaller.
    """
    if resize[0] < size[0] or resize[-1] < size[1]:
        spelt = "x".join(map(str, resize))
        raise SettingError(
            f"expected --resize to be at least the images' size, {size[0]}x{size[1]}, which is cut"
            f" out of the middle, but got {spelt}"
        )


def check_said(said: SaidInput, given: SaidInput) -> None:
    """Refuse implausible numbers of a file, unless the user says other ones."""
    found = _Statistics(
        mean=said.mean if given.mean is None else None,
        std=said.std if given.std is None else None,
        names=("--mean", "--std"),
        doubt=f"{said.where} says ",
    )
    wrong = _implausible(found)
    if wrong is not None:
        raise CheckpointError(wrong)


def _implausible(given: _Statistics) -> str | None:
    """Why mean and deviation cannot be those of values in [0, 1]; None: they can."""
    mean, std = given.mean or (), given.std or ()
    spelt = _spelt(given, 1)
    if max((*mean, *std), default=0) > 1:
        return (
            f"{given.doubt or 'got '}{spelt}, which look like numbers for pixels from 0 to 255:"
            f" gatecli's are of values in [0, 1], so divide by 255: {_spelt(given, BYTE)}"
        )
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
        return (
            f"expected --mean to be from 0 to 1 and --std above 0 and at most 1, as of values in"
            f" [0, 1], but {given.doubt or 'got '}{spelt}"
        )
    return None


def _spelt(given: _Statistics, divisor: float) -> str:
    parts = []
    for name, values in zip(given.names, (given.mean, given.std), strict=True):
        if values is not None:
            parts.append(f"{name} {','.join(f'{value / divisor:.4g}' for value in values)}")
    return " ".join(parts)
