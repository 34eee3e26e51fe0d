"""How commands read data sets, and say how images are prepared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gatecli.cli.session import Session
from gatecli.data import forms

if TYPE_CHECKING:
    from gatecli.data import DataSet
    from gatecli.network import Network
    from gatecli.traced.images import InputSpec

__all__ = ["open_data", "show_images"]


def open_data(
    session: Session, network: Network, spec: str | None, *, trusted: bool = True
) -> DataSet:
    """Read a data set for a network, and say what was assumed and how images are prepared.

    Args:
        session: The command's.
        network: Remembers the data set from then on.
        spec: What the user names; None: the data set remembered.
        trusted: Whether the user has typed `spec` just now.

    Raises:
        DataError: There is none, it cannot be read, or does not fit the network.
    """
    from gatecli import together
    from gatecli.data.classes import check_order
    from gatecli.stages import fit

    data = fit.open_data(network, spec, trusted=trusted)
    counts = {name: len(split) for name, split in data.splits.items()}
    together.check_alike({"data set": data.spec, "images in its splits": counts})
    order = session.reading.get("class_order")
    if order is not None:
        check_order(data, order)
    for note in data.notes:
        session.say(f"note: {note}")
    cropped = forms.is_cropped(data.spec)
    show_images(session, network.input, cropped=cropped, named=data.sorted_names)
    return data


def show_images(
    session: Session, spec: InputSpec, *, cropped: bool = True, named: bool = True
) -> None:
    """Say how images are prepared, and keep it for the JSON.

    Args:
        session: The command's.
        spec: The record.
        cropped: Whether pictures are cropped where nothing else is told.
        named: Whether the data set has classes that are put in order by name.
    """
    from gatecli.data.description import as_json, in_words

    facts = as_json(spec, cropped=cropped, named=named)
    if facts == session.input:
        return
    session.input = facts
    session.say(in_words(spec, cropped=cropped, named=named))
