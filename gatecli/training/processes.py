"""Who else trains: one process now.

The loop asks this class and nothing else, so several processes need only another one like it.
"""

from __future__ import annotations

from torch import Tensor

from gatecli.network import Network

__all__ = ["OneProcess"]


class OneProcess:
    """The whole job in this process."""

    is_main = True

    def wrap(self, network: Network) -> Network:
        """What the loop calls forward on; of several processes, a wrapper that averages gradients.

        Args:
            network: The one being trained.
        """
        return network

    def mean(self, value: Tensor) -> Tensor:
        """A number averaged over the processes."""
        return value
