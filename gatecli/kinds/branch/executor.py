"""Modules whose branches read different sums.

What a branch reads is computed in as few products as there can be, and once for all that read the
same.

On the graph (see gatecli.kinds.branch.surgery) a boundary is `relu(connect(norm(conv(h)), shortcut,
read))`, C streams of maps. Here, with W_k and b_k the weights of branch k with its BatchNorm's
scale in them, and s_k what it carries of the shortcut, a stream is one of

    direct   x_j = relu([W_k .. W_l] [h_k .. h_l] + sum_k (b_k + s_k / D))        over the K
        branches that j reads, D the divisor
    summed   y_k = W_k h_k + b_k + s_k / D,  x = relu(G y)                        all y_k first, G
        the connections (streams, C)

whichever has fewer products (see gatecli.kinds.branch.stream_sums); connections that are not 0 or 1
are always summed. Once connections are fixed, branches that read the same share a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gatecli.gates.cache import Forgetful, Remembered
from gatecli.kinds.branch import stream_sums
from gatecli.kinds.branch.cost import is_direct, is_pointwise
from gatecli.kinds.branch.modules import distinct
from gatecli.kinds.branch.ops import connect
from gatecli.kinds.branch.stream_sums import Folded, products, spread_streams
from gatecli.lowering.norms import tensors_of

__all__ = ["Fold", "Layout", "StreamConv", "StreamMean", "Streams"]

Read = tuple[Tensor, int]  # connections (streams, C) or (N, streams, C), and the divisor


class Layout(Remembered):
    """What `distinct` says of connections that seldom change."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Layout:
        return Layout()

    def __call__(  # type: ignore[override]
        self, connections: Tensor
    ) -> tuple[list[int], list[int]]:
        """Of readers that read the same the first one, and each reader's place among these."""
        found: tuple[list[int], list[int]]
        found = super().__call__(lambda: distinct(connections), connections)
        return found


class Streams(Forgetful):
    """`relu(connect(norm(conv(h)), shortcut, read))`; of branches that read the same one only.

    Attributes:
        conv: path of the convolution.
        norm: path of the BatchNorm.
        shared: branches that read the same share a stream.
    """

    fresh = True

    def __init__(self, root: nn.Module, conv: str, norm: str, *, shared: bool) -> None:
        super().__init__()
        self.root: Any
        self.__dict__["root"] = root  # not a child: the modules belong to the network itself
        self.conv = conv
        self.norm = norm
        self.shared = shared
        self.folded = Remembered()
        self.layout = Layout()
        self.before = Layout()

    def forward(
        self, h: Tensor, shortcut: Tensor, read: Read, before: Read | None = None
    ) -> Tensor:
        """Compute the streams.

        Args:
            h: what the convolution reads, (N, C * w, H, W).
            shortcut: (N, out, H, W), or streams (N, streams * out, H, W).
            read: who reads which branches.
            before: who reads which streams of the shortcut, where these are shared.

        Returns:
            (N, streams * out, H, W).
        """
        connections, divisor = read
        conv = self.root.get_submodule(self.conv)
        norm = self.root.get_submodule(self.norm)
        if self.shared:
            first, _ = self.layout(connections)
            index = torch.tensor(first, device=connections.device)
            connections = connections.index_select(0, index)
        places = list(range(connections.shape[-1]))
        if before is not None:
            _, places = self.before(before[0])
        if _must_be_plain(conv, h, shortcut, connections):
            return _plainly(norm(conv(h)), shortcut, (connections, divisor), places)
        folded = self.folded(lambda: Folded(stream_sums.fold(conv, norm)), *tensors_of(conv, norm))
        branches, out, width = folded.weight.shape
        size = h.shape[2:]
        inside = stream_sums.Sources(
            h=h.reshape(len(h), branches, -1, size.numel()),
            carried=shortcut.reshape(len(h), -1, out, size.numel()),
            places=places,
            connections=connections,
            divisor=divisor,
        )
        rows = [_ones(row) for row in connections.tolist()]
        if _is_direct(connections, rows, branches, width - 1):
            found = stream_sums.direct(folded.joint(rows), inside, rows)
        else:
            found = stream_sums.summed(folded.weight, inside)
        return found.reshape(len(h), -1, *size)


def _is_direct(connections: Tensor, rows: list[list[int]], branches: int, width: int) -> bool:
    """Whether a product for each stream is possible, and cheaper."""
    count = len(rows[0])
    is_even = count > 0 and all(len(row) == count for row in rows)
    is_binary = bool(((connections == 0) | (connections == 1)).all())
    return is_binary and is_even and is_direct(len(rows), count, branches, width)


