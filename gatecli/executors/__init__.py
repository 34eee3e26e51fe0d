"""What runs in a gated part's place, so that what is skipped is not computed.

Executors have no tensors: they call the network's own modules.
"""

from __future__ import annotations

from gatecli.executors.blocks import SkipBlock, SkipGroups, SkipLayer
from gatecli.executors.convs import GatedOutputs, SkipChannels, SkipInputs
from gatecli.executors.filters import AddAt, FilterBlock, FilterLayer
from gatecli.executors.staged import Staged

__all__ = [
    "AddAt",
    "FilterBlock",
    "FilterLayer",
    "GatedOutputs",
    "SkipBlock",
    "SkipChannels",
    "SkipGroups",
    "SkipInputs",
    "SkipLayer",
    "Staged",
]
