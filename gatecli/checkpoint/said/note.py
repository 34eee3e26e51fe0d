"""One line for people on what a file says of its images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gatecli.architectures.identify import Found

if TYPE_CHECKING:
    from gatecli.checkpoint.loading import Reading

__all__ = ["said_note"]


def said_note(found: Found, how: Reading) -> list[str]:
    """What the file says of images and the user does not; none where that is nothing."""
    said = found.said
    if said is None:
        return []
    parts = []
    if said.size is not None and how.input_size is None:
        parts.append(f"images of {said.size[0]}x{said.size[1]}")
    for name, values, told in (("mean", said.mean, how.mean), ("std", said.std, how.std)):
        if values is not None and told is None:
            parts.append(f"{name} {','.join(f'{value:g}' for value in values)}")
    if not parts:
        return []
    return [f"{said.where} says {', '.join(parts)} (if not: --input-size, --mean, --std)"]
