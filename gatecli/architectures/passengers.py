"""Tensors that a file has beside a network's own: counters, losses, metrics, queues, other heads.

Whether one may be left out is decided by evidence: without it a known network must fit completely,
and none of these is under a name of that network's own parts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from gatecli.architectures.shapes import COUNTER, Shape

__all__ = ["is_counter", "is_of_layer", "is_outsider", "is_passenger", "is_statistics", "strangers"]

# What tools add to every module: thop's counters.
COUNTERS = ("total_ops", "total_params", COUNTER)
# Parts of names, by what they are.
WORDS = re.compile(
    r"(.*_)?(criterion|criteria|loss|losses|loss_fn|loss_func|perceptual)(_.*|\d*)"
    r"|(.*_)?(metrics?|acc|acc[15]|accuracy|auroc|auc|f1|f1score|precision|recall|confmat"
    r"|confusion|confusion_matrix|top[15])(_.*|\d*)"
    r"|(.*_)?queue(_.*|\d*)|n_averaged|num_updates|decay|initted|global_step|epoch"
    r"|prototypes?|projectors?|predictors?|projection|proj_head|pred_head"
    r"|(.*_)?(projection|prediction|projector|predictor|contrastive|rotation|auxiliary|aux)"
    r"_(head|mlp|layer|classifier|fc)s?"
    r"|(normali[sz]er?|normali[sz]ation|preprocess|preprocessing|norm_layer)",
    re.IGNORECASE,
)
STATISTICS = re.compile(r"(.*[._])?(mean|std|mu|sigma|new_mean|new_std)", re.IGNORECASE)
LAYERS = ("weight", "bias", "running_mean", "running_var")  # what layers call their tensors


def is_counter(name: str) -> bool:
    """Whether a tensor counts something beside a layer: no layer has it as a weight."""
    return name.rpartition(".")[2] in COUNTERS


def is_of_layer(name: str) -> bool:
    """Whether a tensor is called as layers call theirs."""
    return name.rpartition(".")[2] in LAYERS


def is_passenger(name: str, shape: Shape, whole: Collection[str], *, in_layer: bool) -> bool:
    """Whether a tensor of a network's own dict may be none of its.

    Args:
        name: relative to the network.
        shape: the tensor's.
        whole: names of the tensors of whole numbers.
        in_layer: whether there are layers' tensors under the first part of its name.
    """
    if WORDS.fullmatch(name.partition(".")[0]):
        return True
    return not in_layer and _is_layerless(name, shape, whole)


def is_outsider(name: str, shape: Shape, whole: Collection[str]) -> bool:
    """Whether a tensor that is not under a network's prefix is plainly none of its."""
    parts = name.split(".")[:64]
    if any(map(WORDS.fullmatch, parts)) or is_counter(name):
        return True
    return _is_layerless(name, shape, whole)


def _is_layerless(name: str, shape: Shape, whole: Collection[str]) -> bool:
    """Whether no layer has such a tensor: one number, or whole ones, or statistics of images."""
    if is_of_layer(name):
        return False
    return name in whole or all(size == 1 for size in shape) or is_statistics(name, shape)


def is_statistics(name: str, shape: Shape) -> bool:
    """Whether a tensor looks like the mean or std by which images are normalised."""
    channels = [size for size in shape if size != 1]
    return bool(STATISTICS.fullmatch(name)) and channels in ([], [3]) and bool(shape)


def strangers(names: Iterable[str], own: Mapping[str, object]) -> bool:
    """Whether none of the names is under a part that a network has itself, counters aside."""
    firsts = {name.partition(".")[0] for name in own}
    left = [name for name in names if not is_counter(name)]
    return not any(name.partition(".")[0] in firsts for name in left)
