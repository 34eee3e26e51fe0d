"""A DenseNet-BC small enough to train on two cores, as a user's own network.

--arch small_densenet:densenet, from this file's folder.
"""

from torchvision.models.densenet import DenseNet


def densenet(num_classes: int = 36) -> DenseNet:
    """Three dense blocks of 6, 8 and 8 layers, growth rate 12.

    An image is a quarter as wide and high where the first begins.
    """
    return DenseNet(
        growth_rate=12,
        block_config=(6, 8, 8),
        num_init_features=24,
        bn_size=4,
        num_classes=num_classes,
    )
