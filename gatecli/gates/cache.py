"""What evaluation computes from weights once, and keeps until they change."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Forgetful", "Remembered"]


class Remembered:
    """What a function of some tensors returned, until one of them is replaced or written to.

    Evaluation folds weights this way.

    Writing through `.data` leaves no trace in a tensor's version, so who remembers is `Forgetful`.
    """

    def __init__(self) -> None:
        self.forget()

    def __deepcopy__(self, memo: dict[int, Any]) -> Remembered:
        return Remembered()  # a copy has tensors of its own

    def forget(self) -> None:
        """Compute anew the next time."""
        self.versions: list[int] | None = None
        self.tensors: tuple[Tensor, ...] = ()

    def __call__(self, compute: Callable[[], Any], *tensors: Tensor) -> Any:
        """The result of `compute()`, which must depend on nothing but `tensors`."""
        if (
            torch.compiler.is_compiling()
        ):  # an export: its tensors are stand-ins, and whoever runs it folds constants
            return compute()
        try:
            versions = [t._version for t in tensors]
        except RuntimeError:  # tensors made in inference mode have no versions
            versions = None
        if (
            versions is None
            or versions != self.versions
            or not all(map(operator.is_, tensors, self.tensors))
        ):
            with torch.no_grad():
                self.value = compute()
            self.versions, self.tensors = versions, tensors
        return self.value


class Forgetful(nn.Module):
    """A module that forgets what it has remembered when its mode or device changes."""

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's signature
        self._forget()
        return super().train(mode)

    def _apply(
        self,
        fn: Callable[[Tensor], Tensor],
        recurse: bool = True,  # noqa: FBT001, FBT002 - torch's signature
    ) -> Self:
        self._forget()
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def _forget(self) -> None:
        for part in vars(self).values():
            if isinstance(part, Remembered):
                part.forget()
