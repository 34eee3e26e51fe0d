"""The gated network: the source's own modules under their own names, and a graph that says how they
are called.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatecli.errors import ArchitectureError, SettingError, first_line
from gatecli.execute import LOWERED, economical, lower, staged
from gatecli.executors import Staged
from gatecli.gates import Exit, Gate
from gatecli.graph import branches, convs, lean, rewrite
from gatecli.graph.dense import find_sites
from gatecli.graph.exits import behind, find_exits, macs_behind
from gatecli.graph.filters import find_filters
from gatecli.graph.macs import NodeCost, count_nodes
from gatecli.graph.ops import is_pick
from gatecli.graph.sites import Site
from gatecli.graph.trace import compile_graph, trace
from gatecli.operating import choose_recorded
from gatecli.record import gates_of
from gatecli.traced.recipe import InputSpec, Recipe

Form = Callable[..., Any]  # (root, images) -> logits


class Network(nn.Module):
    """A classifier (N, C, H, W) -> (N, classes), traced, with sites that can be gated and removed.

    In training it runs the masked graph; in evaluation the lowered one, which really skips. Its
    state dict has the source's names.

    Args:
        source: the classifier to trace; its modules are shared, not copied, and may lose their
            `inplace`.
        recipe: where it comes from and how large its images are.
        names: parts of module paths to spell otherwise, see gatecli.graph.rewrite.rename.
        leaves: patterns of module paths that tracing keeps whole.
    Raises: ArchitectureError where the network cannot be traced, or does not take such images.
    """

    def __init__(
        self,
        source: nn.Module,
        recipe: Recipe,
        names: dict[str, str] | None = None,
        leaves: Sequence[str] = (),
    ) -> None:
        super().__init__()
        graph = trace(source, leaves)
        for node in graph.nodes:
            part = str(node.target).partition(".")[0]
            if node.op in ("call_module", "get_attr") and part in RESERVED:
                raise ArchitectureError(
                    f"the network calls a part of itself `{part}`, a name that gatecli needs for"
                    " its own: rename it"
                )
        rewrite.adopt(self, source, graph)
        rewrite.rename(self, graph, names or {})
        if recipe.input.channels == 0:  # not known: ask the first convolution
            recipe = replace(
                recipe, input=replace(recipe.input, channels=input_channels(self, graph))
            )
        self.graph, self.recipe, self._forms = graph, recipe, dict[str, Form]()
        self.methods: dict[str, str] = {}  # site -> the method that gates it
        self.costs = self._count()
        self.sites: dict[str, Site] = find_sites(self, self.graph, self.costs)
        found = list(self.sites.values())
        self.boundaries = branches.find_boundaries(
            self, self.graph, self.costs, [site for site in found if site.kind == "block"]
        )
        exits = find_exits(self, self.graph, self.costs, found)
        self.sites |= branches.branch_sites(self, self.graph, self.costs, self.boundaries)
        self.sites |= {
            site.name: site for site in [*find_filters(self, self.graph, self.costs, found), *exits]
        }
        self.sites |= {site.name: site for site in convs.find_convs(self, self.graph, self.costs)}
        self._behind: dict[
            str, set[str]
        ] = {}  # exit in use -> the nodes that those who leave there do not come to
        self.recompile()
        self.train(source.training)

    def _count(self) -> dict[str, NodeCost]:
        image = (self.recipe.input.channels, *self.recipe.input.size)
        try:
            return lean.recounted(self, self.graph, count_nodes(self, self.graph, image))
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
            reason = first_line(error)
            raise ArchitectureError(
                f"the network does not take images of {image[0]} x {image[1]} x {image[2]}"
                f" ({reason}); `--input-size` says how it was trained"
            ) from error

    def recompile(self) -> None:
        """Let go of what nothing calls any more, and of the graph's executable forms.

        Call it after the graph has changed.
        """
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
        """What evaluation runs; made when first needed.

        A `Staged` one where the network has exits.
        """
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
        self._behind = {
            name: {node.name for node in behind(self.graph, nodes[site.entry])}
            for name, site in exits.items()
            if name in self.methods
        }
        for name, site in exits.items():
            saved, shape = (
                macs_behind(self.graph, self.costs, nodes[site.entry]),
                self.costs[site.entry].shape,
            )
            channels = shape[1] if shape is not None and site.positions == (2, 3) else site.channels
            self.sites[name] = replace(site, macs=saved, unit_macs=saved, channels=channels)
        for name, site in list(self.sites.items()):
            if site.kind == "exit":
                continue
            behind_choice = (
                site.kind == "filter" and site.tail[-1] != site.value
            )  # the convolution's channels are gated, or were
            if (
                behind_choice
                and f"{site.name.removesuffix('.filters')}{convs.SUFFIX}" in self.sites
            ):
                continue
            if (
                behind_choice or not {site.value, site.entry} <= self.costs.keys()
            ):  # went with what was around it
                del self.sites[name]
                self.methods.pop(name, None)
                continue
            branch = tuple(node for node in site.branch if node in self.costs)
            macs, shape, width = (
                round((1 - site.always) * sum(self.costs[node].macs for node in branch)),
                self.costs[site.entry].shape,
                self.costs[site.value].shape,
            )
            if site.kind == "conv" and name not in self.methods:
                site = replace(site, units=self.channels_of(site.branch[0]))
            own = 0 if site.kind == "branch" else macs // site.units
            if site.tail:
                assert width is not None
                site = (
                    replace(site, units=width[1])
                    if site.kind == "filter" and not site.places
                    else site
                )
                own = sum(self.costs[node].macs for node in site.tail) // (
                    width[1] if site.places else site.units
                )
            channels = (
                shape[1]
                if site.kind in ("layer", "filter") and shape is not None
                else site.channels
            )
            self.sites[name] = replace(
                site, branch=branch, macs=macs, unit_macs=own, channels=channels
            )

    def _offer_branches(self) -> None:
        """Let the branches without gates that are sites be those of modules that are whole."""
        found = branches.branch_sites(
            self,
            self.graph,
            self.costs,
            {name: each for name, each in self.boundaries.items() if name not in self.methods},
        )
        gone = {name for name in self.boundaries if name not in self.methods and name not in found}
        self.sites = {name: site for name, site in self.sites.items() if name not in gone} | found

    def forward(self, x: Tensor, return_exits: bool = False) -> Any:
        """x (N, C, H, W) -> logits (N, K).

        With `return_exits` also the exit that each sample took, (N,): its number from 0 on, the
        number of exits for none.

        Raises: SettingError for `return_exits` in training, where nobody leaves.
        """
        if return_exits and self.training and self.site_exits:
            raise SettingError(
                "expected return_exits in evaluation, where samples leave, but the network is in"
                " training: call .eval() first"
            )
        form = self._masked if self.training else self._skipping
        if not isinstance(form, Staged):
            logits = form(self, x)
            return (
                (logits, torch.zeros(x.shape[0], dtype=torch.long, device=x.device))
                if return_exits
                else logits
            )
        logits, taken = form(self, x)
        return (logits, taken) if return_exits else logits

    def at_exits(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """In evaluation, the values at which the exits stand, by site, and the logits of the
        network's own end: for all samples, nobody leaving.
        """
        form = self._skipping
        if not isinstance(form, Staged):
            return {}, form(self, x)
        values, logits = form.values(self, x)
        return (
            dict(zip((path.partition(".")[2] for path in form.exits), values, strict=True)),
            logits,
        )

    @property
    def site_gates(self) -> dict[str, Gate]:
        """The gates by site, in the order in which they run."""
        return gates_of(self)

    @property
    def site_exits(self) -> dict[str, Exit]:
        """The exits by site, in the order in which they are come to."""
        return {site: gate for site, gate in self.site_gates.items() if isinstance(gate, Exit)}

    def set_operating_point(
        self,
        *,
        target_acc: float | None = None,
        max_gmacs: float | None = None,
        max_ms: float | None = None,
    ) -> dict[str, Any]:
        """Move the exits' thresholds along the frontier that calibrate has recorded.

        Returns the point taken.

        Args: target_acc: the cheapest point with at least this val top-1, in percent. max_gmacs,
        max_ms: the most accurate one for at most so many
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
        """MACs of one image that a site's gate, or an exit with its classifier, costs itself.

        0 where there is none.
        """
        owned = {f"gates.{site}", f"exits.{site}"}
        return sum(
            self.costs[node.name].macs
            for node in self.graph.nodes
            if node.op == "call_module" and node.target in owned
        )

    @property
    def uncounted(self) -> list[str]:
        """What works with weights in a way that the counter does not know, so that its MACs are
        left out: paths of modules, or names of operations.
        """
        unknown = [node for node in self.graph.nodes if self.costs[node.name].unknown]
        return [str(node.target) if node.op == "call_module" else node.name for node in unknown]

    @property
    def params(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def num_classes(self) -> int:
        """How many logits the network returns.

        Raises ArchitectureError where it returns something else.
        """
        output = next(node for node in self.graph.nodes if node.op == "output")
        returned = output.args[0]
        if isinstance(returned, fx.Node) and is_pick(returned):
            returned = returned.args[0]
        shape = self.costs[returned.name].shape if isinstance(returned, fx.Node) else None
        if shape is None or len(shape) != 2:
            raise ArchitectureError(
                "expected the network to return logits (N, classes), but it returns"
                f" {shape or 'something else'}"
            )
        return shape[1]

    def channels_of(self, node: str) -> int:
        """The channels of a node's value."""
        shape = self.costs[node].shape
        assert shape is not None
        return shape[1]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def before(self, site: str) -> list[str]:
        """The exits at which a sample may have left before it comes to a site."""
        place = self.sites[site].value or self.sites[site].entry
        return [
            name
            for name, nodes in self._behind.items()
            if name != site
            and (place in nodes or (self.sites[site].kind == "exit" and self._earlier(name, site)))
        ]

    def _earlier(self, one: str, other: str) -> bool:
        names = [node.name for node in self.graph.nodes]
        return names.index(self.sites[one].entry) < names.index(self.sites[other].entry)

    def copy(self) -> Network:
        """An independent copy: its own tensors, graph and gates."""
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        own = {
            **self.__dict__,
            "_forms": {},
            "_modules": {name: part for name, part in self._modules.items() if name != LOWERED},
        }
        twin.__dict__.update({key: copy.deepcopy(value, memo) for key, value in own.items()})
        return twin


RESERVED = {
    *vars(Network),
    "graph",
    "boundaries",
    "recipe",
    "methods",
    "costs",
    "sites",
    "gates",
    "exits",
    "gater",
    LOWERED,
} - {"__init__", "forward"}


def input_channels(root: nn.Module, graph: fx.Graph) -> int:
    """Channels of the images that the network takes.

    Those of the first convolution that reads the input; 3 where there is none.
    """
    for node in graph.nodes:
        module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return module.in_channels
    return 3
