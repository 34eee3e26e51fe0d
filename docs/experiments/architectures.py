"""Try every torchvision classifier, and some of timm's, and print docs/architectures.md.

python docs/experiments/architectures.py > docs/architectures.md

Weights are random (nothing is downloaded), seeds are fixed, one network is in memory at a time.
"""

from __future__ import annotations

import random
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

import gatecli
from gatecli.architectures.arguments import accepted_args
from gatecli.architectures.build import build, build_skeleton
from gatecli.architectures.identify import Found, found_for, identify
from gatecli.architectures.shapes import shapes_of
from gatecli.errors import ArchitectureError
from gatecli.network import Network
from gatecli.network.compare import logits, random_images, relative_change
from gatecli.traced.recipe import InputSpec, Recipe, Source

TIMM = (
    "resnet26d",
    "resnetv2_50",
    "seresnet18",
    "resnest14d",
    "res2net50_14w_8s",
    "eca_resnet33ts",
    "nf_resnet26",
    "cspresnet50",
    "regnetx_002",
    "regnetz_b16",
    "convnext_atto",
    "inception_next_atto",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "efficientnet_b0",
    "ghostnet_100",
    "rexnet_100",
    "hrnet_w18_small",
    "dla34",
    "vgg11",
    "tresnet_m",
    "densenet121",
    "dpn48b",
    "ese_vovnet19b_dw",
    "repvgg_a0",
    "mobileone_s0",
    "repvit_m0_9",
    "fastvit_t8",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "cait_xxs24_224",
    "xcit_nano_12_p16_224",
    "levit_128s",
    "coat_tiny",
    "pit_ti_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "pvt_v2_b0",
    "poolformer_s12",
    "efficientformer_l1",
    "mixer_s32_224",
    "resmlp_12_224",
    "mobilevit_xxs",
    "tiny_vit_5m_224",
    "nest_tiny",
    "crossvit_tiny_240",
    "hiera_tiny_224",
)
SIZES = (56, 64, 96)  # for the comparisons: the first that a network takes, else its own
PRUNED = ("pruned: M parameters", "pruned: logits")
HEAD = """# Architectures

Printed by `python docs/experiments/architectures.py > docs/architectures.md` (torch {torch},
torchvision {vision}, timm {timm}): random weights and BatchNorm
statistics, seeds fixed.

- *found as*: what the architecture is taken for from the names and shapes of its tensors alone.
- *sites*: what can be gated, and where exits can stand; *GMACs* of one image at the official
  *input* size.
- *attach*: how far the logits of the network with a gate of `ind-perbatch` at each site are from
  the source's, relative to the largest; where there is no site, how far
  the traced network's are, in brackets.
- *pruned*: half of the sites, drawn at random, are decided to be off and removed: parameters before
  and after, and how far the logits are from those of the network
  with the same decisions forced.
- *training*: whether the traced network in training mode returns the very logits of its source in
  training mode, for the same seed; the mark `drawn` says that they are
  random (dropout, stochastic depth).

Logits are compared on images of {sizes} pixels, the first size that the network takes, else of its
official size.

## torchvision

"""
TORCHVISION = (
    "network",
    "found as",
    "input",
    "sites",
    "GMACs",
    "attach",
    *PRUNED,
    "training",
    "notes",
)
SECOND = """
## timm

With `--arch timm:NAME`; needs the extra `timm`. The last column says what does not work.

"""
TIMM_COLUMNS = (
    "network",
    "input",
    "sites",
    "GMACs",
    "attach",
    *PRUNED,
    "training",
    "does not work",
)


@dataclass
class Row:
    """What is known of a network so far; a dash where it came to nothing."""

    sites: str = "-"
    gmacs: str = "-"
    attach: str = "-"
    params: str = "-"
    prune: str = "-"
    training: str = "-"
    notes: list[str] = field(default_factory=list)


def traced(model: nn.Module, found: Found, size: int) -> Network:
    return Network(
        model, Recipe(Source(found.arch, found.args), InputSpec((size, size), found.channels))
    )


