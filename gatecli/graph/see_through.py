"""See through layers of a library's own that are torch's layer and something plain around it.

A BatchNorm that holds an activation (timm's BatchNormAct2d) becomes torch's BatchNorm and, behind
it, what it holds; a convolution that pads its images itself (timm's Conv2dSame, the padded
convolutions of EfficientNet ports) becomes torch's convolution behind the padding. Whatever gates,
slices and folds then meets layers that it knows. Whether a class is of that kind is found out by
trying it, in both modes; tensors keep their names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gatecli.graph.ops import module_of

__all__ = ["pad_same", "see_through"]

SIDES = ((9, 10), (8, 7), (3, 4))  # of the images on which a layer is tried
Parts = Sequence[tuple[str, nn.Module]]


def pad_same(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Pad images as TensorFlow's "SAME" does, for ceil(size / stride) positions.

    What is odd goes to the right and below. (N, C, H, W) -> (N, C, H', W').
    """
    pads: list[int] = []
    for axis in (1, 0):
        size, step = x.shape[2 + axis], stride[axis]
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        missing = max((-(-size // step) - 1) * step + reach - size, 0)
        pads += [missing // 2, missing - missing // 2]
    return F.pad(x, pads) if any(pads) else x


def see_through(root: nn.Module, graph: fx.Graph) -> None:
    """Put plain layers in the place of those that are one with something around it.

    Args:
        root: The module in which the graph's targets are found; its modules are replaced, those
            of the source are left alone.
        graph: A fresh trace.
    """
    ways = _Ways()
    seen: dict[str, _Plain | None] = {}
    for node in list(graph.nodes):
        module, path = module_of(root, node), str(node.target)
        if module is None or len(node.all_input_nodes) != 1:
            continue
        if path not in seen:
            seen[path] = ways.of(module)
        plain = seen[path]
        if plain is not None:
            plain.place_in(root, path)
            plain.unfold(graph, node)


class _Plain:
    """A torch layer, with what comes before and behind it.

    Attributes:
        layer: The layer; the parts with modules of their own are its children still.
        pads: Whether the images are padded first, as `pad_same` does.
        before: Children that come before it.
        behind: Children that come after it.
        paths: Where these are called, by name.
    """

    def __init__(
        self, layer: nn.Module, *, pads: bool = False, before: Parts = (), behind: Parts = ()
    ) -> None:
        self.layer: Any = layer
        self.pads = pads
        self.paths: dict[str, str] = {}
        self.before = [part for part in before if not isinstance(part[1], nn.Identity)]
        self.behind = [part for part in behind if not isinstance(part[1], nn.Identity)]

    def __call__(self, x: Tensor) -> Tensor:
        """What the original should do."""
        for _, part in self.before:
            x = part(x)
        if self.pads:
            x = pad_same(x, *self._geometry())
        x = self.layer(x)
        for _, part in self.behind:
            x = part(x)
        return x

    def _geometry(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        conv = self.layer
        return tuple(conv.kernel_size), tuple(conv.stride), tuple(conv.dilation)

    def place_in(self, root: nn.Module, path: str) -> None:
        """Put the layer at its path; parts without tensors beside it, the others stay in it."""
        _, _, own = path.rpartition(".")
        holder = root.get_submodule(path.rpartition(".")[0])
        if holder._modules[own] is self.layer:
            return
        self.layer.train(root.training)
        holder._modules[own] = self.layer
        for name, part in list(self.layer.named_children()):
            self.paths[name] = f"{path}.{name}"
            beside = f"{name}_{own}"
            if part.state_dict() or beside in holder._modules:
                continue
            del self.layer._modules[name]
            if (name, part) in (*self.before, *self.behind):
                holder.add_module(beside, part)
                self.paths[name] = f"{path[: len(path) - len(own)]}{beside}"

    def unfold(self, graph: fx.Graph, node: fx.Node) -> None:
        """Let a node that calls the original be nodes for the layer and each part."""
        (x,) = node.all_input_nodes
        with graph.inserting_before(node):
            for name, _ in self.before:
                x = graph.call_module(self.paths[name], (x,))
            if self.pads:
                given = (x, *self._geometry())
                x = graph.create_node("call_function", pad_same, given, name=f"{node}_padded")
        node.args = (x,)
        last = node
        for name, _ in self.behind:
            with graph.inserting_after(last):
                last = graph.call_module(self.paths[name], (last,))
        own = {last}
        if last is not node:
            first = self.paths[self.behind[0][0]]
            start = next(user for user in node.users if user.target == first)
            own.add(start)
            node.replace_all_uses_with(last, delete_user_cb=lambda user: user not in own)


class _Ways:
    """Which way a class of layers can be seen through, each tried once."""

    def __init__(self) -> None:
        self.found: dict[tuple[Any, ...], int | None] = {}

    def of(self, module: nn.Module) -> _Plain | None:
        """What a layer of a library's own consists of; None where it is none, or not known."""
        kinds: tuple[type[nn.Module], ...] = (nn.BatchNorm2d, nn.Conv2d)
        for kind in kinds:
            if isinstance(module, kind) and type(module).forward is not kind.forward:
                ways = _ways_of_norm(module) if kind is nn.BatchNorm2d else _ways_of_conv(module)
                number = self._number(module, ways)
                return None if number is None else ways[number]
        return None

    def _number(self, module: nn.Module, ways: Sequence[_Plain]) -> int | None:
        """The first way that does what the module does."""
        key = _settings(module)
        if key not in self.found:
            fits = (number for number, way in enumerate(ways) if _agree(module, way))
            self.found[key] = next(fits, None)
        return self.found[key]


def _settings(module: Any) -> tuple[Any, ...]:
    """What decides how a layer works, but for its width and its weights."""
    names = ("kernel_size", "stride", "dilation", "padding", "eps", "affine", "padding_mode")
    own = tuple(str(getattr(module, name, "")) for name in names)
    return type(module), own, tuple(repr(child) for child in module.children())


def _ways_of_norm(module: nn.Module) -> list[_Plain]:
    layer = _as_kind(module, nn.BatchNorm2d)
    return [_Plain(layer, behind=list(module.named_children()))]


def _ways_of_conv(module: nn.Module) -> list[_Plain]:
    layer = _as_kind(module, nn.Conv2d)
    children = list(module.named_children())
    if children:
        return [_Plain(layer, before=children)]
    unpadded: Any = _as_kind(module, nn.Conv2d)
    unpadded.padding = (0, 0)
    return [_Plain(layer), _Plain(unpadded, pads=True)]


def _as_kind(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """The module's tensors, children and settings in a layer of torch's own class."""
    layer = kind.__new__(kind)
    state = dict(vars(module))
    for table in ("_parameters", "_buffers", "_modules"):
        state[table] = state[table].copy()
    vars(layer).update(state)
    return layer


def _agree(module: nn.Module, plain: _Plain) -> bool:
    """Whether both do the same, in evaluation and in training, on a few images of odd sizes."""
    twin = copy.deepcopy(module).to_empty(device="cpu").float()
    _fill(twin)
    again = _Plain(
        _as_kind(copy.deepcopy(twin), type(plain.layer)),
        pads=plain.pads,
        before=_named(twin, [name for name, _ in plain.before]),
        behind=_named(twin, [name for name, _ in plain.behind]),
    )
    if plain.pads:
        again.layer.padding = (0, 0)
    for training in (False, True):
        twin.train(training)
        again.layer.train(training)
        for sides in SIDES:
            if not _same(twin, again, sides):
                return False
    return True


def _named(module: nn.Module, names: Sequence[str]) -> Parts:
    return [(name, module.get_submodule(name)) for name in names]


def _fill(module: nn.Module) -> None:
    """Give a layer values, none of which stands out."""
    generator = torch.Generator("cpu").manual_seed(0)
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5, generator=generator)
        else:
            tensor.data.zero_()


def _same(one: Callable[..., Any], other: Callable[..., Any], sides: tuple[int, int]) -> bool:
    module: Any = one
    width = getattr(module, "in_channels", getattr(module, "num_features", 0))
    x = torch.randn(2, width, *sides, generator=torch.Generator("cpu").manual_seed(1), device="cpu")
    results = []
    for each in (one, other):
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(2)
                results.append(each(x.clone()))
        except Exception:  # whatever a layer may say of images that it was not made for
            results.append(None)
    if any(result is None for result in results):
        return all(result is None for result in results)
    first, second = results
    return first.shape == second.shape and torch.allclose(first, second, atol=1e-5)