def _ones(row: list[float]) -> list[int]:
    """The places at which a row is not 0."""
    return [place for place, flag in enumerate(row) if flag]


def _must_be_plain(conv: Any, h: Tensor, shortcut: Tensor, connections: Tensor) -> bool:
    """Whether gradients, decisions by the image or mixed dtypes need the operations themselves."""
    if torch.is_grad_enabled() or connections.ndim == 3 or len(h) == 0:
        return True
    return shortcut.dtype != h.dtype or conv.weight.dtype != h.dtype


def _plainly(values: Tensor, shortcut: Tensor, read: Read, places: Sequence[int]) -> Tensor:
    """`relu(connect(values, shortcut, read))`, values (N, C * out, H, W)."""
    out = values.shape[1] // read[0].shape[-1]
    if shortcut.shape[1] > out:
        shortcut = spread_streams(shortcut, places, out)
    return torch.relu(connect(values, shortcut, read))


class StreamConv(nn.Module):
    """A 1x1 convolution of which each group reads a stream; several may read the same.

    Attributes:
        conv: path of the convolution.
        shared: branches that read the same share a stream.
    """

    fresh = True

    def __init__(self, root: nn.Module, conv: str, *, shared: bool) -> None:
        super().__init__()
        self.root: Any
        self.__dict__["root"] = root  # not a child: the convolution belongs to the network itself
        self.conv = conv
        self.shared = shared
        self.layout = Layout()

    def forward(self, x: Tensor, read: Read) -> Tensor:
        """`x` (N, streams * in, H, W) -> (N, C * w, H, W)."""
        conv = self.root.get_submodule(self.conv)
        count = conv.groups
        inside = conv.in_channels // count
        places = list(range(count))
        if self.shared:
            _, places = self.layout(read[0])
        autocast = torch.is_autocast_enabled(x.device.type)
        if autocast or not is_pointwise(conv) or x.dtype != conv.weight.dtype or len(x) == 0:
            result: Tensor = conv(spread_streams(x, places, inside) if self.shared else x)
            return result
        weight = conv.weight.reshape(count, -1, inside)
        streams = x.reshape(len(x), -1, inside, x.shape[2:].numel())
        if streams.shape[1] == count:
            found = products(weight, streams)
        else:
            found = _by_stream(weight, streams, places)
        found = found.reshape(len(x), -1, *x.shape[2:])
        return found if conv.bias is None else found + conv.bias[:, None, None]


def _by_stream(weight: Tensor, streams: Tensor, places: Sequence[int]) -> Tensor:
    """One product for all branches that read the same stream.

    Args:
        weight: of the branches, (C, w, in).
        streams: (N, streams, in, positions).
        places: of each branch the stream that it reads.

    Returns:
        (N, C, w, positions).
    """
    branches, _, inside = weight.shape
    samples, count, _, positions = streams.shape
    order = torch.tensor(places, device=streams.device).argsort(stable=True)
    sizes = [places.count(place) for place in range(count)]
    parts = []
    for place, own in enumerate(torch.split(weight.index_select(0, order), sizes)):
        joint = own.reshape(1, -1, inside)
        parts.append(products(joint, streams[:, place : place + 1])[:, 0])
    found = torch.cat(parts, 1).reshape(samples, branches, -1, positions)
    return found.index_select(1, order.argsort())


class StreamMean(nn.Module):
    """`mean_streams` of shared streams: each counts as often as it is read."""

    fresh = True

    def __init__(self) -> None:
        super().__init__()
        self.layout = Layout()

    def forward(self, x: Tensor, read: Read) -> Tensor:
        """`x` (N, streams * C, H, W) -> (N, C, H, W)."""
        _, places = self.layout(read[0])
        share = torch.bincount(torch.tensor(places, device=x.device)).to(x.dtype) / len(places)
        streams = x.reshape(len(x), len(share), x.shape[1] // len(share), *x.shape[2:])
        return torch.einsum("s,nschw->nchw", share, streams)


class Fold(nn.Module):
    """`fold_streams` or `unfold_streams` of shared streams."""

    def __init__(self, step: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.step = step
        self.layout = Layout()

    def forward(self, x: Tensor, read: Read) -> Tensor:
        """Do for the streams that there are what `step` does for as many as are read."""
        first, _ = self.layout(read[0])
        return self.step(x, len(first))
