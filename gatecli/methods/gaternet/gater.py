"""The gater: a network of its own that decides about all filters of the backbone at once.

It looks at the same image:  f = E(x);  g' = FC2(ReLU(BN(FC1(f)))), where E is a classifier without
its last linear layer.

Reference:
    Chen, Li, Bengio, Si, "You look twice: GaterNet for dynamic filter selection in CNNs" (2019),
    section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gatecli.architectures.build import build, build_skeleton
from gatecli.errors import ArchitectureError
from gatecli.gates.estimators import semantic_hash
from gatecli.graph import edit, spelling
from gatecli.graph.patterns import is_plain
from gatecli.graph.trace import compile_graph, remove_dead, trace

__all__ = [
    "Features",
    "Gater",
    "make_gater",
]

OPENING = 2.0  # the bias that gates start with: with noise N(0, 1), P(on) = .98


class Features(nn.Module):
    """A classifier without its last linear layer: images (N, C, H, W) -> features (N, h).

    Args:
        source: the classifier.
        names: as in Network.

    Attributes:
        width: h.
        classes: how many it told apart.

    Raises:
        ArchitectureError: it does not end in a linear layer.
    """

    def __init__(self, source: nn.Module, names: Mapping[str, str]) -> None:
        super().__init__()
        graph = trace(source)
        head = _head(source, graph)
        linear = source.get_submodule(str(head.target))
        assert isinstance(linear, nn.Linear)
        self.width = linear.in_features
        self.classes = linear.out_features
        output = next(node for node in graph.nodes if node.op == "output")
        output.args = (head.args[0],)
        remove_dead(graph)
        edit.adopt(self, source, graph)
        spelling.rename(self, graph, names)
        # takes its root as an argument, so that a copy runs its own modules
        self.__dict__["run"] = compile_graph(graph)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.__dict__["run"](self, x)
        return features.flatten(1)


def _head(source: nn.Module, graph: fx.Graph) -> fx.Node:
    output = next(node for node in graph.nodes if node.op == "output")
    node: fx.Node = output.all_input_nodes[0]
    if node.op != "call_module" or not is_plain(source.get_submodule(str(node.target)), nn.Linear):
        raise ArchitectureError(
            "expected a gater that ends in a linear layer, which makes way for the gates, but"
            f" {type(source).__name__} ends in `{node.name}`"
        )
    return node


class Gater(nn.Module):
    """Images (N, C, H, W) -> scores g' or gates g of all filters, (N, c).

    In evaluation it gives scores, a gate being on where its score > 0; in training gates, see
    semantic_hash. FC2 has zero weights and bias OPENING until training begins, see `draw`.

    Args:
        features: E.
        bottleneck: the width of FC1.
        gates: c.
    """

    def __init__(self, features: Features, bottleneck: int, gates: int) -> None:
        super().__init__()
        self.features = features
        self.fc1 = nn.Linear(features.width, bottleneck)
        self.norm = nn.BatchNorm1d(bottleneck)
        self.fc2 = nn.Linear(bottleneck, gates)
        nn.init.zeros_(self.fc2.weight)
        nn.init.constant_(self.fc2.bias, OPENING)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.fc2(F.relu(self.norm(self.fc1(self.features(x)))))
        return semantic_hash(scores) if self.training else scores

    @property
    def neutral(self) -> bool:
        """Whether it opens all gates alike, whatever the image: as attached."""
        return not bool(self.fc2.weight.any())

    def draw(self) -> None:
        """Give FC2 the weights that a linear layer starts with; its bias stays.

        Rows of zeros get gradients that differ by a factor alone, and each other's ways with them.
        Drawn on the CPU, so that a seed means the same on every device.
        """
        bottleneck, gates = self.fc2.in_features, self.fc2.out_features
        with torch.no_grad():
            self.fc2.weight.copy_(nn.Linear(bottleneck, gates, device="cpu").weight)

    def keep(self, gates: Sequence[int]) -> None:
        """Let go of all other gates."""
        rows = torch.tensor(gates, device=self.fc2.weight.device)
        self.fc2.weight = _selected(self.fc2.weight, rows)
        self.fc2.bias = _selected(self.fc2.bias, rows)
        self.fc2.out_features = len(gates)


def _selected(parameter: Tensor, rows: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().index_select(0, rows), parameter.requires_grad)


def make_gater(
    arch: str,
    args: Mapping[str, Any],
    names: Mapping[str, str],
    bottleneck: int,
    gates: int,
    seed: int,
) -> Gater:
    """An untrained gater of a known architecture.

    Under torch.device("meta") it is without memory, to be filled from a file.

    Args:
        arch: the architecture of E.
        args: its arguments.
        names: as in Network.
        bottleneck: the width of FC1.
        gates: how many there are.
        seed: what the weights are drawn from.

    Raises:
        ArchitectureError: it cannot be built, or does not end in a linear layer.
    """
    if torch.empty(0).is_meta:
        with torch.device("cpu"):  # what constructors calculate with
            source = build_skeleton(arch, args)
        return Gater(Features(source, names), bottleneck, gates)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Gater(Features(build(arch, args), names), bottleneck, gates)