def measure(found: Found, sizes: tuple[int, ...]) -> Row:
    """Try everything with one network; what fails ends in the row's notes."""
    row = Row()
    try:
        skeleton = build_skeleton(found.arch, found.args)
        network = traced(skeleton, found, found.input_size)
        kinds = Counter(
            site.kind for site in network.sites.values() if site.kind in ("block", "layer", "exit")
        )
        row.sites = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "0"
        row.gmacs = f"{network.macs_dense / 1e9:.3f}"
        row.notes += _lost(skeleton, network)
        del skeleton, network
        _compare(found, sizes, row)
    except gatecli.GatecliError as error:
        row.notes.append(
            re.sub(r"/\S*/site-packages/", "", str(error))
            .partition(". Rewrite")[0]
            .replace("|", "\\|")
        )
    return row


def _lost(source: nn.Module, network: Network) -> list[str]:
    """Tensors of the source that the network does not have.

    Heads that evaluation never runs, and second names of shared modules.
    """
    lost = sorted(set(source.state_dict()) - set(network.state_dict()))
    heads = sorted(
        {name.partition(".")[0] for name in lost}
        - {name.partition(".")[0] for name in network.state_dict()}
    )
    others = [name for name in lost if name.partition(".")[0] not in heads]
    return [f"heads dropped: {', '.join(heads)}"] * bool(heads) + [
        f"{len(others)} tensors lost, as `{others[0]}`" for _ in others[:1]
    ]


