"""Remove channels from a traced network.

Two ways, each for what comes before or after a value:

    outputs   the layers that make a value keep some of its channels (their weights' rows, a
              BatchNorm's entries)
    fold      where channels of a value are zero for good, its readers lose the channels that come
              of them; what these still said, a constant, becomes part of the bias of the next
              convolution or linear layer

A constant folds only where it is the same at every position: before a convolution that pads its
input with zeros it is not, unless it is zero. A reader that cannot lose channels keeps its width:
it reads zeros in their place (`gatecli.graph.ops.widen`); convolutions beside it lose them still
(narrow_reads).
"""

from gatecli.graph.prune_channels.entries import keep_entries, on_one_device
from gatecli.graph.prune_channels.fold import fold, foldable
from gatecli.graph.prune_channels.inputs import drop_inputs
from gatecli.graph.prune_channels.narrow_reads import read_narrow
from gatecli.graph.prune_channels.outputs import cut_norm, keep_outputs, stays_zero

__all__ = [
    "cut_norm",
    "drop_inputs",
    "fold",
    "foldable",
    "keep_entries",
    "keep_outputs",
    "on_one_device",
    "read_narrow",
    "stays_zero",
]
