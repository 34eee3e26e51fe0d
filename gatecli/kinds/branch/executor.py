"""Modules whose branches read different sums.

What a branch reads is computed in as few products as there can be, and once for all that read the
same.

On the graph (see gatecli.kinds.branch.surgery) a boundary is `relu(connect(norm(conv(h)), shortcut,
read))`, C streams of maps. Here, with W_k and b_k the weights of branch k with its BatchNorm's
scale in them, and its shift, a stream is one of

    direct   x_j = relu([W_k .. W_l] [h_k .. h_l] + sum_k (b_k + s_k / K))        over the K
        branches that j reads
    summed   y_k = W_k h_k + b_k + s_k / K,  x = relu(G y)                        all y_k first, G
        the connections (streams, C)

whichever has fewer products. Once connections are fixed, branches that read the same share a
stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatecli.gates import Forgetful, Gate, Remembered
from gatecli.graph.ops import module_of
from gatecli.kinds.branch.cost import is_direct, is_lean, is_pointwise, way_of
from gatecli.kinds.branch.modules import FanOut, distinct
from gatecli.kinds.branch.ops import connect, fold_streams, mean_streams, unfold_streams

Read = tuple[Tensor, int]
Replace = Callable[[fx.Node, nn.Module, tuple[fx.Node, ...]], fx.Node]


class Layout(Remembered):
    """What `distinct` says of connections that seldom change."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Layout:
        return Layout()

    def __call__(  # type: ignore[override]
        self, connections: Tensor
    ) -> tuple[list[int], list[int]]:
        found: tuple[list[int], list[int]] = super().__call__(
            lambda: distinct(connections), connections
        )
        return found


class Streams(Forgetful):
    """`relu(connect(norm(conv(h)), shortcut, read))`, of branches that read the same (`shared`) one
    only.

    conv, norm: paths.
    """

    fresh = True

    def __init__(self, root: nn.Module, conv: str, norm: str, shared: bool) -> None:
        super().__init__()
        self.root: Any
        self.__dict__["root"] = root  # not a child: the modules belong to the network itself
        self.conv, self.norm, self.shared = conv, norm, shared
        self.folded, self.layout, self.before = Remembered(), Layout(), Layout()

    def forward(
        self, h: Tensor, shortcut: Tensor, read: Read, before: Read | None = None
    ) -> Tensor:
        """h (N, C * w, H, W), shortcut (N, out, H, W) or (N, streams * out, H, W), shared as
        `before` says -> (N, streams * out, H, W).
        """
        connections, fan_in = read
        conv, norm = self.root.get_submodule(self.conv), self.root.get_submodule(self.norm)
        if self.shared:
            connections = connections.index_select(
                0, torch.tensor(self.layout(connections)[0], device=connections.device)
            )
        places = list(range(connections.shape[-1])) if before is None else self.before(before[0])[1]
        tensors = [
            t
            for t in (
                conv.weight,
                conv.bias,
                norm.weight,
                norm.bias,
                norm.running_mean,
                norm.running_var,
            )
            if t is not None
        ]
        if (
            torch.is_grad_enabled()
            or connections.ndim == 3
            or any(t.dtype != h.dtype for t in (shortcut, conv.weight))
            or not len(h)
        ):
            return self._plainly(conv, norm, h, shortcut, (connections, fan_in), places)
        folded = self.folded(lambda: Folded(_fold(conv, norm)), *tensors)
        weight = folded.weight
        rows = [[number for number, flag in enumerate(row) if flag] for row in connections.tolist()]
        even = {len(row) for row in rows} == {fan_in}
        size, out = h.shape[2:], weight.shape[1]
        h = h.reshape(len(h), len(weight), -1, size.numel())
        carried = shortcut.reshape(len(h), -1, out, size.numel())
        if even and is_direct(len(rows), fan_in, len(weight), weight.shape[2] - 1):
            found = _direct(folded.joint(rows), h, carried, rows, places)
        else:
            found = _summed(weight, h, carried, connections, fan_in, places)
        return found.reshape(len(h), -1, *size)

    def _plainly(
        self, conv: Any, norm: Any, h: Tensor, shortcut: Tensor, read: Read, places: Sequence[int]
    ) -> Tensor:
        values = norm(conv(h))
        out = values.shape[1] // read[0].shape[-1]
        return torch.relu(
            connect(
                values,
                spread_streams(shortcut, places, out) if shortcut.shape[1] > out else shortcut,
                read,
            )
        )


