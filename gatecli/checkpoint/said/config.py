"""Read the config.json that hubs put beside weights: timm's, and that of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gatecli import limits
from gatecli.checkpoint.said.facts import Said
from gatecli.checkpoint.said.values import Values
from gatecli.errors import reason
from gatecli.traced.recipe import BROKEN, SaidInput, parsed

__all__ = ["CONFIG", "said_beside"]

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"


def said_beside(folder: Path) -> tuple[Said | None, list[str]]:
    """What a folder's config.json says; None where there is none, or it is another program's.

    Returns:
        It, and notes on what could not be read.
    """
    config, notes = _object(folder / CONFIG)
    if config is None:
        return None, notes
    said = _of_timm(config) or _of_transformers(config)
    if said is None:
        return None, notes
    if said.library == "transformers":
        images, more = _object(folder / PREPROCESSOR)
        said = _with_preprocessor(said, images or {})
        notes += more
    if said.odd:
        keys = ", ".join(f"`{key}`" for key in said.odd[:6])
        notes.append(f"{CONFIG} says {keys} in no readable way: passed over")
    return said, notes


def _object(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """A small JSON file's object; None where there is no such file, and a note where it is odd."""
    try:
        if not path.is_file():
            return None, []
        with path.open("rb") as file:
            data = file.read(limits.CONFIG_BYTES + 1)
        if len(data) > limits.CONFIG_BYTES:
            return None, [f"{path.name} has more than {limits.CONFIG_BYTES:,} bytes: passed over"]
        found = parsed(data.decode("utf-8"))
    except (OSError, *BROKEN) as error:
        return None, [f"{path.name} cannot be read ({reason(error, 80)}): passed over"]
    if not isinstance(found, dict):
        return None, [f"{path.name} is no JSON object: passed over"]
    return found, []


def _of_timm(config: dict[str, Any]) -> Said | None:
    """What timm's config.json says: its older ones have everything at the top."""
    if not isinstance(config.get("architecture"), str):
        return None
    inner = config.get("pretrained_cfg")
    values = Values({**config, **(inner if isinstance(inner, dict) else {})})
    top = Values(config)
    args = config.get("model_args")
    said = Said(
        where=CONFIG,
        library="timm",
        arch=top.name("architecture").split(".", 1)[0],
        args=dict(args) if isinstance(args, dict) else {},
        num_classes=top.count("num_classes"),
        input=values.input(CONFIG),
        is_binding=True,
        odd=(*top.odd, *values.odd),
    )
    return said if said.arch else None


def _of_transformers(config: dict[str, Any]) -> Said | None:
    names = config.get("architectures")
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        return None
    if not isinstance(config.get("model_type"), str):
        return None
    values = Values(config)
    classes = values.classes()
    told = len(classes) if classes else values.count("num_labels")
    return Said(
        where=CONFIG,
        library="transformers",
        arch=names[0],
        args=config,
        num_classes=told,
        input=SaidInput(
            where=CONFIG,
            size=values.size("image_size"),
            channels=values.count("num_channels"),
            classes=classes,
        ),
        is_binding=True,
        odd=tuple(values.odd),
    )


def _with_preprocessor(said: Said, config: dict[str, Any]) -> Said:
    """The same with what preprocessor_config.json says of images."""
    if not config or said.input is None:
        return said
    values = Values(config)
    size, resize, crop = _geometry(values)
    mean = values.numbers("image_mean")
    std = values.numbers("image_std", positive=True)
    if config.get("do_normalize") is False:
        mean, std = (0.0,), (1.0,)
    fields = {
        **vars(said.input),
        "where": f"{CONFIG}, {PREPROCESSOR}",
        "size": size or said.input.size,
        "resize": resize,
        "crop": crop,
        "interpolation": values.interpolation("resample"),
        "mean": mean,
        "std": std,
    }
    odd = (*said.odd, *values.odd)
    return Said(**{**vars(said), "input": SaidInput(**fields), "odd": odd})


Geometry = tuple[tuple[int, int] | None, tuple[int, ...] | None, float | None]


def _geometry(values: Values) -> Geometry:
    """Size, resize and crop, in the many ways in which image processors say them."""
    given = values.values.get("size") if values.values.get("do_resize") is not False else None
    edge = _edge(given)
    whole = _box(given)
    share = values.share("crop_pct")
    if edge is not None and share is not None:  # ConvNeXt: no crop from 384 pixels on
        box = (edge, edge)
        return (box, (int(edge / share),), share) if edge < 384 else (box, box, 1.0)
    resize = whole if edge is None else (edge,)
    cut = _box(values.values.get("crop_size"))
    if values.values.get("do_center_crop") and cut is not None:
        return cut, resize, (cut[0] / min(resize) if resize else None)
    if whole is not None:
        return whole, whole, 1.0
    return (None, None, None) if edge is None else ((edge, edge), (edge,), None)


def _edge(given: Any) -> int | None:
    """The length of the shorter side, where that is what is said."""
    edge = given.get("shortest_edge") if isinstance(given, dict) else None
    is_side = isinstance(edge, int) and 0 < edge <= limits.INPUT_SIDE
    return edge if is_side and edge is not True else None


def _box(given: Any) -> tuple[int, int] | None:
    """Height and width, of one side or both."""
    if isinstance(given, dict):
        given = [given.get("height"), given.get("width")]
    return Values({"size": given}).size("size") if given is not None else None
