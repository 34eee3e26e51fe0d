"""Remove channels from a traced network.

Output channels of a convolution, and what reads a channel that has become a constant.

Two ways, each for what comes before or after a value:

    keep_outputs   the layers that make a value keep some of its channels (their weights' rows, a
        BatchNorm's entries)
    fold           where channels of a value are zero for good, its readers lose the channels that
        come of them; what these
                   still said, a constant, becomes part of the bias of the next convolution or
                   linear layer

A constant folds only where it is the same at every position: before a convolution that pads its
input with zeros it is not, unless it is zero.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gatecli.errors import SettingError
from gatecli.graph.ops import is_cat, is_mask, module_of, widen
from gatecli.graph.settle import DROPOUTS
from gatecli.traced.traced import NodeCost

QUOTIENTS = {operator.truediv, torch.div}
PRODUCTS = {operator.mul, torch.mul, *QUOTIENTS}
CHANNELS, SIDE = 6, 4  # of the images on which unknown operations are tried


def is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether a module is of a kind and does what that kind does.

    A subclass may pad on its own, or hold an activation.
    """
    return isinstance(module, kind) and type(module).forward is kind.forward


def calls(graph: fx.Graph, node: fx.Node) -> int:
    """How often the graph calls the module that the node calls."""
    return sum(other.op == "call_module" and other.target == node.target for other in graph.nodes)


# --- one channel at a time ---


def is_channelwise(
    root: nn.Module, node: fx.Node, shape: Sequence[int] = (1, CHANNELS, SIDE, SIDE)
) -> bool:
    """Whether the node, which has no weights, treats each channel of its one input apart.

    Found out by trying it in evaluation mode.
    """
    apply = _as_function(root, node)
    if apply is None:
        return False
    x = torch.randn(
        1, CHANNELS, *shape[2:], device="cpu", generator=torch.Generator("cpu").manual_seed(0)
    )  # the user's own draws stay as they are
    kept = [0, 2, 3]
    try:
        with torch.no_grad():
            whole, part = apply(x.clone()), apply(x[:, kept])
    except Exception:  # whatever an operation may say of an image that it was not made for
        return False
    return (
        isinstance(whole, Tensor)
        and whole.shape[1] == CHANNELS
        and part.shape == whole[:, kept].shape
        and torch.allclose(whole[:, kept], part)
    )


def _as_function(root: nn.Module, node: fx.Node) -> Callable[[Tensor], Any] | None:
    """The node as a function of its first argument.

    None where it reads another value or has tensors of its own.
    """
    if node.op not in ("call_module", "call_function", "call_method") or node.all_input_nodes != [
        node.args[0] if node.args else None
    ]:
        return None
    args, kwargs = node.args[1:], node.kwargs
    if node.op == "call_method":
        return lambda x: getattr(x, str(node.target))(*args, **kwargs)
    if node.op == "call_function":
        function: Any = node.target
        return lambda x: function(x, *args, **kwargs)
    module = module_of(root, node)
    if module is None or any(True for _ in (*module.parameters(), *module.buffers())):
        return None
    return copy.deepcopy(module).eval()


def keeps_zero(root: nn.Module, node: fx.Node, source: fx.Node) -> bool:
    """Whether a node without weights makes zeros of `source` zeros again, channel by channel.

    A mask, a product with a constant, an activation such as ReLU.
    """
    if is_mask(node) or node.target is widen or node.target in DROPOUTS:
        return source is node.args[0]
    if _is_product(node):
        return True
    apply = _as_function(root, node)
    return (
        apply is not None
        and is_channelwise(root, node)
        and not bool(apply(torch.zeros(1, 1, SIDE, SIDE, device="cpu")).any())
    )


def _is_product(node: fx.Node) -> bool:
    """Whether the node multiplies or divides one value by constants."""
    named = (
        node.target in PRODUCTS
        if node.op == "call_function"
        else node.op == "call_method" and node.target in ("mul", "div")
    )
    sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
    return (
        named and len(sources) == 1 and (sources[0] is node.args[0] or node.target not in QUOTIENTS)
    )


# --- before a value ---


def tail_of(root: nn.Module, value: fx.Node) -> list[fx.Node]:
    """The nodes that make each channel of `value` apart.

    A convolution and what follows it channel by channel; in order, empty where there are none.
    """
    tail, node = [value], value
    while True:
        module = module_of(root, node)
        if isinstance(module, nn.Conv2d) and is_plain(module, nn.Conv2d) and module.groups == 1:
            return (
                tail[::-1]
                if all(
                    calls(value.graph, part) == 1
                    for part in tail
                    if module_of(root, part) is not None
                )
                else []
            )
        if not is_plain(module, nn.BatchNorm2d) and not is_channelwise(root, node):
            return []
        node = node.all_input_nodes[0]
        if len(node.users) > 1 or node.op == "placeholder":
            return []
        tail.append(node)


