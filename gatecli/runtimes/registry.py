"""The runtimes that there are: the one place that names them."""

from __future__ import annotations

from gatecli.errors import SettingError
from gatecli.runtimes.base import Runtime
from gatecli.runtimes.compiled import COMPILED
from gatecli.runtimes.native import NATIVE
from gatecli.runtimes.onnxruntime import ONNXRUNTIME
from gatecli.runtimes.openvino import OPENVINO

__all__ = ["get", "names", "register"]

_RUNTIMES: dict[str, Runtime] = {}


def register(runtime: Runtime) -> None:
    """Make a runtime known.

    Raises:
        ValueError: There is one of that name.
    """
    if runtime.name in _RUNTIMES:
        raise ValueError(f"runtime `{runtime.name}` is registered twice")
    _RUNTIMES[runtime.name] = runtime


def names() -> list[str]:
    """Their names, the native one first."""
    return list(_RUNTIMES)


def get(name: str) -> Runtime:
    """The runtime of that name.

    Raises:
        SettingError: There is none; the message lists those that there are.
    """
    if name not in _RUNTIMES:
        raise SettingError(
            f"expected --runtime to be one of {', '.join(_RUNTIMES)}, but got `{name}`"
        )
    return _RUNTIMES[name]


for _runtime in (NATIVE, COMPILED, ONNXRUNTIME, OPENVINO):
    register(_runtime)