def _compare(found: Found, sizes: tuple[int, ...], row: Row) -> None:
    model, network = _small(found, sizes)
    images = random_images(network)
    before = logits(model, images)
    row.training = _training(model, network, images)
    if not any(site.kind in ("block", "layer") for site in network.sites.values()):
        row.attach = f"({relative_change(before, logits(network.eval(), images)):.0e})"
        return
    gated = gatecli.attach(network.eval(), "ind-perbatch").network
    del model, network
    row.attach = f"{relative_change(before, logits(gated, images)):.0e}"
    with torch.no_grad():
        for site in random.Random(0).sample(list(gated.gated_by), len(gated.gated_by) // 2):
            gated.get_parameter(f"gates.{site}.logits").copy_(torch.tensor([[9.0, -9.0]]))
    pruned = gatecli.prune(gated)
    row.params, row.prune = (
        f"{gated.params / 1e6:.2f} -> {pruned.network.params / 1e6:.2f}",
        f"{pruned.max_logit_change:.0e}",
    )


def _small(found: Found, sizes: tuple[int, ...]) -> tuple[nn.Module, Network]:
    """The network with weights and its trace, for the smallest images that it takes.

    The trace has tensors of its own.
    """
    for size in sizes:
        try:
            model = _lively(found, size)
            network = traced(build_skeleton(found.arch, _args(found, size)), found, size)
            with torch.no_grad():
                model(torch.zeros(1, network.input.channels, size, size))
        except (ArchitectureError, RuntimeError, ValueError, AssertionError):
            continue
        state = model.state_dict()
        network.load_state_dict(
            {name: state[name].clone() for name in network.state_dict()}, assign=True
        )
        if any(
            tensor.is_meta for tensor in [*network.parameters(), *network.buffers()]
        ):  # constants that no file holds
            network = traced(_lively(found, size), found, size)
        return model, network.eval()
    raise ArchitectureError(f"takes no images of {' or '.join(map(str, sizes))}")


def _args(found: Found, size: int) -> dict[str, Any]:
    """The arguments, with heads off that would draw random numbers of their own in training, and
    with the positions of a ViT.
    """
    accepted: Mapping[str, Any] = accepted_args(found.arch) or {}
    return {
        **found.args,
        **({"aux_logits": False} if "aux_logits" in accepted else {}),
        **({"image_size": size} if "image_size" in accepted else {}),
    }


def _lively(found: Found, size: int) -> nn.Module:
    """The network with every parameter drawn at random.

    Quick, and nothing is hidden by a layer scale of nearly 0 or a BatchNorm that does nothing.
    """
    torch.manual_seed(0)
    model = build_skeleton(found.arch, _args(found, size))
    if any(buffer.is_meta for buffer in model.buffers()):
        model = build(found.arch, _args(found, size))
    drawn = {id(parameter): _draw(name, parameter) for name, parameter in model.named_parameters()}
    state = model.state_dict()
    state.update(
        {
            name: drawn[id(parameter)]
            for name, parameter in model.named_parameters(remove_duplicate=False)
        }
    )
    model.load_state_dict(state, assign=True)
    for part in model.modules():
        if (
            isinstance(part, nn.modules.batchnorm._BatchNorm)
            and part.running_mean is not None
            and part.running_var is not None
        ):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    return model


def _draw(name: str, parameter: Tensor) -> Tensor:
    fresh = torch.empty(parameter.shape, dtype=parameter.dtype)
    if fresh.ndim < 2:
        return fresh.uniform_(-0.1, 0.1) if name.endswith("bias") else fresh.uniform_(0.5, 1.5)
    bound = (3 / fresh[0].numel()) ** 0.5
    return fresh.uniform_(-bound, bound)


def _training(model: nn.Module, network: Network, images: Tensor) -> str:
    """Both in training mode, twice each; BatchNorm's statistics are put back."""
    statistics = {name: buffer.clone() for name, buffer in network.named_buffers()}
    same, other = (list(_draws(each, images)) for each in (model, network))
    for name, buffer in network.named_buffers():
        buffer.copy_(statistics[name])
    equal = all(torch.equal(a, b) for a, b in zip(same, other, strict=True))
    far = max(relative_change(a, b) for a, b in zip(same, other, strict=True))
    return ("same" if equal else f"{far:.0e}") + ("" if torch.equal(*other) else ", drawn")


def _draws(model: nn.Module, images: Tensor) -> Iterator[Tensor]:
    model.train()
    with torch.no_grad():
        for seed in (1, 2):
            torch.manual_seed(seed)
            yield model(images)


def torchvision_row(name: str) -> str:
    found = identify(shapes_of(build_skeleton(f"torchvision:{name}", {})))
    row = measure(found, (*SIZES, found.input_size))
    args = "".join(
        f" {key}={value}"
        for key, value in found.args.items()
        if (key, value) != ("num_classes", 1000)
    )
    columns = [
        name,
        found.arch.removeprefix("torchvision:") + args,
        found.input_size,
        row.sites,
        row.gmacs,
        row.attach,
        row.params,
        row.prune,
        row.training,
    ]
    return _line([*columns, "; ".join(row.notes)])


def timm_row(name: str) -> str:
    try:
        found = found_for(f"timm:{name}", {}, shapes_of(build_skeleton(f"timm:{name}", {})))
    except ArchitectureError as error:
        return _line([name, "-", *["-"] * 6, str(error)])
    row = measure(found, (*SIZES, found.input_size))
    return _line(
        [
            name,
            found.input_size,
            row.sites,
            row.gmacs,
            row.attach,
            row.params,
            row.prune,
            row.training,
            "; ".join(row.notes),
        ]
    )


def _line(columns: list[Any]) -> str:
    return f"| {' | '.join(map(str, columns))} |"


def _header(columns: Sequence[str]) -> str:
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"


def main() -> None:
    import timm
    import torchvision

    warnings.simplefilter("ignore")
    versions = {
        "torch": torch.__version__.partition("+")[0],
        "vision": torchvision.__version__.partition("+")[0],
        "timm": timm.__version__,
    }
    print(HEAD.format(**versions, sizes=" or ".join(map(str, SIZES))), end="")
    print(_header(TORCHVISION))
    for name in models.list_models(module=models):
        print(torchvision_row(name), flush=True)
        print(name, file=sys.stderr)
    print(SECOND, end="")
    print(_header(TIMM_COLUMNS))
    for name in TIMM:
        print(timm_row(name), flush=True)
        print(name, file=sys.stderr)


if __name__ == "__main__":
    main()
