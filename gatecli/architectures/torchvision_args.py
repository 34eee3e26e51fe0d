"""Which arguments torchvision's networks take beside those that their constructors show.

By the name of the network's class. gatecli.architectures.tweaks applies those of `EXTRA_ARGS`, but
for the dilation, which the library's constructor takes.
"""

from __future__ import annotations

from gatecli.architectures.argument import MAXPOOL, STEM, STEM_STRIDE, STRIDE_ON, Argument
from gatecli.architectures.tweaks import ACTIVATIONS, DILATIONS

__all__ = ["EXTRA_ARGS", "builders_own", "family"]

CEIL_MODE = Argument(bool)  # whether max-poolings round their size up
ACTIVATION = Argument(str, choices=tuple(ACTIVATIONS))
BN_EPS = Argument(float, 0, 1, bounded=True)
MOBILE = {"stem_stride": STEM_STRIDE, "activation": ACTIVATION, "bn_eps": BN_EPS}
EXTRA_ARGS = {
    "ResNet": {
        **STEM,
        "stride_on": STRIDE_ON,
        "replace_stride_with_dilation": Argument(str, choices=DILATIONS),
        "ceil_mode": CEIL_MODE,
        "activation": ACTIVATION,
        "bn_eps": BN_EPS,
    },
    "DenseNet": {**STEM, "ceil_mode": CEIL_MODE, "bn_eps": BN_EPS},
    "GoogLeNet": {"ceil_mode": CEIL_MODE, "bn_eps": BN_EPS},
    "Inception3": {"ceil_mode": CEIL_MODE, "bn_eps": BN_EPS},
    "ShuffleNetV2": {"maxpool": MAXPOOL, **MOBILE},
    "MobileNetV2": MOBILE,
    "MobileNetV3": MOBILE,
    "EfficientNet": MOBILE,
    "MNASNet": MOBILE,
    "RegNet": MOBILE,
    "AlexNet": {"ceil_mode": CEIL_MODE, "activation": ACTIVATION},
    "VGG": {"ceil_mode": CEIL_MODE, "activation": ACTIVATION, "bn_eps": BN_EPS},
    "SqueezeNet": {"ceil_mode": CEIL_MODE, "activation": ACTIVATION},
    "ConvNeXt": {"activation": ACTIVATION},
    "VisionTransformer": {"activation": ACTIVATION},
    "SwinTransformer": {"activation": ACTIVATION},
    "MaxVit": {"activation": ACTIVATION},
}
# What a network's builder gives its constructor itself, so that nobody else can: by class, or by
# class and the beginning of a name.
BUILDERS_OWN: dict[str, tuple[str, ...]] = {
    "DenseNet": ("growth_rate", "num_init_features"),
    "MNASNet": ("alpha",),
    "SqueezeNet": ("version",),
    "VisionTransformer": ("patch_size", "num_layers", "num_heads", "hidden_dim", "mlp_dim"),
    "SwinTransformer": ("embed_dim", "stochastic_depth_prob"),
    "MaxVit": ("stem_channels", "partition_size", "head_dim", "stochastic_depth_prob"),
    "MobileNetV3": ("last_channel",),
    "ResNet:resnext": ("groups", "width_per_group"),
    "ResNet:wide_resnet": ("width_per_group",),
}


def builders_own(network: str, name: str) -> set[str]:
    """The arguments that nobody else can give to a class's network of this name."""
    found: set[str] = set()
    for key, names in BUILDERS_OWN.items():
        owner, _, start = key.partition(":")
        if owner == network and name.startswith(start):
            found.update(names)
    return found


def family(arch: str) -> str:
    """Name of the class of a `torchvision:NAME`; "cifar" or "timm" for theirs, else empty."""
    library, _, name = arch.partition(":")
    if library != "torchvision":
        return library if library in ("cifar", "timm") else ""
    import inspect

    from torchvision import models

    builder = models.get_model_builder(name)
    network = inspect.signature(builder, eval_str=True).return_annotation
    return str(getattr(network, "__name__", ""))
