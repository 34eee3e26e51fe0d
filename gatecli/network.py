"""The gated network: the source's own modules under their own names, and a graph that says how they are called."""
from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatecli.errors import ArchitectureError, SettingError
from gatecli.execute import LOWERED, economical, lower
from gatecli.gates import Gate
from gatecli.graph import rewrite, slices
from gatecli.graph.dense import find_sites
from gatecli.graph.macs import NodeCost, count_nodes
from gatecli.graph.ops import is_mask
from gatecli.graph.settle import TRAINING
from gatecli.graph.sites import Site
from gatecli.graph.trace import compile_graph, trace
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
        self._adopt(source, graph)
        rewrite.rename(self, graph, names or {})
        if recipe.input.channels == 0:  # not known: ask the first convolution
            recipe = replace(recipe, input=replace(recipe.input, channels=input_channels(self, graph)))
        self.graph, self.recipe, self._forms = graph, recipe, dict[str, Form]()
        self.methods: dict[str, str] = {}  # site -> the method that gates it
        self.costs = self._count()
        self.sites: dict[str, Site] = find_sites(self, self.graph, self.costs)
        self.recompile()
        self.train(source.training)

    def _adopt(self, source: nn.Module, graph: fx.Graph) -> None:
        """Take what the graph reaches, under the same path; the source's containers stay its own."""
        for node in graph.nodes:
            path = str(node.target)
            if node.op in ("call_module", "get_attr") and path.partition(".")[0] in RESERVED:
                raise ArchitectureError(f"the network calls a part of itself `{path.partition('.')[0]}`, a name that gatecli needs for its own: rename it")
            if node.op == "call_module":
                rewrite.place(self, path, source.get_submodule(path))
            elif node.op == "get_attr" and path != TRAINING:
                rewrite.place_tensor(self, path, source)

    def _count(self) -> dict[str, NodeCost]:
        image = (self.recipe.input.channels, *self.recipe.input.size)
        try:
            return count_nodes(self, self.graph, image)
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
        """What evaluation runs; made when first needed."""
        if "skipping" not in self._forms:
            self._forms["skipping"] = compile_graph(lower(self, self.graph, self.costs))
        return self._forms["skipping"]

    def recount(self) -> None:
        """Count every node's MACs anew; call it after structure or input size has changed."""
        self.costs = self._count()
        for name, site in self.sites.items():
            macs, shape = sum(self.costs[node].macs for node in site.branch), self.costs[site.entry].shape
            own = sum(self.costs[node].macs for node in site.tail) // site.units if site.tail else macs
            channels = shape[1] if site.kind == "layer" and shape is not None else site.channels
            self.sites[name] = replace(site, macs=macs, unit_macs=own, channels=channels)

    def forward(self, x: Tensor) -> Any:
        return self._masked(self, x) if self.training else self._skipping(self, x)

    @property
    def site_gates(self) -> dict[str, Gate]:
        """The gates by site, in the order in which they run."""
        return gates_of(self)

    @property
    def input(self) -> InputSpec:
        return self.recipe.input

    @property
    def macs_dense(self) -> int:
        """MACs of one image with every unit running, gates included."""
        return sum(cost.macs for cost in self.costs.values())

    @property
    def params(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def num_classes(self) -> int:
        """How many logits the network returns. Raises ArchitectureError where it returns something else."""
        output = next(node for node in self.graph.nodes if node.op == "output")
        returned = output.args[0]
        shape = self.costs[returned.name].shape if isinstance(returned, fx.Node) else None
        if shape is None or len(shape) != 2:
            raise ArchitectureError(f"expected the network to return logits (N, classes), but it returns {shape or 'something else'}")
        return shape[1]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def insert_gate(self, site: str, gate: Gate, method: str) -> None:
        """Gate a site; `recompile` and `recount` once all are in.

        Raises SettingError where it carries a gate already, or cannot be split into as many units as the gate has.
        """
        if site in self.methods:
            raise SettingError(f"expected `{site}` to carry no gate, but {self.methods[site]} gates it")
        if gate.units > 1:
            self._split(site, gate.units)
        rewrite.insert_mask(self, self.graph, self.sites[site], gate)
        self.methods[site] = method

    def _split(self, name: str, units: int) -> None:
        site = self.sites[name]
        tail, shape = slices.tail_of(self, rewrite.node_named(self.graph, site.value)), self.costs[site.value].shape
        if not tail or shape is None:
            raise SettingError(f"`{name}` cannot be split into {units} units: its branch does not end in a convolution whose filters can be told apart; leave it out with --exclude")
        if shape[1] % units:
            raise SettingError(f"expected the number of units to divide the {shape[1]} filters of `{name}`, but got {units}")
        self.sites[name] = replace(site, units=units, tail=tuple(node.name for node in tail))

    def remove_gate(self, site: str) -> None:
        """Let a gated site always run, as it did before it was gated."""
        rewrite.remove_mask(self.graph, self.sites[site])
        self.sites[site] = replace(self.sites[site], units=1, tail=())
        self.methods.pop(site)

    def why_not_removable(self, site: str) -> str | None:
        """What stands in the way of removing the site's branch for good; None where nothing does."""
        if self.sites[site].kind != "layer":
            return None
        return slices.foldable(self, self.graph, self.costs, self._output(site))

    def remove_branches(self, sites: Collection[str]) -> None:
        """Take sites out of the network for good, with their gates. Raises SettingError where one cannot be removed, see `why_not_removable`."""
        layers = {self._output(site) for site in sites if self.sites[site].kind == "layer"}
        if layers:
            slices.fold(self, self.graph, self.costs, layers)
        for site in sites:
            self.methods.pop(site, None)
            gone = rewrite.remove_branch(self, self.graph, self.sites.pop(site))
            for name, other in self.sites.items():
                branch = tuple(node for node in other.branch if node not in gone)
                self.sites[name] = replace(other, entry=gone.get(other.entry, other.entry), shortcut=gone.get(other.shortcut, other.shortcut), branch=branch)

    def keep_units(self, site: str, kept: Sequence[int], round_to: int = 1) -> None:
        """Take the filters of all other units out of a split site for good, with its gate.

        round_to: keep so many more filters, giving zeros, that their number is a multiple of this, as fast kernels like it.
        """
        old, shape = self.sites[site], self.costs[self.sites[site].value].shape
        assert shape is not None
        width, per_unit = shape[1], shape[1] // old.units
        filters = [unit * per_unit + index for unit in kept for index in range(per_unit)]
        value = rewrite.node_named(self.graph, old.value)
        tail = [rewrite.node_named(self.graph, name) for name in old.tail]
        spare = [index for index in range(width) if index not in set(filters)]
        silent = spare[: -len(filters) % round_to] if slices.stays_zero(self, tail) else []
        self.remove_gate(site)
        places = sorted([*filters, *silent])
        slices.keep_outputs(self, tail, places, silent)
        wide = rewrite.insert_widen(self.graph, value, places, width)
        self.sites[site] = replace(self.sites[site], value=wide.name, branch=(*old.branch, wide.name))

    def _output(self, site: str) -> fx.Node:
        """What others read of a site: its branch's value, masked where it is gated."""
        value = rewrite.node_named(self.graph, self.sites[site].value)
        return next((user for user in value.users if is_mask(user)), value)

    def copy(self) -> Network:
        """An independent copy: its own tensors, graph and gates."""
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        own = {**self.__dict__, "_forms": {}, "_modules": {name: part for name, part in self._modules.items() if name != LOWERED}}
        twin.__dict__.update({key: copy.deepcopy(value, memo) for key, value in own.items()})
        return twin


RESERVED = {*vars(Network), "graph", "recipe", "methods", "costs", "sites", "gates", "exits", "gater", LOWERED} - {"__init__", "forward"}


def input_channels(root: nn.Module, graph: fx.Graph) -> int:
    """Channels of the images that the network takes: those of the first convolution that reads the input; 3 where there is none."""
    for node in graph.nodes:
        module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return module.in_channels
    return 3
