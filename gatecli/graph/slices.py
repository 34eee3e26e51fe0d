"""The former name of `gatecli.graph.prune_channels`, for the methods that still import it."""

from gatecli.graph.patterns import is_plain
from gatecli.graph.prune_channels import cut_norm, drop_inputs, keep_entries

__all__ = ["cut_norm", "drop_inputs", "is_plain", "keep_entries"]
