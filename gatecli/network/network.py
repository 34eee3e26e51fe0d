"""The gated network: the source's own modules under their own names, and a graph of their calls."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatecli.errors import SettingError
from gatecli.gates.decider import Decider
from gatecli.gates.exit import Exit
from gatecli.gates.observe import gates_of
from gatecli.graph import edit
from gatecli.graph.partial import unfold_partial_additions
from gatecli.lowering.context import LOWERED
from gatecli.network import counting
from gatecli.network.forms import Form, Forms
from gatecli.network.sites import find_sites, refresh_savings, refresh_sites
from gatecli.network.source import input_channels, traced_source
from gatecli.traced.operating_points import choose_recorded
from gatecli.traced.recipe import InputSpec, Recipe
from gatecli.traced.site import Site
from gatecli.traced.traced import NodeCost, Traced

__all__ = ["Network"]

FORMS = "_executable"  # no attribute: Dynamo of torch 2.10 takes one of that name for the other


class Network(nn.Module):
    """A classifier (N, C, H, W) -> (N, classes), traced, with sites that can be gated and removed.

    In training it runs the masked graph; in evaluation the lowered one, which really skips. Its
    state dict has the source's names. The modules and tensors are those of a plain module, `root`,
    under whatever names the source has for them.

    Args:
        source: The classifier to trace; its modules are shared, not copied, and may lose their
            `inplace`.
        recipe: Where it comes from and how large its images are.
        names: Parts of module paths to spell otherwise, see gatecli.graph.spelling.
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
        net = traced_source(source, names or {}, leaves, recipe)
        self.__dict__["_root"] = net.root
        super().__init__()
        self._share(net.root)
        if recipe.input.channels == 0:  # not known: ask the first convolution
            channels = input_channels(net.root, net.graph)
            recipe = replace(recipe, input=replace(recipe.input, channels=channels))
        self.__dict__["recipe"] = recipe
        self.__dict__["traced"] = net
        counting.count(net, recipe.input)
        if unfold_partial_additions(net.graph, net.costs):
            counting.count(net, recipe.input)
        find_sites(net, recipe.rules)
        refresh_savings(net)
        self.recompile()
        self.train(source.training)

    def _share(self, root: nn.Module) -> None:
        """Hold the very modules and tensors that `root` holds."""
        for held in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            self.__dict__[held] = root.__dict__[held]

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "recipe":  # whatever the user's modules are called
            return super().__setattr__(name, value)
        self.__dict__[name] = value

    # --- what it is ---

    @property
    def root(self) -> nn.Module:
        """What holds the modules; it has no attributes beside them."""
        root: nn.Module = self.__dict__["_root"]
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
        return counting.uncounted(self.traced)

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
        return counting.classes(self.traced)

    @property
    def site_gates(self) -> dict[str, Decider]:
        """The gates by site, in the order in which they run."""
        return gates_of(self)

    @property
    def site_exits(self) -> dict[str, Exit]:
        """The exits by site, in the order in which they are come to."""
        gates = self.site_gates
        return {site: gate for site, gate in gates.items() if isinstance(gate, Exit)}

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
        self.__dict__[FORMS] = Forms(self.traced)
        self.train(self.training)  # new modules follow the network's mode

    def recount(self) -> None:
        """Count every node's MACs anew, and look at every site again."""
        counting.count(self.traced, self.recipe.input)
        refresh_sites(self.traced)

    # --- how it runs ---

    @property
    def _forms(self) -> Forms:
        forms: Forms = self.__dict__[FORMS]
        return forms

    @property
    def _masked(self) -> Form:
        """What training runs."""
        return self._forms.masked

    @property
    def _skipping(self) -> Form:
        """What evaluation runs."""
        return self._forms.skipping

    def forward(self, x: Tensor, *, return_exits: bool = False) -> Any:
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
            logits, taken = self._forms.in_training(x), None
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
        return self._forms.at_exits(x)

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
            for key in self.__dict__.keys() - {FORMS}:
                twin.__dict__[key] = copy.deepcopy(self.__dict__[key], memo)
        finally:
            if lowered is not None:
                self._modules[LOWERED] = lowered
        twin.__dict__[FORMS] = Forms(twin.traced)
        twin._share(twin.root)
        return twin
