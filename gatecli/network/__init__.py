"""What a gated network is: what it means, how it runs, what it costs, how it is changed."""

from gatecli.network.network import Network

__all__ = ["Network"]
