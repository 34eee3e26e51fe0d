"""Gate vectors in the plane, by t-SNE: whether images of a class are decided alike."""

from __future__ import annotations

from gatecli.errors import SettingError
from gatecli.report.blocks import Missing
from gatecli.report.drawing import draw
from gatecli.report.material import Material
from gatecli.report.sections.base import Found, Part, data_command, each
from gatecli.stages.analyse import embedded
from gatecli.stages.plots import points

__all__ = ["PART"]


def _plane(material: Material, key: str) -> Found:
    network = material.network
    gates = [gate for site, gate in network.site_gates.items() if site not in network.site_exits]
    if not any(gate.data_dependent for gate in gates):
        return None
    seen = material.seen
    if seen is None or seen.use is None:
        return Missing(words=material.blind, command=data_command(material))
    try:
        places = embedded(seen.use.vectors, material.seed)
    except SettingError as error:
        return Missing(words=f"No t-SNE: {error}.")
    alike = seen.use.alike
    apart = "not known"
    if alike.within is not None and alike.between is not None:
        apart = (
            f"decisions about two images of a class differ in {alike.within:.2f} units, of two"
            f" classes in {alike.between:.2f}"
        )
    figure = draw(
        key,
        points(places, seen.use.labels),
        title="Decisions about single images, by t-SNE",
        description=f"{len(places)} images as points, coloured by class. How far apart: {apart}.",
        size=(8, 5),
        foot=f"Directions and sizes mean nothing; clusters do. On average {apart}.",
    )
    return (figure,)


PART = Part(
    key="plane",
    title="Images by their gates",
    about="Images that the gates decide alike lie together; the colour is the class.",
    build=each(_plane),
)
