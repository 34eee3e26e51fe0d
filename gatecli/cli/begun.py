"""What a training was begun with, as its state on disk says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Union, get_args, get_origin

from gatecli.cli.options import READING
from gatecli.cli.session import MOST_THREADS

__all__ = ["Begun", "believed", "check_alike"]

# Options for reading that states of earlier versions lack.
LATER = ("key", "prefix", "resize", "crop", "interpolation", "class_order")


@dataclass(frozen=True, kw_only=True)
class Begun:
    """All that is needed to start a training again.

    Attributes:
        checkpoint: The file that it began with, and `sha256` its content's.
        out: Where the result goes.
        data: The data set named; None: the one that the checkpoint remembers.
        settings: What --set says.
        options: The fields of gatecli.training.TrainOptions.
        threads: CPU threads.
        device: What --device says.
        reading: What the options for reading checkpoints say.
        teacher: The file that teaches, if any, and `teacher_sha256` its content's.
        tensorboard: The folder of a TensorBoard log, if any.
        track: What --track says.
        samples: The data's fingerprint.
    """

    checkpoint: str
    sha256: str
    out: str
    data: str | None
    settings: dict[str, str]
    options: dict[str, Any]
    threads: int
    device: str
    reading: dict[str, Any]
    teacher: str | None = None
    teacher_sha256: str | None = None
    tensorboard: str | None = None
    track: list[str] = field(default_factory=list)
    samples: dict[str, str] = field(default_factory=dict)


def believed(about: Mapping[str, Any]) -> Begun:
    """Return what a state says, with every value checked to be of the right type.

    Raises:
        TypeError, ValueError, KeyError: A value is not.
    """
    from gatecli.traced.recipe import checked
    from gatecli.training import TrainOptions

    begun = checked(Begun(**about))
    defaults = {name: READING[name].default for name in LATER}
    options = checked(TrainOptions(**begun.options))  # with those that came after the state
    begun = replace(begun, reading={**defaults, **begun.reading}, options=asdict(options))
    if begun.reading.keys() != READING.keys():
        raise KeyError(f"reading {sorted(begun.reading)}")
    for name, value in begun.reading.items():
        if not _fits(value, READING[name].type):
            raise TypeError(f"{name} is {value!r}")
    taught = begun.teacher is not None
    if not 1 <= begun.threads <= MOST_THREADS or taught != (begun.teacher_sha256 is not None):
        raise ValueError(f"{begun.threads} threads, teacher {begun.teacher}")
    return begun


def check_alike(begun: Begun) -> None:
    """Check that all processes train the same network on the same data in the same way.

    Raises:
        TrainingError: They do not.
    """
    import torch

    from gatecli import together
    from gatecli.cli.trust import option_of

    facts = {option_of(name): value for name, value in begun.options.items()}
    facts |= {
        "checkpoint": begun.sha256,
        "teacher": begun.teacher_sha256,
        "--set": begun.settings,
        "--out": begun.out,
        "images": begun.samples,
        "version of torch": torch.__version__,
    }
    together.check_alike(facts)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value out of JSON is of an option's type, `Optional[...]` or plain."""
    from gatecli.traced.recipe import is_a

    kinds = get_args(hint) if get_origin(hint) is Union else (hint,)
    return any(is_a(value, kind) for kind in kinds)
