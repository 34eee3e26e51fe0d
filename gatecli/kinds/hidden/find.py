"""Find hidden units on the traced graph: what is widened, and narrowed again.

Three forms, in all of which a unit is a row of the first layer and a column of the last:

    perceptron          linear layer -> what treats each unit apart -> linear layer, on tokens
                        (N, L, C) or on maps (N, H, W, C); or two 1x1 convolutions. ViT, Swin,
                        ConvNeXt
    gated perceptron    the same behind the product of two such layers, or of two halves of one: a
                        unit is a row of both (see gated.py). SwiGLU: DINOv2, EVA-02, AIMv2
    inverted residual   1x1 convolution -> a depthwise one -> squeeze-and-excitation, or none ->
                        1x1 convolution, each with its BatchNorm and activation. MobileNet,
                        EfficientNet

The value that is masked comes last, before who reads it: a BatchNorm makes more of zero, so does a
GELU of a bias, but nothing follows the mask any more, and squeeze-and-excitation sees zeros. Two
linear layers on (N, C) are a classifier's, and are taken where the first one widens, as a
squeeze-and-excitation's never does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx, nn

from gatecli.graph import prune_channels
from gatecli.graph.flow import constants
from gatecli.graph.ops import is_decision, is_mask, module_of, widen
from gatecli.graph.patterns import is_product, keeps_zero
from gatecli.kinds.hidden.apart import is_depthwise, is_pointwise, works_apart
from gatecli.kinds.hidden.gated import gated_tail
from gatecli.traced.site import Site
from gatecli.traced.traced import Traced

__all__ = ["SUFFIX", "Hidden", "HiddenFinder", "hidden_at", "refusals"]

SUFFIX = ".hidden"


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """Hidden units on the graph.

    Attributes:
        tail: From the first layer to the value that has one channel a unit.
        between: What squeeze-and-excitation makes of the value, in order; empty where there is
            none.
        last: The layer that reads all units.
    """

    tail: list[fx.Node]
    between: list[fx.Node]
    last: fx.Node


class HiddenFinder:
    """Finds all hidden units of a network whose value can lose them."""

    def __init__(self, net: Traced, kind: str) -> None:
        self.net = net
        self.kind = kind

    def run(self) -> list[Site]:
        """All sites, in the order of execution."""
        found, net = [], self.net
        fixed = constants(net.graph)  # as what makes a bias of positions: computed of no image
        for node in net.graph.nodes:
            looks = node not in fixed and is_pointwise(net.root, node)
            hidden = hidden_at(net, node) if looks else None
            if hidden is not None and _is_widened(net, hidden) and self._can_go(hidden):
                found.append(self._site(hidden))
        return found

    def _can_go(self, hidden: Hidden) -> bool:
        """Whether those who read the units can do without one."""
        net, value = self.net, hidden.tail[-1]
        return prune_channels.foldable(net.root, net.graph, net.costs, {value: [0]}) is None

    def _site(self, hidden: Hidden) -> Site:
        first, value = hidden.tail[0], hidden.tail[-1]
        (entry,) = first.all_input_nodes
        shape = self.net.shape(entry)
        linear = isinstance(module_of(self.net.root, first), nn.Linear)
        axis = len(shape) - 1 if linear else 1
        names = tuple(node.name for node in hidden.tail)
        inside = (*names, *(node.name for node in hidden.between), hidden.last.name)
        return Site(
            name=f"{first.target}{SUFFIX}",
            kind=self.kind,
            units=self.net.channels(value),
            macs=self.net.macs(inside),
            entry=entry.name,
            value=value.name,
            branch=inside,
            channels=shape[axis],
            positions=tuple(place for place in range(1, len(shape)) if place != axis),
            tail=names,
        )


def hidden_at(net: Traced, first: fx.Node, value: fx.Node | None = None) -> Hidden | None:
    """The hidden units of which a layer is the first; None where it is none's.

    Args:
        net: The network.
        first: A linear layer or a 1x1 convolution.
        value: What is masked, where that is known; its masks are then passed over.
    """
    tail = _tail(net, first)
    if value is not None and tail[-1] is not value:
        return None
    readers, masked = _readers(net, tail[-1], gated=value is not None)
    between: list[fx.Node] = []
    if len(readers) > 1:
        between = _followed(net, _scaled(net, masked, readers))
        readers = _read_by(net, between[-1]) if between else []
    if len(readers) != 1 or not is_pointwise(net.root, readers[0]):
        return None
    return Hidden(tail=tail, between=between, last=readers[0])


def _tail(net: Traced, first: fx.Node) -> list[fx.Node]:
    """A layer, or a gated perceptron's two, and what follows unit by unit, up to what others read.

    What changes the shape belongs to it only where a depthwise convolution follows.
    """
    axis = -1 if isinstance(module_of(net.root, first), nn.Linear) else 1
    tail = end = gated_tail(net, first, axis) or [first]
    while len(tail[-1].users) == 1:
        (node,) = tail[-1].users
        if not works_apart(net, node, tail[-1], axis):
            break
        tail = [*tail, node]
        if is_depthwise(net.root, node) or net.shape(node) == net.shape(end[-1]):
            end = tail
    return end


def _readers(net: Traced, value: fx.Node, *, gated: bool) -> tuple[list[fx.Node], fx.Node]:
    """Who reads a value, or its one mask, in full width again; and which of these they read."""
    readers = _read_by(net, value)
    if gated and len(readers) == 1:
        value = readers[0]
        readers = _read_by(net, value)
    if len(readers) == 1 and readers[0].target is widen:
        value = readers[0]
        readers = _read_by(net, value)
    return readers, value


def _read_by(net: Traced, value: fx.Node) -> list[fx.Node]:
    """Who reads a value, gates left out."""
    return [user for user in value.users if not is_decision(net.root, user)]


def _scaled(net: Traced, value: fx.Node, readers: Sequence[fx.Node]) -> list[fx.Node]:
    """What a value is squeezed into and scaled by, and the product; empty where it is not.

    The scale's layers, all that is read by nothing else.
    """
    products = [user for user in readers if is_product(user)]
    if len(products) != 1:
        return []
    inside = _only_for(products[0], value)
    sources = set[fx.Node]()
    for node in inside:
        if not is_decision(net.root, node):  # which may look at what is before the value
            sources.update(node.all_input_nodes)
    closed = sources - inside <= {value} and inside.issuperset(readers)
    return [node for node in net.graph.nodes if node in inside] if closed else []


def _only_for(last: fx.Node, first: fx.Node) -> set[fx.Node]:
    """A node, and those behind another one that nothing else needs."""
    inside = {last}
    for node in reversed(last.graph.nodes):
        if node is first:
            break
        if node.users and inside.issuperset(node.users):
            inside.add(node)
    return inside


def _followed(net: Traced, between: list[fx.Node]) -> list[fx.Node]:
    """The same with the activations behind it, which leave zeros as they are."""
    while between and len(_read_by(net, between[-1])) == 1:
        (node,) = _read_by(net, between[-1])
        if not keeps_zero(net.root, node, between[-1]) or is_mask(node):
            break
        between = [*between, node]
    return between


def _is_widened(net: Traced, hidden: Hidden) -> bool:
    """Whether the units are an expansion's, and hold one value an image.

    A convolution's without a depthwise one behind it, and a classifier's, are where they are more
    than what comes in: squeeze-and-excitation narrows.
    """
    first = hidden.tail[0]
    if type(module_of(net.root, first)) is not type(module_of(net.root, hidden.last)):
        return False
    if not all(net.holds_images(node) for node in (first, hidden.tail[-1])):
        return False
    if any(is_depthwise(net.root, node) for node in hidden.tail):
        return True
    module = module_of(net.root, first)
    if isinstance(module, nn.Linear):
        return len(net.shape(first)) > 2 or module.out_features > module.in_features
    assert isinstance(module, nn.Conv2d)
    return module.out_channels > module.in_channels and not hidden.between


def refusals(net: Traced) -> dict[str, str]:
    """Gated perceptrons whose units cannot go one by one, by their sites' names."""
    found, taken = {}, {name for site in HiddenFinder(net, "").run() for name in site.tail}
    for node in net.graph.nodes:
        if not is_product(node) or node.name in taken:
            continue
        firsts = [_first_of(net, factor) for factor in node.all_input_nodes]
        for first in firsts if None not in firsts else ():
            assert first is not None
            found[f"{first.target}{SUFFIX}"] = (
                "is one of two layers, or of two parts of one, whose product is taken (a gated MLP,"
                " as SwiGLU), and what reads the product, as a norm over all units, cannot do"
                " without one"
            )
    return found


def _first_of(net: Traced, value: fx.Node) -> fx.Node | None:
    """The linear layer that alone makes a value, unit by unit or in parts."""
    node = value
    while node.op.startswith("call_") and len(node.all_input_nodes) == 1:
        if isinstance(module_of(net.root, node), nn.Linear):
            return node
        node = node.all_input_nodes[0]
    return None
