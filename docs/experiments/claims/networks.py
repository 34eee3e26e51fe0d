"""Networks that are nobody's but the laboratory's: `--arch claims.networks:NAME`."""

from __future__ import annotations

from gatecli.architectures.cifar import CifarDenseNet

__all__ = ["densenet22"]


def densenet22(num_classes: int = 10) -> CifarDenseNet:
    """A DenseNet-BC of three dense blocks of three layers, growth rate 12."""
    return CifarDenseNet(22, 12, num_classes)
