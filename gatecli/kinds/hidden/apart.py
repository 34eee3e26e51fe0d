"""What a node is to hidden units: a layer that mixes them, or what treats each one apart."""

from __future__ import annotations

from torch import fx, nn

from gatecli.graph.normalize import DROPOUTS
from gatecli.graph.ops import module_of
from gatecli.graph.patterns import calls, is_channelwise, is_plain
from gatecli.traced.traced import Traced

__all__ = ["is_depthwise", "is_pointwise", "works_apart"]


def works_apart(net: Traced, node: fx.Node, source: fx.Node, axis: int) -> bool:
    """Whether a node treats each channel of what it reads, dimension `axis`, apart."""
    module = module_of(net.root, node)
    if (
        module is not None
        and calls(node.graph, node) > 1
        and any(True for _ in module.parameters())
    ):
        return False
    if node.target in DROPOUTS:  # it reads also whether the network is in training
        return node.args[0] is source
    if axis == 1 and (is_depthwise(net.root, node) or is_plain(module, nn.BatchNorm2d)):
        return True
    return is_channelwise(net.root, node, net.shape(source), axis)


def is_depthwise(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node is a convolution of which each output reads one input, and back."""
    conv = module_of(root, node)
    if not isinstance(conv, nn.Conv2d) or not is_plain(conv, nn.Conv2d):
        return False
    return conv.groups == conv.in_channels == conv.out_channels > 1


def is_pointwise(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node is a linear layer or a 1x1 convolution, called once."""
    module = module_of(root, node)
    if module is None or calls(node.graph, node) > 1:
        return False
    if is_plain(module, nn.Linear):
        return True
    if not isinstance(module, nn.Conv2d) or not is_plain(module, nn.Conv2d):
        return False
    return module.groups == 1 and module.kernel_size == (1, 1) and module.padding in ((0, 0), 0)
