"""The gated network: the source's own modules under their own names, and a graph that says how they are called."""
from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatecli.errors import ArchitectureError, SettingError
from gatecli.execute import LOWERED, economical, lower, staged
from gatecli.executors import Staged
from gatecli.gates import Exit, Gate
from gatecli.graph import branches, convs, lean, narrow, rewrite, slices
from gatecli.graph.dense import find_sites
from gatecli.graph.exits import behind, exits_after, find_exits, macs_behind
from gatecli.graph.filters import find_filters
from gatecli.graph.macs import NodeCost, count_nodes
from gatecli.graph.ops import is_mask, is_pick
from gatecli.graph.sites import Site
from gatecli.graph.trace import compile_graph, trace
from gatecli.operating import choose_recorded
from gatecli.recipe import InputSpec, Recipe
from gatecli.record import gates_of

Form = Callable[..., Any]  # (root, images) -> logits


class Network(nn.Module):
    """A classifier (N, C, H, W) -> (N, classes), traced, with sites that can be gated and removed.

    In training it runs the masked graph; in evaluation the lowered one, which really skips. Its state dict has the source's names.

    Args:
        source: the classifier to trace; its modules are shared, not copied, and may lose their `inplace`.
        recipe: where it comes from and how large its images are.
        names: parts of module paths to spell otherwise, see gatecli.graph.rewrite.rename.
        leaves: patterns of module paths that tracing keeps whole.
    Raises: ArchitectureError where the network cannot be traced, or does not take such images.
    """

    def __init__(self, source: nn.Module, recipe: Recipe, names: dict[str, str] | None = None, leaves: Sequence[str] = ()) -> None:
        super().__init__()
        graph = trace(source, leaves)
        for node in graph.nodes:
            part = str(node.target).partition(".")[0]
            if node.op in ("call_module", "get_attr") and part in RESERVED:
                raise ArchitectureError(f"the network calls a part of itself `{part}`, a name that gatecli needs for its own: rename it")
        rewrite.adopt(self, source, graph)
        rewrite.rename(self, graph, names or {})
        if recipe.input.channels == 0:  # not known: ask the first convolution
            recipe = replace(recipe, input=replace(recipe.input, channels=input_channels(self, graph)))
        self.graph, self.recipe, self._forms = graph, recipe, dict[str, Form]()
        self.methods: dict[str, str] = {}  # site -> the method that gates it
        self.costs = self._count()
        self.sites: dict[str, Site] = find_sites(self, self.graph, self.costs)
        found = list(self.sites.values())
        self.boundaries = branches.find_boundaries(self, self.graph, self.costs, [site for site in found if site.kind == "block"])
        exits = find_exits(self, self.graph, self.costs, found)
        self.sites |= branches.branch_sites(self, self.graph, self.costs, self.boundaries)
        self.sites |= {site.name: site for site in [*find_filters(self, self.graph, self.costs, found), *exits]}
        self.sites |= {site.name: site for site in convs.find_convs(self, self.graph, self.costs)}
        self._behind: dict[str, set[str]] = {}  # exit in use -> the nodes that those who leave there do not come to
        self.recompile()
        self.train(source.training)

    def _count(self) -> dict[str, NodeCost]:
        image = (self.recipe.input.channels, *self.recipe.input.size)
        try:
            return lean.recounted(self, self.graph, count_nodes(self, self.graph, image))
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ArchitectureError(f"the network does not take images of {image[0]} x {image[1]} x {image[2]} ({reason}); `--input-size` says how it was trained") from error

    def recompile(self) -> None:
        """Let go of what nothing calls any more, and of the graph's executable forms; call it after the graph has changed."""
        rewrite.drop_unused(self, self.graph)
        self._modules.pop(LOWERED, None)
        self._forms.clear()
        self.train(self.training)  # new modules follow the network's mode

    @property
    def _masked(self) -> Form:
        """What training runs; made when first needed."""
        if "masked" not in self._forms:
            self._forms["masked"] = compile_graph(economical(self, self.graph))
        return self._forms["masked"]

    @property
    def _skipping(self) -> Form:
        """What evaluation runs; made when first needed. A `Staged` one where the network has exits."""
        if "skipping" not in self._forms:
            lowered = lower(self, self.graph, self.costs)
            self._forms["skipping"] = staged(lowered) or compile_graph(lowered)
        return self._forms["skipping"]

    def recount(self) -> None:
        """Count every node's MACs anew; call it after structure or input size has changed."""
        self.costs = self._count()
        self._offer_branches()
        nodes = {node.name: node for node in self.graph.nodes}
        exits = {name: site for name, site in self.sites.items() if site.kind == "exit"}
        self._behind = {name: {node.name for node in behind(self.graph, nodes[site.entry])} for name, site in exits.items() if name in self.methods}
        for name, site in exits.items():
            saved, shape = macs_behind(self.graph, self.costs, nodes[site.entry]), self.costs[site.entry].shape
            channels = shape[1] if shape is not None and site.positions == (2, 3) else site.channels
            self.sites[name] = replace(site, macs=saved, unit_macs=saved, channels=channels)
        for name, site in list(self.sites.items()):
            if site.kind == "exit":
                continue
            behind_choice = site.kind == "filter" and site.tail[-1] != site.value  # the convolution's channels are gated, or were
            if behind_choice and f"{site.name.removesuffix('.filters')}{convs.SUFFIX}" in self.sites:
                continue
            if behind_choice or not {site.value, site.entry} <= self.costs.keys():  # went with what was around it
                del self.sites[name]
                self.methods.pop(name, None)
                continue
            branch = tuple(node for node in site.branch if node in self.costs)
            macs, shape, width = round((1 - site.always) * sum(self.costs[node].macs for node in branch)), self.costs[site.entry].shape, self.costs[site.value].shape
            if site.kind == "conv" and name not in self.methods:
                site = replace(site, units=self._width(site.branch[0]))
            own = 0 if site.kind == "branch" else macs // site.units
            if site.tail:
                assert width is not None
                site = replace(site, units=width[1]) if site.kind == "filter" and not site.places else site
                own = sum(self.costs[node].macs for node in site.tail) // (width[1] if site.places else site.units)
            channels = shape[1] if site.kind in ("layer", "filter") and shape is not None else site.channels
            self.sites[name] = replace(site, branch=branch, macs=macs, unit_macs=own, channels=channels)

    def _offer_branches(self) -> None:
        """Let the branches without gates that are sites be those of modules that are whole."""
        found = branches.branch_sites(self, self.graph, self.costs, {name: each for name, each in self.boundaries.items() if name not in self.methods})
        gone = {name for name in self.boundaries if name not in self.methods and name not in found}
        self.sites = {name: site for name, site in self.sites.items() if name not in gone} | found

    def forward(self, x: Tensor, return_exits: bool = False) -> Any:
        """x (N, C, H, W) -> logits (N, K); with `return_exits` also the exit that each sample took, (N,): its number from 0 on, the number of exits for none."""
        form = self._masked if self.training else self._skipping
        if not isinstance(form, Staged):
            logits = form(self, x)
            return (logits, torch.zeros(x.shape[0], dtype=torch.long, device=x.device)) if return_exits else logits
        logits, taken = form(self, x)
        return (logits, taken) if return_exits else logits

    def at_exits(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """In evaluation, the values at which the exits stand, by site, and the logits of the network's own end: for all samples, nobody leaving."""
        form = self._skipping
        if not isinstance(form, Staged):
            return {}, form(self, x)
        values, logits = form.values(self, x)
        return dict(zip((path.partition(".")[2] for path in form.exits), values, strict=True)), logits

    @property
    def site_gates(self) -> dict[str, Gate]:
        """The gates by site, in the order in which they run."""
        return gates_of(self)

    @property
    def site_exits(self) -> dict[str, Exit]:
        """The exits by site, in the order in which they are come to."""
        return {site: gate for site, gate in self.site_gates.items() if isinstance(gate, Exit)}

    def set_operating_point(self, *, target_acc: float | None = None, max_gmacs: float | None = None, max_ms: float | None = None) -> dict[str, Any]:
        """Move the exits' thresholds along the frontier that calibrate has recorded; returns the point taken.

        Args: target_acc: the cheapest point with at least this val top-1, in percent. max_gmacs, max_ms: the most accurate one for at most so many
            GMACs, or milliseconds where calibrate measured them.
        Raises: SettingError where no frontier is recorded, or it holds no such point.
        """
        point = choose_recorded(self.recipe, list(self.site_exits), target_acc, max_gmacs, max_ms)
        for site, exit_ in self.site_exits.items():
            exit_.threshold.fill_(point["thresholds"][site])
        return point

    @property
    def input(self) -> InputSpec:
        return self.recipe.input

    @property
    def macs_dense(self) -> int:
        """MACs of one image with every unit running, gates included."""
        return sum(cost.macs for cost in self.costs.values())

    def gate_macs(self, site: str) -> int:
        """MACs of one image that a site's gate, or an exit with its classifier, costs itself; 0 where there is none."""
        owned = {f"gates.{site}", f"exits.{site}"}
        return sum(self.costs[node.name].macs for node in self.graph.nodes if node.op == "call_module" and node.target in owned)

    @property
    def params(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def num_classes(self) -> int:
        """How many logits the network returns. Raises ArchitectureError where it returns something else."""
        output = next(node for node in self.graph.nodes if node.op == "output")
        returned = output.args[0]
        if isinstance(returned, fx.Node) and is_pick(returned):
            returned = returned.args[0]
        shape = self.costs[returned.name].shape if isinstance(returned, fx.Node) else None
        if shape is None or len(shape) != 2:
            raise ArchitectureError(f"expected the network to return logits (N, classes), but it returns {shape or 'something else'}")
        return shape[1]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def insert_gate(self, site: str, gate: Gate, method: str, sees: str = "") -> None:
        """Gate a site; `recompile` and `recount` once all are in. The gate sees the site's entry, or the node that `sees` names.

        Raises SettingError where it carries a gate already, or cannot be split into as many units as the gate has.
        """
        if site in self.methods:
            raise SettingError(f"expected `{site}` to carry no gate, but {self.methods[site]} gates it")
        self._check_not_nested(site)
        if self.sites[site].kind == "conv":
            self._reread(*convs.insert_channel_gate(self, self.graph, self.sites[site], gate), site)
            self.sites[site] = replace(self.sites[site], units=gate.units, always=gate.always)  # type: ignore[arg-type]
        else:
            if gate.units > 1 and not self.sites[site].tail:
                self._split(site, gate.units)
            rewrite.insert_mask(self, self.graph, self.sites[site], gate, sees)
        self.methods[site] = method

    def _check_not_nested(self, name: str) -> None:
        """Gates within gated branches would decide for some of the samples alone, but for those of filters, which are told. Raises SettingError."""
        branch = set(self.sites[name].branch)
        for other in self.methods.keys() - {name}:
            kinds = {self.sites[name].kind, self.sites[other].kind}
            told = len(kinds) == 2 and "filter" in kinds and kinds <= {"filter", "block", "layer"}
            if branch & set(self.sites[other].branch) and not told:
                raise SettingError(f"`{name}` and `{other}`, which {self.methods[other]} gates, lie one within the other: prune first, or leave it out with --exclude '{name}'")

    def _reread(self, before: str, now: str, but: str, more: Sequence[str] = ()) -> None:
        """Let all sites `but` one name the node `now` where they named `before`; `more` nodes compute in those that hold its convolution."""
        conv, left = self.sites[but].branch[0], {node.name for node in self.graph.nodes}
        for name, site in self.sites.items():
            if name != but:
                entry, value, shortcut = (now if node == before else node for node in (site.entry, site.value, site.shortcut))
                branch = tuple(node for node in (*site.branch, *more) if node in left) if conv in site.branch else site.branch
                self.sites[name] = replace(site, entry=entry, value=value, shortcut=shortcut, branch=branch)

    def _split(self, name: str, units: int) -> None:
        site = self.sites[name]
        tail, shape = slices.tail_of(self, rewrite.node_named(self.graph, site.value)), self.costs[site.value].shape
        if not tail or shape is None:
            raise SettingError(f"`{name}` cannot be split into {units} units: its branch does not end in a convolution whose filters can be told apart; leave it out with --exclude")
        if shape[1] % units:
            raise SettingError(f"expected the number of units to divide the {shape[1]} filters of `{name}`, but got {units}")
        self.sites[name] = replace(site, units=units, tail=tuple(node.name for node in tail))

    def insert_connections(self, site: str, gate: Gate, method: str, streams: bool) -> None:
        """Let each branch of the modules behind a boundary read what `gate` says, in `streams` of their own; else all read all, in one stream.

        Raises SettingError where the site carries a gate already, or a gate or an exit stands in the way.
        """
        boundary = self.boundaries[site]
        taken = {name: method for name, method in self.methods.items() if name in (boundary.module.block, boundary.reader.block, site)}
        if streams:
            taken |= self._in_the_way(boundary)
        if taken:
            name, other = next(iter(taken.items()))
            what, way_out = ("have no exit", f"--exclude '{site}'") if self.sites[name].kind == "exit" else ("carry no gate", "--exclude")
            raise SettingError(f"expected `{name}` to {what}, but {other} {'has put one there' if what == 'have no exit' else 'gates it'}: prune first, or leave it out with {way_out}")
        if streams:
            self._drop_sites_with_streams(boundary)
            branches.insert_connections(self, self.graph, site, boundary, gate)
        else:
            branches.insert_mask_on_branches(self, self.graph, site, boundary, gate)
        self.methods[site] = method

    def _in_the_way(self, boundary: branches.Boundary) -> dict[str, str]:
        """The gated sites, and the exits, that cannot stand where there are streams."""
        layers, values = branches.with_streams(boundary)
        return {name: method for name, method in self.methods.items() if layers & set(self.sites[name].branch) or (self.sites[name].kind == "exit" and self.sites[name].entry in values)}

    def _drop_sites_with_streams(self, boundary: branches.Boundary) -> None:
        """A block that has streams can no more be skipped as a whole, nor can its convolutions' channels be told apart, nor does an exit read them."""
        layers, values = branches.with_streams(boundary)
        for name, site in list(self.sites.items()):
            inside = site.kind in ("filter", "conv") and layers & set(site.branch)
            if inside or name in (boundary.module.block, boundary.reader.block) or (site.kind == "exit" and site.entry in values):
                del self.sites[name]

    def fix_connections(self, kept: Mapping[str, Sequence[int]], fixed: Mapping[str, nn.Module]) -> None:
        """Keep only these branches at these sites for good; `fixed`: what takes a gate's place, see gatecli.graph.branches.fix. The gates go."""
        for site, places in kept.items():
            branches.fix(self, self.graph, site, self.boundaries[site], places, fixed.get(site))
            self.methods.pop(site)
            self.sites.pop(site)

    def insert_exit(self, site: str, exit_: Exit, method: str) -> None:
        """Put an exit in; `recompile` and `recount` once all are in. Raises SettingError where the site has one already."""
        if site in self.methods:
            raise SettingError(f"expected `{site}` to have no exit, but {self.methods[site]} has put one there")
        rewrite.insert_exit(self, self.graph, self.sites[site], exit_)
        self.methods[site] = method

    def place_exits(self, after: Sequence[str]) -> None:
        """Let the exit sites be those after these blocks or layers. Raises SettingError, also where exits are in use already."""
        used = [name for name in self.methods if self.sites[name].kind == "exit"]
        others = {name: site for name, site in self.sites.items() if site.kind != "exit"}
        found = exits_after(self, self.graph, self.costs, {name: site for name, site in others.items() if site.kind in ("block", "layer")}, after)
        if used:
            raise SettingError(f"the network has exits already ({', '.join(used)}): their places cannot change")
        self.sites = {**others, **{site.name: site for site in found}}

    def remove_exit(self, site: str) -> None:
        """Take an exit out: nobody leaves there."""
        rewrite.remove_exit(self.graph, self.sites[site])
        self.methods.pop(site)

    def end_at_exit(self, site: str) -> None:
        """Let everybody who comes to an exit leave there; what lies behind it goes."""
        rewrite.end_at_exit(self, self.graph, self.sites[site], self.site_exits[site].head())
        left = {node.name for node in self.graph.nodes}
        self.methods.pop(site)
        self.sites = {name: other for name, other in self.sites.items() if {other.value, other.add} - {""} <= left and other.entry in left and name != site}
        self.methods = {name: method for name, method in self.methods.items() if name in self.sites}

    def before(self, site: str) -> list[str]:
        """The exits at which a sample may have left before it comes to a site."""
        place = self.sites[site].value or self.sites[site].entry
        return [name for name, nodes in self._behind.items() if name != site and (place in nodes or (self.sites[site].kind == "exit" and self._earlier(name, site)))]

    def _earlier(self, one: str, other: str) -> bool:
        names = [node.name for node in self.graph.nodes]
        return names.index(self.sites[one].entry) < names.index(self.sites[other].entry)

    def remove_gate(self, site: str) -> None:
        """Let a gated site always run, as it did before it was gated."""
        old = self.sites[site]
        if old.kind == "conv":
            self._reread(*convs.remove_channel_gate(self.graph, old), site)
            self.sites[site] = replace(self.sites[site], units=self._width(old.branch[0]), always=0.0)
            self.methods.pop(site)
            return
        rewrite.remove_mask(self.graph, old)
        if old.kind == "filter":
            self.sites[site] = replace(old, units=self._width(old.value), places=())
        else:
            self.sites[site] = replace(old, units=1, tail=())
        self.methods.pop(site)

    def _width(self, node: str) -> int:
        shape = self.costs[node].shape
        assert shape is not None
        return shape[1]

    def why_not_removable(self, sites: Iterable[str]) -> dict[str, str]:
        """What stands in the way of removing the branches of these sites for good, all together; those left out where nothing does."""
        reasons, replaced = dict[str, str](), dict[fx.Node, fx.Node]()
        for name in sites:
            site = self.sites[name]
            if site.kind == "block":
                replaced[rewrite.node_named(self.graph, site.add)] = rewrite.node_named(self.graph, site.shortcut)
            elif self._is_summand(name):
                added = rewrite.additions_of_zero(self, rewrite.node_named(self.graph, site.value), replaced)
                if added is None:
                    reasons[name] = "nothing else would be left of the sum that it goes into"
                replaced |= added or {}
            elif site.kind in ("layer", "filter") and (why := slices.foldable(self, self.graph, self.costs, self._nothing_of(name))) is not None:
                reasons[name] = why
        return reasons

    def _is_summand(self, site: str) -> bool:
        """Whether a site's value goes into additions alone, so that these do without it."""
        place = self.sites[site]
        return place.kind == "filter" and rewrite.additions_of_zero(self, rewrite.node_named(self.graph, place.value)) is not None

    def _nothing_of(self, site: str) -> dict[fx.Node, list[int]]:
        return {self._output(site): list(range(self._width(self.sites[site].value)))}

    def remove_branches(self, sites: Collection[str], narrowed: Mapping[fx.Node, Sequence[int]] | None = None) -> None:
        """Take sites out of the network for good, with their gates; `narrowed`: what `keep_units` returned of others, to be done with them. Raises SettingError where one cannot be removed, see `why_not_removable`."""
        for site in [name for name in sites if self.sites[name].kind == "conv"]:
            self.keep_units(site, [])
        sites = [name for name in sites if name in self.sites]
        folded = {**(narrowed or {})} | {node: gone for site in sites if self.sites[site].kind in ("layer", "filter") and not self._is_summand(site) for node, gone in self._nothing_of(site).items()}
        if folded:
            slices.fold(self, self.graph, self.costs, folded)
        for site in sites:
            self.methods.pop(site, None)
            if site not in self.sites:
                continue
            gone = rewrite.remove_branch(self, self.graph, self.sites.pop(site))
            for name, other in self.sites.items():
                entry, value, shortcut = (gone.get(node, node) for node in (other.entry, other.value, other.shortcut))
                self.sites[name] = replace(other, entry=entry, value=value, shortcut=shortcut)

    def keep_units(self, site: str, kept: Sequence[int], round_to: int = 1, dynamic: Sequence[int] = (), wide: bool = True) -> dict[fx.Node, list[int]]:
        """Take all other units of a split site out for good, those in `kept` without a gate from now on; those in `dynamic` are decided as before.

        round_to: keep so many more filters, giving zeros, that their number is a multiple of this, as fast kernels like it.
        wide: who reads the value gets zeros in the place of what is gone; else they are to lose these channels too (gatecli.graph.slices.fold).
        Returns, for those, value -> channels that are gone.
        """
        if self.sites[site].kind == "conv":
            self.decide_units(site, kept, sorted(set(range(self.sites[site].units)) - {*kept, *dynamic}))
            return {}
        old = self.sites[site]
        result = narrow.narrow(self, self.graph, self.costs, old, kept, dynamic, round_to)
        self.sites[site] = result.site
        if result.output.name not in self.costs:  # it stands for the value in its full width, until all is done
            self.costs[result.output.name] = self.costs[old.value]
        if not dynamic:
            self.methods.pop(site)
        if not result.gone:
            return {}
        if not wide:
            return {result.output: result.gone}
        last = narrow.widen_again(self.graph, result)
        for name, other in self.sites.items():
            if other.value == old.value and other.kind != "filter":
                self.sites[name] = replace(other, value=last.name, branch=(*other.branch, last.name))
        return {}

    def why_stays_wide(self, site: str, kept: Sequence[int]) -> str | None:
        """Why who reads a site's value must go on reading zeros in the place of units not in `kept`; None where they can lose these channels too."""
        gone = narrow.gone_channels(self.sites[site], self._width(self.sites[site].value), kept)
        return slices.foldable(self, self.graph, self.costs, {self._output(site): gone})

    def decide_units(self, site: str, opened: Sequence[int], closed: Sequence[int]) -> None:
        """Let these units of a convolution always run, and these never, for good; its gate decides for the others, and goes where there are none."""
        gate: Any = self.site_gates[site]
        before, now, more = convs.decide_channels(self, self.graph, self.sites[site], opened, closed)
        self._reread(before, now, site, more)
        if len(opened) + len(closed) == self.sites[site].units:
            del self.sites[site], self.methods[site]
            return
        conv: Any = self.get_submodule(site.removesuffix(convs.SUFFIX))
        share = gate.units / (conv.in_channels if gate.of_inputs else conv.out_channels)
        always = 1 - share if gate.of_inputs else 1 - (1 - gate.always) * share
        self.sites[site] = replace(self.sites[site], units=gate.units, always=always)

    def _output(self, site: str) -> fx.Node:
        """What others read of a site: its branch's value, masked where it is gated."""
        value = rewrite.node_named(self.graph, self.sites[site].value)
        while len(value.users) == 1 and is_mask(user := next(iter(value.users))):
            value = user
        return value

    def copy(self) -> Network:
        """An independent copy: its own tensors, graph and gates."""
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        own = {**self.__dict__, "_forms": {}, "_modules": {name: part for name, part in self._modules.items() if name != LOWERED}}
        twin.__dict__.update({key: copy.deepcopy(value, memo) for key, value in own.items()})
        return twin


RESERVED = {*vars(Network), "graph", "boundaries", "recipe", "methods", "costs", "sites", "gates", "exits", "gater", LOWERED} - {"__init__", "forward"}


def input_channels(root: nn.Module, graph: fx.Graph) -> int:
    """Channels of the images that the network takes: those of the first convolution that reads the input; 3 where there is none."""
    for node in graph.nodes:
        module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return module.in_channels
    return 3