def keep_outputs(
    root: nn.Module, tail: Sequence[fx.Node], kept: Sequence[int], silent: Collection[int] = ()
) -> None:
    """Let the layers of a tail (see tail_of) keep the output channels `kept`.

    Those of them in `silent` give zeros.
    """
    index = torch.tensor(kept)
    quiet = [place for place, channel in enumerate(kept) if channel in silent]
    for node in tail:
        module = module_of(root, node)
        if isinstance(module, nn.Conv2d):
            keep_entries(module, ("weight", "bias"), index, quiet)
            module.out_channels = len(kept)
        elif isinstance(module, nn.BatchNorm2d):
            keep_entries(module, ("weight", "bias"), index, quiet)
            keep_entries(module, ("running_mean", "running_var"), index)
            module.num_features = len(kept)


def stays_zero(root: nn.Module, tail: Sequence[fx.Node]) -> bool:
    """Whether a channel whose weights are all zero leaves a tail (see tail_of) as zero."""
    steps = [
        _as_function(root, node)
        for node in tail
        if module_of(root, node) is None
        or not isinstance(module_of(root, node), (nn.Conv2d, nn.BatchNorm2d))
    ]
    affine = all(
        module.affine
        for node in tail
        if isinstance(module := module_of(root, node), nn.BatchNorm2d)
    )
    return affine and all(
        step is not None and not bool(step(torch.zeros(1, 1, SIDE, SIDE, device="cpu")).any())
        for step in steps
    )


def keep_entries(
    module: nn.Module, names: Sequence[str], index: Tensor, quiet: Sequence[int] = (), dim: int = 0
) -> None:
    """Cut the module's tensors of these names to the entries `index` of `dim`.

    Entries `quiet` of the result become zero.
    """
    for name in names:
        tensor = getattr(module, name)
        if tensor is None:
            continue
        cut = tensor.detach().index_select(dim, index.to(tensor.device))
        if quiet:
            cut[list(quiet)] = 0
        setattr(
            module,
            name,
            nn.Parameter(cut, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else cut,
        )


def cut_norm(norm: nn.BatchNorm2d, kept: Sequence[int]) -> nn.BatchNorm2d:
    """A copy of a BatchNorm for some of its channels."""
    twin = copy.deepcopy(norm)
    keep_entries(twin, ("weight", "bias", "running_mean", "running_var"), torch.tensor(kept))
    twin.num_features = len(kept)
    return twin


# --- after a value ---


@dataclass(frozen=True)
class Cut:
    """Of a value's channels those that stay, those that go, and the constants of these.

    A constant is what the channel has had at every position; `zero`: all of them are 0, whatever
    the weights.
    """

    kept: Tensor
    gone: Tensor
    constants: Tensor
    zero: bool = False


Gone = Mapping[fx.Node, Sequence[int]]  # value -> the channels of it that are zero for good


def foldable(
    root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost], values: Gone
) -> str | None:
    """Why `values` could not be folded into what reads them; None where they could."""
    try:
        _Fold(root, graph, costs, values, dry=True).run()
    except SettingError as error:
        return str(error)
    return None


def fold(root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost], values: Gone) -> None:
    """Let those who read `values` lose the channels that are zero for good.

    A value of which nothing is left goes out of all concatenations.

    Args: costs: the shapes of the graph's nodes, with all channels still in. Raises SettingError
    where one cannot be folded, see `foldable`.
    """
    walk = _Fold(root, graph, costs, values, dry=False)
    walk.run()
    for cat in [node for node in graph.nodes if is_cat(node)]:
        parts = [part for part in cat.args[0] if part not in walk.empty]
        cat.args = (parts, *cat.args[1:])


