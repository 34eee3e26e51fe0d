"""Find where the filters of convolutions can be gated, on the traced graph.

Any convolution whose filters work apart from each other can be. A site's `role` says where it
stands, and is one of ROLES:

    residual       the last convolution of a residual branch
    branch         the last convolution of each way where a residual branch is a sum of several
                   (Shake-Shake)
    dense          the last convolution of a layer of a dense block, the block's first left out
    concatenation  what is concatenated, and read by nothing else (Inception, GoogLeNet): the same
                   as gates behind the concatenation. Where a part is no convolution's, as a
                   pooling's, nothing is saved by its closed gates

Reference: Chen, Li, Bengio, Si, "You look twice: GaterNet for dynamic filter selection in CNNs"
(2019), section 4.
"""

from __future__ import annotations

from torch import fx, nn

from gatecli.graph.ops import is_add, is_cat, is_shake, module_of, summands
from gatecli.graph.patterns import calls, is_plain, keeps_zero, tail_of
from gatecli.kinds.naming import module_path
from gatecli.traced.site import Site
from gatecli.traced.traced import Traced

__all__ = ["ROLES", "SUFFIX", "FilterFinder"]

# From what a network may have beside the others to what tells most.
ROLES = ("concatenation", "residual", "branch", "dense")
SUFFIX = ".filters"
Tail = list[fx.Node]


class FilterFinder:
    """Finds all convolutions whose filters can be gated; later rules replace earlier ones."""

    def __init__(self, net: Traced, kind: str) -> None:
        self.net = net
        self.kind = kind
        self.found: dict[str, Site] = {}  # by the path that a site is named by

    def run(self) -> list[Site]:
        """All sites, in the order of execution."""
        for node in self.net.graph.nodes:
            tail = self._conv_at(node)
            if tail:
                self._add([tail], "")
        self._within_sites()
        self._within_shakes()
        self._behind_concatenations()
        order = {node.name: index for index, node in enumerate(self.net.graph.nodes)}
        return sorted(self.found.values(), key=lambda site: order[site.tail[0]])

    def _add(self, tails: list[Tail], role: str) -> None:
        for tail in tails:
            self.found[str(tail[0].target)] = self._site(tail, role)

    def _within_sites(self) -> None:
        """The last convolutions of residual branches, and of layers of dense blocks."""
        sites = list(self.net.sites.values())
        features = {site.value for site in sites if not site.add}
        for site in sites:
            is_dense = not site.add
            if is_dense and not features & _features(self.net.node(site.entry)):
                continue  # the first of its block
            tails = self._tails(self.net.node(site.value))
            if all(tails):
                of_branch = "residual" if len(tails) == 1 else "branch"
                self._add(tails, "dense" if is_dense else of_branch)

    def _within_shakes(self) -> None:
        """Ways whose mean is taken, also where the shortcut has too many weights for a block."""
        for node in self.net.graph.nodes:
            tails = self._tails(node) if is_shake(node) else [[]]
            if all(tails):
                self._add(tails, "branch")

    def _behind_concatenations(self) -> None:
        for cat in self.net.graph.nodes:
            if not is_cat(cat) or any(is_cat(user) for user in cat.users):
                continue
            parts = _concatenated(cat)
            if all(self._own_maps(part) for part in parts) and not self._has_roles(parts):
                for part in parts:
                    path, site = self._part(cat, part)
                    self.found[path] = site

    def _has_roles(self, parts: list[fx.Node]) -> bool:
        """Whether a part is a convolution's that has a role already."""
        for part in parts:
            tail = tail_of(self.net.root, part)
            if tail and self.found[str(tail[0].target)].role:
                return True
        return False

    def _own_maps(self, part: fx.Node) -> bool:
        """Whether a value is made of maps, is maps itself, and has one reader."""
        shapes = [self.net.costs[node.name].shape for node in (part, *part.all_input_nodes)]
        are_maps = all(shape is not None and len(shape) == 4 for shape in shapes)
        return are_maps and len(part.users) == 1 and len(shapes) > 1

    def _part(self, cat: fx.Node, part: fx.Node) -> tuple[str, Site]:
        """A part of a concatenation as a site, with the path that it is named by."""
        tail = tail_of(self.net.root, part)
        if tail:
            return str(tail[0].target), self._site(tail, "concatenation")
        inside = module_path(cat, _concatenated(cat), self.net.root)
        path = str(part.target) if part.op == "call_module" else f"{inside}.{part.name}"
        entry = part.all_input_nodes[0]
        return path, Site(
            name=f"{path}{SUFFIX}",
            kind=self.kind,
            units=self.net.channels(part),
            macs=0,
            entry=entry.name,
            value=part.name,
            branch=(part.name,),
            channels=self.net.channels(entry),
            positions=(2, 3),
            tail=(part.name,),
            role="concatenation",
        )

    def _conv_at(self, node: fx.Node) -> Tail:
        """A convolution that starts at the node, with the BatchNorm behind it.

        Empty where it does not, or its filters do not work apart.
        """
        conv = module_of(self.net.root, node)
        if not isinstance(conv, nn.Conv2d) or not is_plain(conv, nn.Conv2d):
            return []
        if conv.groups != 1 or calls(node.graph, node) > 1 or not node.users:
            return []
        if not self.net.holds_images(node):
            return []
        after = next(iter(node.users))
        is_norm = is_plain(module_of(self.net.root, after), nn.BatchNorm2d)
        alone = len(node.users) == 1 and calls(node.graph, after) == 1
        return [node, after] if is_norm and alone else [node]

    def _tails(self, value: fx.Node) -> list[Tail]:
        """The last convolutions of all ways that are summed up in `value`.

        Each with what follows it channel by channel; an empty one where a way ends otherwise.
        """
        tail = tail_of(self.net.root, value)
        if tail:
            return [tail]
        if is_add(value) or is_shake(value):
            tails: list[Tail] = []
            for part in summands(value):
                tails += self._tails(part) if len(part.users) == 1 else [[]]
            return tails
        sources = [source for source in value.all_input_nodes if source.op != "get_attr"]
        if len(sources) != 1 or len(sources[0].users) != 1:
            return [[]]
        passes = keeps_zero(self.net.root, value, sources[0])
        return self._tails(sources[0]) if passes else [[]]

    def _site(self, tail: Tail, role: str) -> Site:
        conv = tail[0]
        (entry,) = conv.all_input_nodes
        module = module_of(self.net.root, conv)
        assert isinstance(module, nn.Conv2d)
        names = tuple(node.name for node in tail)
        return Site(
            name=f"{conv.target}{SUFFIX}",
            kind=self.kind,
            units=module.out_channels,
            macs=self.net.macs([conv.name]),
            entry=entry.name,
            value=tail[-1].name,
            branch=names,
            channels=module.in_channels,
            positions=(2, 3),
            tail=names,
            role=role,
        )


def _concatenated(cat: fx.Node) -> list[fx.Node]:
    """What a value is concatenated from, in order.

    Concatenations that nothing else reads are taken apart in turn.
    """
    found: list[fx.Node] = []
    for part in cat.args[0]:  # type: ignore[union-attr]
        assert isinstance(part, fx.Node)
        found += _concatenated(part) if is_cat(part) and len(part.users) == 1 else [part]
    return found


def _features(entry: fx.Node) -> set[str]:
    """What a dense layer reads: the parts of the concatenations before it."""
    seen, todo = set[fx.Node](), [entry]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo.extend(node.all_input_nodes if is_cat(node) else [])
    return {node.name for node in seen}
