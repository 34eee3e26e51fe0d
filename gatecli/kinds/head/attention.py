"""The heads of one attention on the graph: what makes them, what reads them, where they lie."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import fx, nn
from torch.nn import functional as F

from gatecli.graph.flow import constants, reads_size
from gatecli.graph.heads import for_parts
from gatecli.graph.ops import is_decision, is_mask, module_of, spread
from gatecli.graph.patterns import calls, is_plain
from gatecli.kinds.head.bias import bias_of, held_in, parted, parts_of, weight_of, zeroes_alike
from gatecli.kinds.head.places import (
    RESHAPES,
    TURNS,
    NotPartedError,
    Place,
    Spot,
    name_of,
    place_of,
    sources,
    turn_of,
)
from gatecli.lowering.region import branch_of
from gatecli.traced.traced import Traced

__all__ = ["Attention", "attention_at", "rows_of", "weights_of"]

MAPS = 4  # dimensions of a product's value (N, heads, L, D)
SHARED = "reads it too, outside of the attention"


@dataclass(frozen=True, kw_only=True)
class Attention:
    """An attention whose heads can be told apart.

    Attributes:
        value: What the heads compute, (N * parts, heads, L, D).
        heads: How many there are.
        parts: How many windows an image is cut into.
        projections: The projections that make queries, keys and values -> their rows.
        tables: Tensors with an entry for each head, as of relative positions.
        sized: What else has heads, whose sizes may be told as numbers.
        output: The output projection.
        columns: Those of it that read the heads.
        tokens: The value that the projections read.
        images: The same before windows are cut: one entry an image.
        region: All nodes behind `tokens`, up to and with the output projection, but for constants
            that others read too.
    """

    value: fx.Node
    heads: int
    parts: int
    projections: dict[fx.Node, Place]
    tables: dict[fx.Node, Place]
    sized: dict[fx.Node, Place]
    output: fx.Node
    columns: Place
    tokens: fx.Node
    images: fx.Node
    region: set[fx.Node]


def attention_at(net: Traced, value: fx.Node) -> Attention:
    """The attention whose heads' product a value is.

    Raises:
        NotPartedError: Its heads cannot be told apart.
    """
    shape = net.shape(value)
    if len(shape) != MAPS:
        raise NotPartedError("its heads are no dimension of their own: they lie in the batch")
    heads = shape[1]
    made = _followed(net, value, heads)
    chain, output, columns = _read_by(net, value, heads)
    projections = {node: place for node, place in made.items() if _projects(net, node)}
    tables = {node: place for node, place in made.items() if node.op == "get_attr"}
    fixed = constants(value.graph)  # what makes a bias of positions looks at no image
    read = [node.all_input_nodes[0] for node in projections]
    entries = list(dict.fromkeys(node for node in read if node not in fixed))
    if len(entries) != 1:
        raise NotPartedError("its queries, keys and values are made of different values")
    region = _between(net.root, entries[0], output)
    _check_closed(net.root, [*made, *chain], region)
    region = _own(region, fixed)
    images = _images(net, entries[0], shape[0])
    sized = {node: place for node, place in made.items() if node not in (projections | tables)}
    return Attention(
        value=value,
        heads=heads,
        parts=shape[0],
        projections=projections,
        tables=tables,
        sized=sized | chain,
        output=output,
        columns=columns,
        tokens=entries[0],
        images=images,
        region=region,
    )


def weights_of(node: fx.Node) -> tuple[str, str]:
    """The paths of a projection's weight and bias; of a bias in parts none."""
    if node.op == "call_module":
        return f"{node.target}.weight", f"{node.target}.bias"
    bias = held_in(bias_of(node))
    return str(weight_of(node).target), str(getattr(bias, "target", ""))


def rows_of(net: Traced, node: fx.Node, place: Place, heads: int) -> dict[str, Place]:
    """The paths of the tensors whose rows a projection's heads are, and where they lie there."""
    rows = replace(place, dim=0)
    if node.op == "call_module":
        return dict.fromkeys(weights_of(node), rows)
    bias = bias_of(node)
    parts = {} if bias is None else parted(net, bias, place, heads) or {}
    return {weights_of(node)[0]: rows, **{str(part.target): at for part, at in parts.items()}}


def _projects(net: Traced, node: fx.Node) -> bool:
    """Whether a node is a linear layer, or the function with weights of the network."""
    if node.op == "call_module":
        return is_plain(module_of(net.root, node), nn.Linear)
    if node.target is not F.linear or held_in(weight_of(node)) is None:
        return False
    return bias_of(node) is None or bool(parts_of(bias_of(node)))


def _followed(net: Traced, value: fx.Node, heads: int) -> dict[fx.Node, Place]:
    """All that a product is made of, back to projections and tables, and where heads lie in it."""
    shape = net.shape(value)
    found: dict[fx.Node, Place] = {}
    fixed = constants(value.graph)
    todo = [Spot(value, shape[0], shape[2] * shape[3])]
    while todo:
        spot = todo.pop()
        place = _placed(net, spot, heads)
        if spot.node in found and found[spot.node] != place:
            raise NotPartedError(f"`{spot.node.name}` is read in two ways")
        if spot.node in found:
            continue
        if place.dim == 0 and spot.node not in fixed:
            raise NotPartedError("its heads lie in the batch")
        found[spot.node] = place
        if spot.node.op != "get_attr" and not _is_end(net, spot.node, place, heads):
            todo += sources(net, spot, heads)
    return found


def _placed(net: Traced, spot: Spot, heads: int) -> Place:
    place = place_of(net.shape(spot.node), spot.outer, spot.inner, heads)
    if place is None:
        raise NotPartedError(
            f"`{spot.node.name}` holds its {heads} heads in several dimensions, as where heads"
            " share keys and values (grouped-query attention), which is not supported"
        )
    return place