class _Fold:
    """One walk down the graph, from zeros to the layers that absorb what they have become."""

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        costs: Mapping[str, NodeCost],
        values: Gone,
        dry: bool,
    ) -> None:
        self.root, self.graph, self.costs, self.dry = root, graph, costs, dry
        self.cuts = {node: self._zeros(node, gone) for node, gone in values.items()}
        self.values = set(values)
        self.empty = {node for node, cut in self.cuts.items() if not len(cut.kept)}

    def _zeros(self, node: fx.Node, gone: Sequence[int]) -> Cut:
        left = torch.tensor(sorted(set(range(self._width(node))) - set(gone)), dtype=torch.long)
        return Cut(
            left,
            torch.tensor(sorted(gone)),
            torch.zeros(len(gone), device=next(self.root.parameters()).device),
            True,
        )

    def run(self) -> None:
        dead = self._dead()
        for node in self.graph.nodes:
            if node in dead or self._is_settled(node):
                continue
            nothing = [source for source in node.all_input_nodes if source in self.empty]
            if nothing and not is_cat(node):
                self._empty(node, nothing[0])
            elif any(source in self.cuts for source in node.all_input_nodes):
                self._pass(node)

    def _is_settled(self, node: fx.Node) -> bool:
        """Whether a node has nothing to lose but what it has lost at the beginning.

        A convolution that loses outputs may lose inputs as well.
        """
        is_conv = isinstance(module_of(self.root, node), nn.Conv2d)
        return node in self.values and not is_conv

    def _empty(self, node: fx.Node, source: fx.Node) -> None:
        """Nothing is left of a value whose source is gone, where zeros stay zeros."""
        same = self._width(node) == self._width(source)
        if not same or not keeps_zero(self.root, node, source):
            raise SettingError(f"`{node.name}` reads it, which is no concatenation")
        self.cuts[node] = self.cuts[source]
        self.empty.add(node)

    def _dead(self) -> set[fx.Node]:
        """The values of which nothing is left, and what only they need."""
        dead = set(self.empty)
        for node in reversed(self.graph.nodes):
            if node.users and all(user in dead for user in node.users):
                dead.add(node)
        return dead

    def _pass(self, node: fx.Node) -> None:
        if is_cat(node):
            self.cuts[node] = self._concatenated(node)
            return
        module = module_of(self.root, node)
        source, *others = (each for each in node.all_input_nodes if each in self.cuts)
        if others:
            raise SettingError(f"`{node.name}` reads it together with another")
        if module is not None and _has_weights(module) and calls(self.graph, node) > 1:
            raise SettingError(f"`{node.target}` reads it, which is called more than once")
        cut = self.cuts[source]
        if _normalises_apart(module):
            self.cuts[node] = self._normalised(node, source, module, cut)
        elif isinstance(module, (nn.Conv2d, nn.Linear)) or hasattr(module, "drop_inputs"):
            self._absorb(node, module, cut)
        else:
            self.cuts[node] = self._applied(node, source, cut)

    def _width(self, node: fx.Node) -> int:
        shape = self.costs[node.name].shape
        assert shape is not None
        return shape[1]

    def _concatenated(self, cat: fx.Node) -> Cut:
        kept, gone, constants, start, zero = [], [], [], 0, True
        for part in cat.args[0]:  # type: ignore[union-attr]
            assert isinstance(part, fx.Node)
            width = self._width(part)
            if part in self.cuts:
                cut = self.cuts[part]
                kept.append(cut.kept + start)
                gone.append(cut.gone + start)
                constants.append(cut.constants)
                zero &= cut.zero
            else:
                kept.append(torch.arange(start, start + width))
            start += width
        if not any(len(part) for part in kept):
            raise SettingError(f"`{cat.name}` would have nothing left to concatenate")
        return Cut(torch.cat(kept), torch.cat(gone), torch.cat(_together(constants)), zero)

    def _normalised(self, node: fx.Node, source: fx.Node, norm: Any, cut: Cut) -> Cut:
        """Through a BatchNorm in evaluation, and an activation where it holds one.

        What it makes of images with these constants.
        """
        constants = _after_norm(node, norm, cut, self.costs[source.name].shape)
        if not self.dry:
            keep_entries(norm, ("weight", "bias", "running_mean", "running_var"), cut.kept)
            norm.num_features = len(cut.kept)
        return Cut(cut.kept, cut.gone, constants)

    def _absorb(self, node: fx.Node, module: Any, cut: Cut) -> None:
        """Let a convolution, a linear layer or a gate read the kept channels alone.

        The constants are in its bias.
        """
        if isinstance(module, nn.Conv2d):
            _check_convolution(node, module, cut)
        if getattr(module, "pads", False) and not cut.zero:
            raise SettingError(f"`{node.target}` reads it and pads it with zeros")
        if isinstance(module, nn.Linear) and module.in_features != len(cut.kept) + len(cut.gone):
            raise SettingError(f"`{node.target}` reads it in another shape")
        if self.dry:
            return
        if hasattr(module, "drop_inputs"):
            module.drop_inputs(cut.kept, cut.gone, cut.constants)
        else:
            drop_inputs(module, cut.kept, cut.gone, None if cut.zero else cut.constants)

    def _applied(self, node: fx.Node, source: fx.Node, cut: Cut) -> Cut:
        """Through an operation without weights.

        The constants' images, where these are constant too.
        """
        shape = self.costs[source.name].shape
        if node.target in DROPOUTS:
            return cut
        if shape is None or not is_channelwise(self.root, node, shape):
            raise SettingError(
                f"`{node.target if node.op == 'call_module' else node.name}` reads it"
            )
        apply = _as_function(self.root, node)
        assert apply is not None
        if cut.zero and not bool(apply(torch.zeros(1, 1, *shape[2:], device="cpu")).any()):
            return cut
        if cut.constants.is_meta:  # a replay: the values come from the file
            return replace(cut, zero=False)
        with torch.no_grad():
            image = apply(
                cut.constants.cpu()
                .reshape(1, -1, *[1] * (len(shape) - 2))
                .expand(1, -1, *shape[2:])
                .contiguous()
            )
        return Cut(cut.kept, cut.gone, _same_everywhere(node, image))


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _normalises_apart(module: nn.Module | None) -> bool:
    """Whether a module is a BatchNorm with statistics, and at most a plain activation."""
    if not isinstance(module, _BatchNorm) or module.running_mean is None:
        return False
    return not any(_has_weights(child) for child in module.children())


