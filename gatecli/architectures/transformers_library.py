"""Image classifiers of Hugging Face's transformers, as `transformers:CLASS` with a config.

A config is plain data, checked before anything is built from it; it can name no code and no file.
The network is built without memory for its weights; tensors under the names of other releases are
renamed by the library itself.
"""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from gatecli.errors import ArchitectureError, GatecliError, reason
from gatecli.traced.recipe import is_a

__all__ = ["LIBRARY", "build_transformers", "check_config", "config_args", "renamed_by_library"]

LIBRARY = "transformers"
MISSING = "transformers is not installed, which `{arch}` needs: pip install 'gatecli[transformers]'"
# Keys that name code, files or other networks, that say nothing of the function, or that the
# library finds itself.
LEFT_OUT = {
    "_attn_implementation",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "backbone",
    "backbone_config",
    "backbone_kwargs",
    "dtype",
    "id2label",
    "label2id",
    "name_or_path",
    "problem_type",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
    "use_pretrained_backbone",
    "use_timm_backbone",
}
DEEPEST = 4  # lists and objects in a config
MOST_VALUES = 2000
LARGEST = 10_000_000
MOST_LAYERS = 10_000  # in all lists of depths together
LONGEST = 200


def config_args(config: Mapping[str, Any], num_classes: int | None) -> dict[str, Any]:
    """The part of a config.json that says what the network computes."""
    args = {key: value for key, value in config.items() if key not in LEFT_OUT}
    if num_classes is not None:
        args["num_labels"] = num_classes
    return args


def check_config(arch: str, args: Mapping[str, Any]) -> None:
    """Check that a config is plain data of a sensible size, and the class one of the library's.

    Raises:
        ArchitectureError: it is not.
    """
    name = arch.partition(":")[2]
    known = _known(arch)
    if name not in known:
        raise ArchitectureError(
            f"there is no image classifier `{arch}` in the transformers that is installed"
        )
    left = [key for key in args if key in LEFT_OUT]
    if left:
        raise ArchitectureError(f"the config of {arch} may not have `{left[0]}`")
    layers = 0
    for number, (key, value, depth) in enumerate(_walk(args)):
        if not _is_plain(value) or depth > DEEPEST or number >= MOST_VALUES:
            raise ArchitectureError(
                f"the config of {arch} is no config of an image classifier: `{key[:80]}` is"
                f" {str(value)[:40]!r}"
            )
        if _counts_layers(key) and is_a(value, int):
            layers += value
    if layers > MOST_LAYERS:
        raise ArchitectureError(f"the config of {arch} asks for {layers} layers")


def _counts_layers(key: str) -> bool:
    return "depth" in key or "layers" in key or "repeats" in key


def _walk(args: Mapping[str, Any]) -> Iterator[tuple[str, Any, int]]:
    """All single values of a config: the top key that they are under, and how deep."""
    todo = [(key, value, 0) for key, value in args.items()]
    while todo:
        key, value, depth = todo.pop()
        if depth <= DEEPEST and isinstance(value, dict):
            todo += [(key, each, depth + 1) for each in value.values()]
        elif depth <= DEEPEST and isinstance(value, (list, tuple)):
            todo += [(key, each, depth + 1) for each in value]
        else:
            yield key, value, depth


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= LONGEST
    if isinstance(value, int):
        return abs(value) <= LARGEST
    return value is None or isinstance(value, float)


def _known(arch: str) -> set[str]:
    """Classes of the library that classify images."""
    if importlib.util.find_spec(LIBRARY) is None:
        raise ArchitectureError(MISSING.format(arch=arch))
    from transformers.models.auto import modeling_auto

    names: set[str] = set()
    for name in modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values():
        names.update([name] if isinstance(name, str) else name)
    return {name for name in names if not name.startswith("Timm")}


def build_transformers(name: str, args: Mapping[str, Any]) -> nn.Module:
    """The network of a class with a config; it returns logits (N, classes).

    Its tensors have the library's names: it is of a class made from the library's own.
    """
    network = _class(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: nn.Module = _logits_only(network)(_config(network, args))
    except GatecliError:
        raise
    except Exception as error:  # the library's checks of a config have errors of their own
        raise ValueError(reason(error, 200)) from error
    return model


def _class(name: str) -> Any:
    import transformers

    return getattr(transformers, name)


def _config(network: Any, args: Mapping[str, Any]) -> Any:
    own = {key: value for key, value in args.items() if key != "model_type"}
    config = network.config_class(**own)
    config._attn_implementation = "eager" if not network._supports_sdpa else "sdpa"
    config.return_dict = True
    return config


def _logits_only(network: Any) -> Any:
    """The class whose networks return the logits of the given one's, under the same names."""

    def forward(self: Any, pixel_values: Tensor) -> Any:
        return network.forward(self, pixel_values).logits

    return type(network.__name__, (network,), {"forward": forward, "__module__": __name__})


def renamed_by_library(
    arch: str, args: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A folder's tensors under the names of the release that is installed.

    Raises:
        ArchitectureError: they are not those of the class with this config.
    """
    network = _class(arch.partition(":")[2])
    try:
        with _quietly():
            model, told = network.from_pretrained(
                None,
                config=_config(network, args),
                state_dict=dict(tensors),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # whatever a config or odd tensors bring the library to
        raise ArchitectureError(
            f"transformers cannot read the tensors as {arch}: {reason(error, 200)}"
        ) from error
    for problem in ("mismatched_keys", "missing_keys", "unexpected_keys"):
        found = sorted(map(str, told.get(problem) or ()))
        if found:
            words = problem.removesuffix("_keys")
            raise ArchitectureError(
                f"its tensors are not those of {arch} with that config: {len(found)} {words}, as"
                f" {found[0][:120]}"
            )
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the library's bars and warnings."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
