"""Better evidence than names and shapes: what a file's own module computes, and what comes out.

A guess is no proof. Where a trusted file holds the network itself, that runs beside the network
that was built, and they must agree.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gatecli.architectures.build import is_callable_name
from gatecli.architectures.identify import Found, found_for
from gatecli.checkpoint.plain import Plain
from gatecli.errors import ArchitectureError, GatecliError, reason
from gatecli.graph.softmax import are_probabilities
from gatecli.network import Network
from gatecli.network.compare import random_images, relative_change

__all__ = ["SOFTMAX", "Witnessed", "ends_in_softmax", "found_by_class", "witness"]

AGREED = 1e-4  # of the largest logit
LIBRARIES = ("__main__", "torch.", "torchvision.", "timm.", "builtins")
SOFTMAX = (
    "the network ends in a softmax, which is taken off: it returns logits, whose softmax is what it"
    " returned"
)
Built = tuple[Network, list[str]]  # a filled network, and notes on what was left out
Build = Callable[[Found], Built]


@dataclass(frozen=True, kw_only=True)
class Witnessed:
    """The network that computes what the file's module does.

    Attributes:
        found: its architecture.
        built: it.
        note: for people.
    """

    found: Found
    built: Built
    note: str


def witness(
    module: nn.Module, plain: Plain, found: Found, build: Build, *, told: bool
) -> Witnessed:
    """Run a file's own module beside the network that was found.

    Args:
        module: the file's, whose code the user trusts.
        plain: the file.
        found: the architecture that fits its tensors.
        build: makes the filled network of an architecture, once for each that is tried.
        told: whether the user has named the architecture: then no other is tried.

    Raises:
        ArchitectureError: no network that can be built again computes what the module does.
    """
    proved = replace(found, assumed=())  # where the module agrees
    built = build(proved)
    images = random_images(built[0])
    theirs = _outputs(module, images)
    if isinstance(theirs, str):
        note = f"the file's own module cannot be run beside it ({theirs}): not compared"
        return Witnessed(found=found, built=build(found), note=note)
    change = _change(theirs, built[0], images)
    if change <= AGREED:
        note = f"the file's own module agrees with {found.arch}"
        return Witnessed(found=proved, built=built, note=note)
    for other in _others(module, plain, found, told=told):
        try:
            built = build(other)
            if _change(theirs, built[0], images) <= AGREED:
                note = f"the file's own module agrees with {_title(other)}, so that is taken"
                return Witnessed(found=other, built=built, note=note)
        except GatecliError:
            continue  # as timm is not installed
    raise ArchitectureError(
        f"the module in the file, {_class_name(module)}, computes something else than {found.arch}"
        f" (logits differ by {100 * change:.3g} % of the largest): name its code with --arch"
        " package.module:callable"
    )


def found_by_class(module: nn.Module, plain: Plain) -> Found | None:
    """The module's own class as the architecture; None where that does not build its tensors."""
    name = _class_name(module)
    if name.startswith(LIBRARIES) or "<" in name:
        return None
    try:
        found = found_for(name, {}, plain.shapes)
    except GatecliError:
        return None
    return replace(found, assumed=())


def _others(module: nn.Module, plain: Plain, found: Found, *, told: bool) -> Iterator[Found]:
    """What else could be meant: twins, and the module's own class."""
    for twin in found.assumed:
        arch = twin.arch or found.arch
        own = {"num_classes": found.args["num_classes"]} if "num_classes" in found.args else {}
        args = own if twin.arch else {**found.args, **twin.args}
        try:
            yield replace(found_for(arch, args, plain.shapes), assumed=(), said=found.said)
        except GatecliError:
            continue
    own_class = None if told else found_by_class(module, plain)
    if own_class is not None:
        yield replace(own_class, said=found.said, input_size=found.input_size)


def _outputs(module: nn.Module, images: Tensor) -> Tensor | str:
    """What the module says of images, or why it cannot."""
    try:
        twin = copy.deepcopy(module).float().eval()
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            found: Any = twin(images.cpu())
    except Exception as error:  # it is a user's code
        return f"{type(error).__name__}: {reason(error, 120)}"
    found = getattr(found, "logits", found)
    if isinstance(found, (tuple, list)) and found:
        found = found[0]
    if not isinstance(found, Tensor) or found.ndim != 2 or not bool(found.isfinite().all()):
        return "it returns no finite logits"
    return found


def _change(theirs: Tensor, network: Network, images: Tensor) -> float:
    """How far a network's logits are from the module's; infinite where they are of other shape."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        ours: Tensor = network(images)
    if ours.shape != theirs.shape or not bool(ours.isfinite().all()):
        return float("inf")
    return relative_change(theirs, ours)


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}:{type(module).__qualname__}"


def _title(found: Found) -> str:
    words = [found.arch]
    for name, value in found.args.items():
        if name != "num_classes":
            words.append(f"{name}={value}")
    return " ".join(words)


def ends_in_softmax(network: Network) -> bool:
    """Whether a user's own network returns probabilities; a library's classifiers return logits."""
    if not is_callable_name(network.recipe.source.arch) or network.recipe.source.softmax:
        return False
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            return are_probabilities(network(random_images(network)))
    except (RuntimeError, ValueError):  # what is wrong with it shows later, in its own words
        return False
