"""The same random images through two networks: for scripts that check what gatecli has done.

Example:
    >>> images = random_images(network)
    >>> change = relative_change(logits(model, images), logits(network, images))
"""

from __future__ import annotations

from gatecli.network.compare import logits, random_images, relative_change

__all__ = ["logits", "random_images", "relative_change"]
