"""Trace one module by itself, for nodes that take its place."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.fx import _symbolic_trace
from torch.nn import functional as F

from gatecli.graph.normalize import TRAINING, same_but_for_dropout, writes
from gatecli.graph.remnants import as_before
from gatecli.graph.shapes import Values
from gatecli.graph.sized import SizedTracer
from gatecli.graph.trace import remove_dead
from gatecli.traced.traced import Shape

__all__ = ["Alone", "dropped_in_training", "holds_all", "traced_alone"]


class Alone(nn.Module):
    """Calls a module with one value; what else its node gives it are tensors of this one's own.

    Attributes: told: their names -> the nodes that they stand for.
    """

    def __init__(self, module: Any, node: fx.Node, values: Values) -> None:
        super().__init__()
        self.module = module
        self.told: dict[str, fx.Node] = {}
        for number, each in enumerate(node.all_input_nodes[1:]):
            likes: Any = values.tensor(each)
            self.told[f"told{number}"] = each
            self.register_buffer(f"told{number}", torch.zeros_like(likes[0], device="cpu"))
        self.names = {each: name for name, each in self.told.items()}
        self.others = (node.args[1:], node.kwargs)

    def forward(self, x: Any) -> Any:
        def held(node: fx.Node) -> Any:
            return getattr(self, self.names[node])

        args, kwargs = fx.node.map_arg(self.others, held)
        # not a call that the tracer sees: it would ask whether to keep the module whole
        return type(self.module).forward(self.module, x, *args, **kwargs)


def traced_alone(alone: Alone, size: Shape) -> fx.Graph | None:
    """The module's graph, where training changes nothing in it but functional dropout."""
    module: nn.Module = alone.module
    graphs = []
    modes = [(part, part.training) for part in module.modules()]
    try:
        for training in (True, False):
            module.train(training)
            with as_before(module), _without_wraps():
                graphs.append(SizedTracer(alone, size).trace(alone))
            remove_dead(graphs[-1], stays=partial(writes, alone))
    except Exception:  # whatever tracing comes to: it stays whole
        return None
    finally:
        for part, was_training in modes:
            part.training = was_training
    dropped = _dropped(graphs[1], graphs[0])
    if not same_but_for_dropout(graphs[1], graphs[0]):
        return None
    for node, share in dropped.items():
        with graphs[1].inserting_before(node):
            node.kwargs = {**node.kwargs, **dropped_in_training(graphs[1], share)}
    return graphs[1]


def _attentions(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is F.scaled_dot_product_attention]


def _dropped(evaluation: fx.Graph, training: fx.Graph) -> dict[fx.Node, float]:
    """What calls of torch's function in a trace of evaluation drop in training, a share.

    The trace of training is left with what evaluation drops.
    """
    found = {}
    for node, other in zip(_attentions(evaluation), _attentions(training), strict=False):
        shares: Any = [each.kwargs.get("dropout_p") for each in (node, other)]
        if shares[0] != shares[1]:
            found[node] = shares[1]
            other.update_kwarg("dropout_p", shares[0])
    return found


@contextmanager
def _without_wraps() -> Iterator[None]:
    """Trace through functions that their libraries asked torch.fx to keep whole (`fx.wrap`)."""
    wrapped: Any = getattr(_symbolic_trace, "_wrapped_fns_to_patch", {})
    before = dict(wrapped)
    wrapped.clear()
    try:
        yield
    finally:
        wrapped.update(before)


def holds_all(inner: fx.Graph) -> bool:
    """Whether all that a graph reaches is the module's or told, and no constant of its trace."""
    for node in inner.nodes:
        path = str(node.target)
        reaches = node.op in ("call_module", "get_attr") and path != TRAINING
        if reaches and not path.startswith(("module.", "told")):
            return False
    return True


def dropped_in_training(graph: fx.Graph, share: float) -> dict[str, Any]:
    """The argument that drops this share of the weights in training alone."""
    if not share:
        return {}
    training = graph.create_node("get_attr", TRAINING)
    return {"dropout_p": graph.call_function(operator.mul, (training, share))}
