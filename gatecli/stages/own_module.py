"""A network of a module that the user holds, rather than of a file."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from gatecli.architectures.identify import found_for
from gatecli.checkpoint.evidence import SOFTMAX
from gatecli.checkpoint.loading import Reading
from gatecli.checkpoint.pictures import input_of
from gatecli.errors import ArchitectureError
from gatecli.gates.observe import in_evaluation
from gatecli.graph.softmax import are_probabilities
from gatecli.network import Network
from gatecli.network.compare import logits, random_images, relative_change
from gatecli.traced.recipe import InputSpec, Recipe, Source

__all__ = ["network_of"]

TOLERANCE = 1e-5  # of the largest logit: a trace that is further from its model is not its trace


def network_of(
    model: nn.Module,
    input_size: tuple[int, int],
    arch: str,
    arch_args: Mapping[str, Any],
    leaves: Sequence[str],
) -> Network:
    """The network of a copy of `model`, in evaluation mode.

    A softmax at its end is taken off, with a warning: what trains gates needs logits.

    Args:
        model: any classifier (N, C, H, W) -> (N, classes) that can be traced.
        input_size: height and width of its images in pixels.
        arch: what a file names as its architecture; empty: it is not to be saved.
        arch_args: the architecture's arguments that no tensor shows.
        leaves: patterns of module paths that tracing keeps whole.

    Raises:
        ArchitectureError: the model cannot be traced, or is not of that architecture.
    """
    recipe = _recipe(model, input_size, arch, arch_args, leaves)
    network = _traced(model, recipe)
    images = random_images(network)
    with in_evaluation(model):
        theirs = logits(model, images)
    if are_probabilities(theirs):
        source = replace(network.recipe.source, softmax=True)
        network = _traced(model, replace(network.recipe, source=source))
        warnings.warn(SOFTMAX, stacklevel=3)
    _check_same(model, theirs, _as_returned(network, images))
    return network


def _recipe(
    model: nn.Module,
    input_size: tuple[int, int],
    arch: str,
    arch_args: Mapping[str, Any],
    leaves: Sequence[str],
) -> Recipe:
    if not arch:
        return Recipe(Source("", {}, leaves=list(leaves)), InputSpec(input_size, 0))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = found_for(arch, arch_args, shapes)
    source = Source(arch, dict(found.args), dict(found.names), leaves=list(leaves))
    return Recipe(source, replace(input_of(found, Reading(input_size=input_size)), channels=0))


def _traced(model: nn.Module, recipe: Recipe) -> Network:
    twin = copy.deepcopy(model).eval()
    network = Network(twin, recipe, leaves=recipe.source.leaves)
    source = replace(
        network.recipe.source,
        params=network.params,
        macs=network.macs_dense,
        num_classes=network.num_classes,
    )
    network.recipe = Recipe(source, network.input)
    return network


def _as_returned(network: Network, images: Tensor) -> Tensor:
    found = logits(network, images)
    return found.softmax(1) if network.recipe.source.softmax else found


def _check_same(model: nn.Module, theirs: Tensor, ours: Tensor) -> None:
    change = relative_change(theirs, ours)
    if change > TOLERANCE:
        raise ArchitectureError(
            f"the trace of {type(model).__name__} does not compute what it does: logits differ by"
            f" {change:.1e} of the largest"
        )
