"""The small networks for 32x32 images that the papers on gating use."""

from gatecli.architectures.cifar.densenet import DENSENETS, CifarDenseNet
from gatecli.architectures.cifar.resnet import PRERESNETS, RESNETS, CifarPreResNet, CifarResNet
from gatecli.architectures.cifar.resnext import RESNEXTS, CifarResNeXt
from gatecli.architectures.cifar.shakeshake import SHAKESHAKES, CifarShakeShake

NETWORKS = {**RESNETS, **PRERESNETS, **RESNEXTS, **DENSENETS, **SHAKESHAKES}

__all__ = [
    "DENSENETS",
    "NETWORKS",
    "PRERESNETS",
    "RESNETS",
    "RESNEXTS",
    "SHAKESHAKES",
    "CifarDenseNet",
    "CifarPreResNet",
    "CifarResNeXt",
    "CifarResNet",
    "CifarShakeShake",
]