class Folded:
    """The weights of each branch, (C, out, w + 1), and those of the streams that were asked for
    last.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.rows = weight, list[list[int]]()

    def joint(self, rows: list[list[int]]) -> Tensor:
        """(C, out, w + 1) -> (streams, out, K * w + 1)."""
        if rows != self.rows:
            parts = [
                [*(self.weight[k, :, :-1] for k in row), self.weight[row, :, -1].sum(0)[:, None]]
                for row in rows
            ]
            self.rows, self.joined = rows, torch.stack([torch.cat(part, 1) for part in parts])
        return self.joined


class StreamConv(nn.Module):
    """A 1x1 convolution of which each group reads a stream; several may read the same."""

    fresh = True

    def __init__(self, root: nn.Module, conv: str, shared: bool) -> None:
        super().__init__()
        self.root: Any
        self.__dict__["root"] = root
        self.conv, self.shared, self.layout = conv, shared, Layout()

    def forward(self, x: Tensor, read: Read) -> Tensor:
        """x (N, streams * in, H, W) -> (N, C * w, H, W)."""
        conv = self.root.get_submodule(self.conv)
        count, inside = conv.groups, conv.in_channels // conv.groups
        places = self.layout(read[0])[1] if self.shared else list(range(count))
        if (
            not is_pointwise(conv)
            or x.dtype != conv.weight.dtype
            or not len(x)
            or torch.is_autocast_enabled(x.device.type)
        ):
            result: Tensor = conv(spread_streams(x, places, inside) if self.shared else x)
            return result
        weight = conv.weight.reshape(count, -1, inside)
        streams = x.reshape(len(x), -1, inside, x.shape[2:].numel())
        if streams.shape[1] == count:
            found = products(weight, streams)
        else:
            order = torch.tensor(places, device=x.device).argsort(stable=True)
            back, weights = (
                order.argsort(),
                weight.index_select(0, order).split(
                    [places.count(place) for place in range(streams.shape[1])]
                ),
            )
            parts = [
                products(own.reshape(1, -1, inside), streams[:, place : place + 1])[:, 0]
                for place, own in enumerate(weights)
            ]
            found = (
                torch.cat(parts, 1)
                .reshape(len(x), count, -1, streams.shape[3])
                .index_select(1, back)
            )
        found = found.reshape(len(x), -1, *x.shape[2:])
        return found if conv.bias is None else found + conv.bias[:, None, None]


class StreamMean(nn.Module):
    """`mean_streams` of shared streams: each counts as often as it is read."""

    fresh = True

    def __init__(self) -> None:
        super().__init__()
        self.layout = Layout()

    def forward(self, x: Tensor, read: Read) -> Tensor:
        _, places = self.layout(read[0])
        share = torch.bincount(torch.tensor(places, device=x.device)).to(x.dtype) / len(places)
        return torch.einsum(
            "s,nschw->nchw",
            share,
            x.reshape(len(x), len(share), x.shape[1] // len(share), *x.shape[2:]),
        )


class Fold(nn.Module):
    """`fold_streams` and `unfold_streams` of shared streams."""

    def __init__(self, step: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.step, self.layout = step, Layout()

    def forward(self, x: Tensor, read: Read) -> Tensor:
        return self.step(x, len(self.layout(read[0])[0]))


SMALL = 64  # positions of a map, below which a batch's samples are better multiplied together


def products(weight: Tensor, x: Tensor) -> Tensor:
    """weight (C, o, i), x (N, C, i, positions) -> (N, C, o, positions), without copies of the
    weights for each sample.
    """
    count, (branches, out, _), positions = len(x), weight.shape, x.shape[3]
    if positions < SMALL and count > 1:
        together = torch.bmm(weight, x.permute(1, 2, 0, 3).reshape(branches, -1, count * positions))
        return together.reshape(branches, out, count, positions).permute(2, 0, 1, 3).contiguous()
    return (
        torch.stack([torch.bmm(weight, each) for each in x])
        if count > 1
        else torch.bmm(weight, x[0])[None]
    )


def spread_streams(x: Tensor, places: Sequence[int], out: int) -> Tensor:
    """x (N, streams * out, H, W) -> (N, C * out, H, W): to each branch k the stream `places[k]`."""
    streams = x.reshape(x.shape[0], x.shape[1] // out, out, *x.shape[2:])
    return streams.index_select(1, torch.tensor(places, device=x.device)).reshape(
        x.shape[0], len(places) * out, *x.shape[2:]
    )


def _direct(
    joint: Tensor, h: Tensor, carried: Tensor, rows: list[list[int]], places: Sequence[int]
) -> Tensor:
    """A product a stream, into the sum of what it carries; each is finished while it is at hand."""
    found = h.new_empty(len(h), len(rows), *carried.shape[2:])
    ones, several = h.new_ones(len(h), 1, h.shape[3]), carried.shape[1] > 1
    for number, row in enumerate(rows):
        inside = torch.cat([*(h[:, k] for k in row), ones], 1)
        parts = [carried[:, places[k]] for k in row] if several else [carried[:, 0]]
        x, start = found[:, number], parts[0]
        for part in parts[1:]:
            start = torch.add(start, part, out=x)
        for sample in range(len(h)):  # a batched product would copy the weights for each
            torch.addmm(
                start[sample], joint[number], inside[sample], beta=1 / len(parts), out=x[sample]
            )
        x.relu_()
    return found


def _summed(
    weight: Tensor,
    h: Tensor,
    carried: Tensor,
    connections: Tensor,
    fan_in: int,
    places: Sequence[int],
) -> Tensor:
    """All branches' values at once, and one product that adds them up."""
    inside = torch.cat([h, h.new_ones(len(h), h.shape[1], 1, h.shape[3])], 2)
    values = products(weight, inside)
    if carried.shape[1] not in (1, len(places)):
        carried = carried.index_select(1, torch.tensor(places, device=h.device))
    values.add_(carried, alpha=1 / fan_in)
    return torch.matmul(connections.to(h.dtype), values.reshape(len(h), len(weight), -1)).relu_()