def _together(parts: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on one device.

    On none where any has no values, as in a replay, whose values come from the file.
    """
    device = torch.device("meta") if any(part.is_meta for part in parts) else parts[0].device
    return [part.to(device) for part in parts]


def _after_norm(node: fx.Node, norm: Any, cut: Cut, shape: Sequence[int] | None) -> Tensor:
    """What a BatchNorm in evaluation makes of a value's constant channels: (k,).

    The value is of this shape.
    """
    assert shape is not None
    if (
        cut.constants.is_meta or norm.running_mean.is_meta
    ):  # a replay: the values come from the file
        return cut.constants.to("meta")
    device = norm.running_mean.device
    image, gone = torch.zeros(1, *shape[1:], device=device), cut.gone.to(device)
    image[:, gone] = cut.constants.to(device).reshape(1, -1, *[1] * (len(shape) - 2))
    with torch.no_grad():
        return _same_everywhere(node, copy.deepcopy(norm).eval()(image)[:, gone])


def _same_everywhere(node: fx.Node, image: Tensor) -> Tensor:
    """The channels' values (k,) of an image (1, k, ...) that has one at all positions.

    Raises SettingError where it has several.
    """
    flat = image.reshape(image.shape[1], -1)
    if not flat.is_meta and not torch.allclose(flat, flat[:, :1].expand_as(flat)):
        raise SettingError(
            f"`{node.target if node.op == 'call_module' else node.name}` reads it, and is different"
            " at the border"
        )
    return flat[:, 0]


def _check_convolution(node: fx.Node, conv: nn.Conv2d, cut: Cut) -> None:
    if not is_plain(conv, nn.Conv2d):
        raise SettingError(f"`{node.target}` reads it, a convolution of its own kind")
    if conv.groups != 1:
        raise SettingError(f"`{node.target}` reads it in groups")
    if any(_padding(conv)) and not cut.zero:
        raise SettingError(f"`{node.target}` reads it and pads it with zeros")


def drop_inputs(module: Any, kept: Tensor, gone: Tensor, constants: Tensor | None) -> None:
    """Let a convolution or a linear layer read the channels `kept` alone.

    `constants`, what `gone` always were (none: zero), go into its bias.
    """
    weight: Tensor = module.weight.detach()
    if constants is not None:
        lost, constants = _together(
            [
                weight.index_select(1, gone.to(weight.device))
                .reshape(len(weight), len(gone), -1)
                .sum(2),
                constants.to(weight.dtype),
            ]
        )
        said = lost @ constants
        bias = (
            said
            if module.bias is None
            else torch.stack(_together([module.bias.detach(), said])).sum(0)
        )
        module.bias = nn.Parameter(bias, module.weight.requires_grad)
    keep_entries(module, ("weight",), kept, dim=1)
    setattr(module, "in_features" if isinstance(module, nn.Linear) else "in_channels", len(kept))


def _padding(module: nn.Conv2d) -> tuple[int, ...]:
    if isinstance(module.padding, str):
        return (0,) if module.padding == "valid" else (1,)
    return tuple(module.padding)