def _is_end(net: Traced, node: fx.Node, place: Place, heads: int) -> bool:
    """Whether a node is a projection whose rows are heads."""
    if not _projects(net, node):
        return False
    if place.dim != len(net.shape(node)) - 1:
        raise NotPartedError(f"the heads of `{node.name}` are not made of rows of its weights")
    bias = bias_of(node) if node.op == "call_function" else None
    if bias is not None and not zeroes_alike(net, bias, place):
        raise NotPartedError(f"the bias of `{node.name}` is set to zero for parts of heads")
    if bias is not None and parted(net, bias, place, heads) is None:
        raise NotPartedError(f"the bias of `{node.name}` is put together of parts of heads")
    once = node.op != "call_module" or calls(node.graph, node) == 1
    if not once or any(len(held.users) > 1 for held in _held(node)):
        raise NotPartedError(f"`{node.name}` has weights that are used more than once")
    return True


def _held(node: fx.Node) -> list[fx.Node]:
    """The tensors of the network that a projection is given."""
    if node.op == "call_module":
        return []
    return [*parts_of(weight_of(node)), *parts_of(bias_of(node))]


def _read_by(
    net: Traced, value: fx.Node, heads: int
) -> tuple[dict[fx.Node, Place], fx.Node, Place]:
    """What follows the product: nodes, the output projection, and its columns.

    Raises:
        NotPartedError: Something else reads the heads.
    """
    shape = net.shape(value)
    spot, chain = Spot(value, shape[0], shape[2] * shape[3]), dict[fx.Node, Place]()
    while True:
        readers = [user for user in spot.node.users if not reads_size(user)]
        if len(readers) != 1:
            raise NotPartedError(f"`{spot.node.name}` is read {len(readers)} times")
        (reader,) = readers
        if _projects(net, reader):
            if reader.op == "call_function" and len(parts_of(bias_of(reader))) > 1:
                raise NotPartedError(f"the bias of `{reader.name}` is put together of several")
            place = _placed(net, spot, heads)
            if place.dim == len(net.shape(spot.node)) - 1:
                return chain, reader, place
        outer, inner = _handed_on(net, reader, spot, heads)
        spot = Spot(reader, outer, inner)
        chain[reader] = _placed(net, spot, heads)


def _handed_on(net: Traced, reader: fx.Node, spot: Spot, heads: int) -> tuple[int, int]:
    """How a reader's numbers lie, of what it reads; see `Spot`."""
    same = isinstance(module_of(net.root, reader), (nn.Identity, nn.Dropout))
    name = name_of(reader)
    if same or is_mask(reader) or name in (*RESHAPES, "dropout"):
        return spot.outer, spot.inner
    if name not in TURNS:
        raise NotPartedError(f"its heads are mixed by `{reader.name}` before they are projected")
    place = _placed(net, spot, heads)
    dim = turn_of(reader, len(net.shape(reader))).index(place.dim)
    shape = net.shape(reader)
    return int(torch.Size(shape[:dim]).numel()), int(torch.Size(shape[dim + 1 :]).numel())


def _between(root: nn.Module, first: fx.Node, last: fx.Node) -> set[fx.Node]:
    """All that `last` is computed from behind `first`, constants and all, decisions left out."""
    region, todo = set[fx.Node](), [last]
    while todo:
        node = todo.pop()
        if node is first or node in region or is_decision(root, node) or node.target is for_parts:
            continue
        if node.op == "placeholder":
            raise NotPartedError("it reads another value beside the one that it attends to")
        region.add(node)
        todo += node.all_input_nodes
    return {node for node in region if node.target is not spread}


def _own(region: set[fx.Node], fixed: set[fx.Node]) -> set[fx.Node]:
    """A region without constants that are read outside of it, as rotations of all layers are."""
    own = set(region)
    for node in reversed(next(iter(region)).graph.nodes):
        if node in own and node in fixed and not own.issuperset(node.users):
            own.remove(node)
    return own


def _check_closed(root: nn.Module, heads: Iterable[fx.Node], region: set[fx.Node]) -> None:
    """See whether nothing outside reads what has heads."""
    for node in heads:
        others = [user for user in node.users if user not in region and not reads_size(user)]
        if others:
            raise NotPartedError(f"`{others[0].name}` {SHARED}")


def _images(net: Traced, tokens: fx.Node, parts: int) -> fx.Node:
    """The value that tokens are cut from, one entry an image; tokens themselves where uncut."""
    node = tokens
    while not net.holds_images(node) or len(net.shape(node)) > MAPS:
        if node.op in ("placeholder", "get_attr") or not node.all_input_nodes:
            raise NotPartedError("it does not attend to parts of images")
        node = node.all_input_nodes[0]
    if node is not tokens and not _in_order(net, node, tokens, parts):
        raise NotPartedError("the windows of an image do not follow one another in the batch")
    if node is tokens and parts != 1:
        raise NotPartedError("windows are cut behind its projections")
    return node


def _in_order(net: Traced, images: fx.Node, tokens: fx.Node, parts: int) -> bool:
    """Whether an image's windows follow one another, found out by cutting two plain images."""
    shape = net.shape(images)
    x = torch.ones(2, *shape[1:], device="cpu")
    x[1] = 2
    cut = branch_of(_between(net.root, images, tokens), images, tokens)
    try:
        with torch.no_grad():
            found = cut(net.root, x)
    except Exception:  # whatever lies between may want other values, or values at all
        return False
    first, second = found[:parts], found[parts:]
    in_first = bool(((first == 1) | (first == 0)).all())
    in_second = bool(((second == 2) | (second == 0)).all())
    return len(found) == 2 * parts and in_first and in_second