def _fold(conv: Any, norm: Any) -> Tensor:
    """The weights of each branch, its BatchNorm's scale in them, and what is added.

    (C, out, w + 1).
    """
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else norm.weight * scale
    shift = (
        -norm.running_mean * scale if norm.bias is None else norm.bias - norm.running_mean * scale
    )
    if isinstance(conv, FanOut):
        count = conv.branches
        weight = conv.weight.reshape(len(scale), count, -1).transpose(0, 1)
        said = (
            shift / norm.share
            if conv.bias is None
            else shift / norm.share + conv.bias * scale / count
        )
        return torch.cat([weight * scale[:, None], said[:, None].expand(count, -1, -1)], 2)
    said = shift if conv.bias is None else shift + conv.bias * scale
    return torch.cat([conv.weight.flatten(1) * scale[:, None], said[:, None]], 1).reshape(
        conv.groups, len(scale) // conv.groups, -1
    )


# --- lowering ---


def lower_branches(root: nn.Module, graph: fx.Graph, replace: Replace) -> None:
    """Put executors in where branches read different sums.

    `replace`: lets an executor of some inputs give what a node gave, and returns the new node.
    """
    shared: dict[
        fx.Node, fx.Node
    ] = {}  # streams that several may read -> what says who reads which
    for node in list(graph.nodes):
        if node.target is not connect or not is_lean(root, node):
            continue
        norm, shortcut, read = node.all_input_nodes
        (relu,), (conv,) = node.users, norm.all_input_nodes
        fixed, inputs = (
            not isinstance(module_of(root, read), Gate),
            [
                conv.all_input_nodes[0],
                shortcut,
                read,
            ],
        )
        executor = Streams(root, str(conv.target), str(norm.target), fixed)
        streams = replace(
            relu, executor, (*inputs, shared[shortcut]) if shortcut in shared else tuple(inputs)
        )
        if fixed:
            shared[streams] = read
        for user in list(streams.users):
            reader = module_of(root, user)
            if isinstance(reader, nn.Conv2d) and reader.groups > 1:
                replace(user, StreamConv(root, str(user.target), fixed), (streams, read))
            elif fixed and user.target is mean_streams:
                replace(user, StreamMean(), (streams, read))
            elif fixed and user.target is fold_streams:
                _lower_way(user, streams, read, shared, replace)


def _lower_way(
    fold: fx.Node, streams: fx.Node, read: fx.Node, shared: dict[fx.Node, fx.Node], replace: Replace
) -> None:
    """A shortcut with layers of its own runs on the streams that there are."""
    first = replace(fold, Fold(fold_streams), (streams, read))
    last = way_of(first)[-1]
    unfold = replace(last, Fold(unfold_streams), (last.all_input_nodes[0], read))
    shared[unfold] = read
    for mean in [user for user in unfold.users if user.target is mean_streams]:
        replace(mean, StreamMean(), (unfold, read))
