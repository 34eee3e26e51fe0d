"""What a runtime is: it takes a network, and gives a function that classifies images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from gatecli.errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gatecli.network import Network
    from gatecli.traced.recipe import Recipe

__all__ = ["PRECISIONS", "Order", "Prepared", "Runtime"]

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a runtime is asked to make ready.

    Attributes:
        model: A Network, or a plain classifier, in evaluation mode; it stays as it is.
        recipe: Where it comes from, and how large its images are.
        batch: Images a call.
        precision: One of the runtime's.
    """

    model: nn.Module
    recipe: Recipe
    batch: int = 1
    precision: str = "fp32"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A network that is ready to run somewhere.

    Attributes:
        feed: Images (N, C, H, W), float32, as the runtime takes them.
        call: Classifies what `feed` returned; this is what is timed.
        logits: What `call` returned, as logits (N, K), float32.
        masked: Everything is computed and multiplied by the decisions, though gates decide.
        obeying: What decisions can be forced on while it runs; None: nothing.
    """

    feed: Callable[[Tensor], Any]
    call: Callable[[Any], Any]
    logits: Callable[[Any], Tensor]
    masked: bool = False
    obeying: Network | None = None

    def classify(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W)."""
        return self.logits(self.call(self.feed(images)))


class Runtime(ABC):
    """One runtime.

    Attributes:
        name: As `--runtime` takes it.
        about: What it is, for the help.
        extra: The extra of gatecli that brings it; empty: none is needed.
        packages: Those that it needs beside gatecli's own.
        precisions: Those that it has, of PRECISIONS.
        obeys: Whether decisions can be forced on it from outside while it runs.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    extra: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ()
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    obeys: ClassVar[bool] = False

    def missing(self) -> str:
        """What it lacks on this machine, for people; empty: nothing."""
        lacking = [name for name in self.packages if not find_spec(name)]
        return f"{lacking[0]} is not installed" if lacking else ""

    def require(self, precision: str) -> None:
        """Make sure that it can run here, in this precision.

        Raises:
            SettingError: It lacks something, or has no such precision; the message says what to do.
        """
        if precision not in self.precisions:
            has = " and ".join(self.precisions)
            raise SettingError(
                f"expected a --precision that {self.name} has ({has}), but got `{precision}`"
            )
        lacks = self.missing()
        if lacks:
            way = f": pip install 'gatecli[{self.extra}]'" if self.extra else ""
            raise SettingError(f"expected {self.name} to be there, but {lacks}{way}")

    @abstractmethod
    def prepare(self, order: Order) -> Prepared:
        """Make a network ready.

        Raises:
            ExportError: The runtime cannot take the network.
        """
