"""The gated network: the source's own modules under their own names, and a graph of their calls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatecli.errors import ArchitectureError, SettingError, first_line
from gatecli.gates.decider import Decider
from gatecli.gates.exit import Exit
from gatecli.gates.observe import gates_of
from gatecli.graph import edit
from gatecli.graph.leaves import further_tracers
from gatecli.graph.macs import count_nodes
from gatecli.graph.ops import is_pick
from gatecli.graph.partial import unfold_partial_additions
from gatecli.graph.see_through import see_through
from gatecli.graph.sizes import read_sizes_at_hand
from gatecli.graph.trace import compile_graph, trace
from gatecli.kinds import registry
from gatecli.kinds.naming import with_unique_names
from gatecli.lowering.inplace import economical
from gatecli.network.lower import LOWERED, skipping
from gatecli.traced.operating_points import choose_recorded
from gatecli.traced.recipe import InputSpec, Recipe
from gatecli.traced.site import Site
from gatecli.traced.traced import NodeCost, Traced

__all__ = ["Network", "find_sites", "input_channels"]

Form = Callable[..., Any]  # (root, images) -> logits
RESERVED = ("gates", "exits", "gater", LOWERED)


class Network(nn.Module):
    """A classifier (N, C, H, W) -> (N, classes), traced, with sites that can be gated and removed.

    In training it runs the masked graph; in evaluation the lowered one, which really skips. Its
    state dict has the source's names. The modules and tensors are those of a plain module, `root`,
    under whatever names the source has for them.

    Args:
        source: The classifier to trace; its modules are shared, not copied, and may lose their
            `inplace`.
        recipe: Where it comes from and how large its images are.
        names: Parts of module paths to spell otherwise, see gatecli.graph.edit.rename.
        leaves: Patterns of module paths that tracing keeps whole.

    Attributes:
        traced: The network as data: root, graph, costs, sites, and which method gates which.
        recipe: Where it comes from, and what was done to it.

    Raises:
        ArchitectureError: The network cannot be traced, or does not take such images.
    """

    traced: Traced
    recipe: Recipe

    def __init__(
        self,
        source: nn.Module,
        recipe: Recipe,
        names: dict[str, str] | None = None,
        leaves: Sequence[str] = (),
    ) -> None:
        root = self.__dict__["root"] = nn.Module()
        super().__init__()
        image = (recipe.input.channels, *recipe.input.size)
        graph = trace(source, leaves, lambda: further_tracers(source, leaves, image))
        _check_names(graph)
        channels = recipe.input.channels or input_channels(source, graph)
        read_sizes_at_hand(source, graph, (channels, *recipe.input.size))
        edit.adopt(root, source, graph)
        see_through(root, graph)
        edit.rename(root, graph, names or {})
        self._share(root)
        if recipe.input.channels == 0:
            recipe = replace(recipe, input=replace(recipe.input, channels=channels))
        self.__dict__["recipe"] = recipe
        self.__dict__["traced"] = Traced(root, graph)
        self.__dict__["_forms"] = {}
        self._count()
        if unfold_partial_additions(graph, self.traced.costs):
            self._count()
        find_sites(self.traced)
        self._refresh_savings()
        self.recompile()
        self.train(source.training)

    def _share(self, root: nn.Module) -> None:
        """Hold the very modules and tensors that `root` holds."""
        for held in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            self.__dict__[held] = root.__dict__[held]

    # --- what it is ---

    @property
    def root(self) -> nn.Module:
        """What holds the modules; it has no attributes beside them."""
        root: nn.Module = self.__dict__["root"]
        return root

    @property
    def graph(self) -> fx.Graph:
        """What the network means."""
        return self.traced.graph

    @property
    def costs(self) -> dict[str, NodeCost]:
        """The cost of every node, by name."""
        return self.traced.costs

    @property
    def sites(self) -> dict[str, Site]:
        """What can be gated, by name."""
        return self.traced.sites

    @property
    def gated_by(self) -> dict[str, str]:
        """Site -> the method that gates it."""
        return self.traced.gated_by

    @property
    def training(self) -> bool:
        return self.root.training

    @training.setter
    def training(self, mode: bool) -> None:
        self.root.training = mode

    def get_submodule(self, target: str) -> nn.Module:
        """The module at a path, also where a property here has the same name."""
        return self.root.get_submodule(target)

    @property
    def input(self) -> InputSpec:
        """How the network wants its images."""
        return self.recipe.input

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def macs_dense(self) -> int:
        """MACs of one image with every unit running, gates included."""
        return sum(cost.macs for cost in self.costs.values())

    @property
    def uncounted(self) -> list[str]:
        """What works with weights in a way that the counter does not know.

        Its MACs are left out. Paths of modules, or names of operations.
        """
        unknown = [node for node in self.graph.nodes if self.costs[node.name].unknown]
        return [str(node.target) if node.op == "call_module" else node.name for node in unknown]

    @property
    def params(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def num_classes(self) -> int:
        """How many logits the network returns.

        Raises:
            ArchitectureError: It returns something else.
        """
        output = next(node for node in self.graph.nodes if node.op == "output")
        returned: Any = output.args[0]
        if isinstance(returned, fx.Node) and is_pick(returned):
            returned = returned.args[0]
        shape = self.costs[returned.name].shape if isinstance(returned, fx.Node) else None
        if shape is None or len(shape) != 2:
            raise ArchitectureError(
                "expected the network to return logits (N, classes), but it returns"
                f" {shape or 'something else'}"
            )
        return shape[1]

    @property
    def site_gates(self) -> dict[str, Decider]:
        """The gates by site, in the order in which they run."""
        return gates_of(self)

    @property
    def site_exits(self) -> dict[str, Exit]:
        """The exits by site, in the order in which they are come to."""
        gates = self.site_gates
        return {site: gate for site, gate in gates.items() if isinstance(gate, Exit)}

    def gate_macs(self, site: str) -> int:
        """MACs of one image that a site's gate, or an exit with its classifier, costs itself."""
        owned = {f"gates.{site}", f"exits.{site}"}
        nodes = [node for node in self.graph.nodes if node.op == "call_module"]
        return self.traced.macs([node.name for node in nodes if node.target in owned])

    # --- how it is changed ---

    @contextmanager
    def editing(self) -> Iterator[Traced]:
        """Change the graph, the sites or the gates inside; counted and compiled anew at the end."""
        yield self.traced
        self.recompile()
        self.recount()

    def recompile(self) -> None:
        """Let go of what nothing calls any more, and of the graph's executable forms."""
        edit.drop_unused(self.root, self.graph)
        self._modules.pop(LOWERED, None)
        self._forms.clear()
        self.train(self.training)  # new modules follow the network's mode

    def recount(self) -> None:
        """Count every node's MACs anew, and look at every site again."""
        self._count()
        net, kinds = self.traced, registry.all_kinds()
        for kind in kinds:
            kind.refresh_all(net)
        for name, site in list(net.sites.items()):
            now = registry.of(site).refresh(net, site)
            if now is None:  # went with what was around it
                del net.sites[name]
                net.gated_by.pop(name, None)
            else:
                net.sites[name] = now
        self._refresh_savings()

    def _refresh_savings(self) -> None:
        net = self.traced
        for name, site in net.sites.items():
            savings = registry.of(site).savings(net, site)
            net.sites[name] = replace(site, savings=savings)

    def _count(self) -> None:
        image = (self.recipe.input.channels, *self.recipe.input.size)
        try:
            self.traced.costs = count_nodes(self.root, self.graph, image)
            for kind in registry.all_kinds():
                kind.recount(self.traced)
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
            raise ArchitectureError(
                f"the network does not take images of {image[0]} x {image[1]} x {image[2]}"
                f" ({first_line(error)}); `--input-size` says how it was trained"
            ) from error

    # --- how it runs ---

    @property
    def _forms(self) -> dict[str, Form]:
        forms: dict[str, Form] = self.__dict__["_forms"]
        return forms

    @property
    def _masked(self) -> Form:
        """What training runs; made when first needed."""
        if "masked" not in self._forms:
            self._forms["masked"] = compile_graph(economical(self.root, self.graph))
        return self._forms["masked"]

    @property
    def _skipping(self) -> Form:
        """What evaluation runs; made when first needed."""
        if "skipping" not in self._forms:
            self._forms["skipping"] = skipping(self.traced)
        return self._forms["skipping"]

    def forward(self, x: Tensor, return_exits: bool = False) -> Any:
        """Classify images.

        Args:
            x: (N, C, H, W).
            return_exits: Return also which exit each sample took, (N,): its number from 0 on, the
                number of exits for none.

        Returns:
            Logits (N, K).

        Raises:
            SettingError: `return_exits` in training, where nobody leaves.
        """
        if self.training:
            if return_exits and self.site_exits:
                raise SettingError(
                    "expected return_exits in evaluation, where samples leave, but the network is"
                    " in training: call .eval() first"
                )
            logits, taken = self._masked(self.root, x), None
        else:
            found = self._skipping(self.root, x)
            logits, taken = found if isinstance(found, tuple) else (found, None)
        if not return_exits:
            return logits
        if taken is None:
            taken = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        return logits, taken

    def at_exits(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What exits see, in evaluation, for all samples, nobody leaving.

        Returns:
            The values at which the exits stand, by site, and the final classifier's logits.
        """
        form = self._skipping
        values = getattr(form, "values", None)
        if values is None:
            return {}, form(self.root, x)
        seen, logits = values(self.root, x)
        exits = [path.partition(".")[2] for path in getattr(form, "exits", ())]
        return dict(zip(exits, seen, strict=True)), logits

    def set_operating_point(
        self,
        *,
        target_acc: float | None = None,
        max_gmacs: float | None = None,
        max_ms: float | None = None,
    ) -> dict[str, Any]:
        """Move the exits' thresholds along the frontier that calibrate has recorded.

        Args:
            target_acc: The cheapest point with at least this val top-1, in percent.
            max_gmacs: The most accurate one for at most so many GMACs.
            max_ms: The same in milliseconds, where calibrate measured them.

        Returns:
            The point taken.

        Raises:
            SettingError: No frontier is recorded, or it holds no such point.
        """
        exits = self.site_exits
        point = choose_recorded(self.recipe, list(exits), target_acc, max_gmacs, max_ms)
        for site, exit_ in exits.items():
            exit_.threshold.fill_(point["thresholds"][site])
        return point

    def copy(self) -> Network:
        """An independent copy: its own tensors, graph and gates."""
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        lowered = self._modules.pop(LOWERED, None)
        try:
            own = {key: value for key, value in self.__dict__.items() if key != "_forms"}
            for key, value in own.items():
                twin.__dict__[key] = copy.deepcopy(value, memo)
        finally:
            if lowered is not None:
                self._modules[LOWERED] = lowered
        twin.__dict__["_forms"] = {}
        twin._share(twin.root)
        return twin


def _check_names(graph: fx.Graph) -> None:
    """Raises ArchitectureError where the source has a name that gatecli's own tensors have."""
    for node in graph.nodes:
        part = str(node.target).partition(".")[0]
        if node.op in ("call_module", "get_attr") and part in RESERVED:
            raise ArchitectureError(
                f"the network calls a part of itself `{part}`, a name that gatecli needs for its"
                " own: rename it"
            )


def find_sites(net: Traced) -> None:
    """Let every kind find its sites; they are listed kind by kind, those in line in order."""
    kinds = registry.all_kinds()
    order = {node.name: index for index, node in enumerate(net.graph.nodes)}
    line: list[Site] = []
    for kind in kinds:
        if kind.in_line:
            line += kind.find(net)
            line.sort(key=lambda site: order[site.value])
            net.sites = with_unique_names(line)
    by_kind = {}
    for kind in kinds:
        if not kind.in_line:
            by_kind[kind.name] = kind.find(net)
    for found in by_kind.values():
        net.sites |= {site.name: site for site in found}


def input_channels(root: nn.Module, graph: fx.Graph) -> int:
    """Channels of the images that the network takes, where nothing says so.

    Those of the first convolution that reads the input; 3 where there is none, or where something
    else comes first.
    """
    for node in graph.nodes:
        module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return module.in_channels
    return 3
