"""Python expressions that make torch's own layers, from what these print of themselves."""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gatecli.graph.normalize import TRAINING

__all__ = ["constructor"]

PLAIN = (bool, int, float, str, tuple, type(None))  # settings that can be compared


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A call that makes a layer.

    Attributes:
        text: the call as Python.
        args: its literal values by position.
        kwargs: its literal values by name.
    """

    text: str
    args: list[Any]
    kwargs: dict[str, Any]


def constructor(module: nn.Module) -> str | None:
    """An expression that makes a module like this one, but for the values of its tensors.

    None where the module is not torch's own, or does not print what makes it.
    """
    if _does_nothing(module):
        return "nn.Identity()"
    with suppress(SyntaxError):  # some layers print no Python
        for call in _calls(module):
            if _makes(call, module):
                return call.text
    return None


def _calls(module: nn.Module) -> list[_Call]:
    """Calls that may make a layer like this one, the shortest first."""
    layer = type(module)
    if getattr(nn, layer.__name__, None) is not layer:
        return []
    call = ast.parse(_printed(module), mode="eval").body
    if not isinstance(call, ast.Call) or ast.unparse(call.func) != f"nn.{layer.__name__}":
        return []
    defaults = {name: each.default for name, each in inspect.signature(layer).parameters.items()}
    given = [each for each in call.keywords if not _is_default(each, defaults)]
    try:
        return [_literal(each) for each in (ast.Call(call.func, call.args, given), call)]
    except ValueError:  # it prints more than literals
        return []


def _printed(module: nn.Module) -> str:
    if not isinstance(module, nn.MultiheadAttention):  # which prints nothing
        return f"nn.{type(module).__name__}({module.extra_repr()})"
    bias = module.in_proj_bias is not None
    return (
        f"nn.MultiheadAttention({module.embed_dim}, {module.num_heads}, bias={bias},"
        f" batch_first={module.batch_first})"
    )


def _literal(call: ast.Call) -> _Call:
    """A call with its values. Raises ValueError where one of them is no literal."""
    kwargs: dict[str, Any] = {}
    for each in call.keywords:
        if each.arg is None:
            raise ValueError("**")
        kwargs[each.arg] = ast.literal_eval(each.value)
    args = [ast.literal_eval(each) for each in call.args]
    return _Call(text=ast.unparse(call), args=args, kwargs=kwargs)


def _is_default(given: ast.keyword, defaults: Mapping[str, Any]) -> bool:
    if given.arg is None or given.arg not in defaults or not isinstance(given.value, ast.Constant):
        return False
    return bool(given.value.value == defaults[given.arg])


def _makes(call: _Call, module: nn.Module) -> bool:
    """Whether a call makes such a module: its class, settings and tensors but for their values."""
    try:
        with torch.device("meta"):
            made = type(module)(*call.args, **call.kwargs)
    except Exception:  # not every layer prints what makes it
        return False
    if _forms(made) != _forms(module) or repr(made) != repr(module):
        return False
    return _plain(made) == _plain(module)


def _forms(module: nn.Module) -> dict[str, Any]:
    """The shapes and dtypes of a module's tensors by name."""
    return {name: (tuple(t.shape), t.dtype) for name, t in module.state_dict().items()}


def _plain(module: nn.Module) -> dict[str, Any]:
    """Settings that printing may leave out."""
    found = {}
    for name, value in vars(module).items():
        if not name.startswith("_") and name != TRAINING and isinstance(value, PLAIN):
            found[name] = value
    return found


def _does_nothing(module: nn.Module) -> bool:
    """Whether a module without tensors returns what it is given in evaluation.

    As dropout and stochastic depth do.
    """
    tensors = [*module.parameters(), *module.buffers()]
    if tensors or type(module) is nn.Identity:
        return False
    x = torch.linspace(-9, 9, 96, device="cpu").reshape(2, 3, 4, 4)
    try:
        with torch.no_grad():
            return bool(torch.equal(copy.deepcopy(module).cpu().eval()(x.clone()), x))
    except Exception:  # whatever a layer may say of values that it was not made for
        return False
