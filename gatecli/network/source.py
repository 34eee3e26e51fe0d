"""Take a source network over: its modules under their own names, and the graph of their calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx, nn

from gatecli.errors import ArchitectureError
from gatecli.graph import edit, spelling
from gatecli.graph.attention import unfold_attention
from gatecli.graph.leaves import further_tracers
from gatecli.graph.see_through import see_through
from gatecli.graph.sizes import read_sizes_at_hand
from gatecli.graph.softmax import without_softmax
from gatecli.graph.trace import trace
from gatecli.lowering.context import LOWERED
from gatecli.traced.recipe import RULES, InputSpec
from gatecli.traced.traced import Traced

__all__ = ["input_channels", "traced_source"]

RESERVED = ("gates", "exits", "gater", LOWERED)
RULES_OF_ATTENTION = 3


def traced_source(
    source: nn.Module,
    names: Mapping[str, str],
    leaves: Sequence[str],
    *,
    images: InputSpec,
    softmax: bool,
    rules: int = RULES,
) -> Traced:
    """Trace a classifier, and put its modules into a root of their own.

    Args:
        source: The classifier; its modules are shared, not copied.
        names: Parts of module paths to spell otherwise, see gatecli.graph.spelling.rename.
        leaves: Patterns of module paths that tracing keeps whole.
        images: What it takes, as far as that is known: `channels` may be 0.
        softmax: Whether one at its end is taken off.
        rules: The version of the rules by which its sites are found; before the third, attention
            that tracing keeps whole stayed so.

    Raises:
        ArchitectureError: It cannot be traced, or calls a part by a name that gatecli needs.
    """
    image = (images.channels, *images.size)
    graph = trace(source, leaves, lambda: further_tracers(source, leaves, image))
    channels = images.channels or input_channels(source, graph)
    read_sizes_at_hand(source, graph, (channels, *images.size))
    if softmax:
        without_softmax(source, graph)
    root = nn.Module()
    edit.adopt(root, source, graph)
    see_through(root, graph)
    if rules >= RULES_OF_ATTENTION:
        unfold_attention(root, graph, (channels, *images.size))
        read_sizes_at_hand(root, graph, (channels, *images.size))
    spelling.rename(root, graph, names)
    _check_names(graph)
    return Traced(root, graph)


def _check_names(graph: fx.Graph) -> None:
    """Raises ArchitectureError where the source has a name that gatecli's own tensors have."""
    for node in graph.nodes:
        part = str(node.target).partition(".")[0]
        if node.op in ("call_module", "get_attr") and part in RESERVED:
            raise ArchitectureError(
                f"the network calls a part of itself `{part}`, a name that gatecli needs for its"
                " own: rename it"
            )


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
