"""GaterNet: one gater network looks at the image and chooses the backbone's filters.

    f = E(x);  g' = FC2(ReLU(BN(FC1(f))));  O_i = phi(F_i * I) * g_i,  g = [g' > 0]

Chen, Li, Bengio, Si, "You look twice: GaterNet for dynamic filter selection in CNNs" (2019).
Training binarises g' by improved semantic hashing (section 3.2.2): noise, half of a batch's samples
with real-valued gates. The loss is
    cross-entropy + l1_weight * ||g||_1 / c        (c gates; the mean over the batch)
where the second term reaches the gater alone, which sees the image and nothing of the backbone. A
filter is gated behind its BatchNorm and, in a residual unit, before the addition (ours; as
squeeze-and-excitation does). FC2 starts with zero weights and a positive bias, so that all gates
are open. With a target rate t (ours) the term is l1_weight * max(0, ||g||_1 / c - t).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from gatecli.architectures.arguments import is_callable_name, split_arch
from gatecli.architectures.shapes import CHANNEL_ARGS
from gatecli.errors import SettingError
from gatecli.gates.gate import Gate
from gatecli.graph import edit
from gatecli.kinds import registry
from gatecli.methods.base import Method, register
from gatecli.methods.gaternet.gater import Gater, make_gater
from gatecli.methods.settings import Settings, setting
from gatecli.network import Network, surgery
from gatecli.traced.site import Site

DEFAULT_KIND = "filter"
ROLES = registry.get(DEFAULT_KIND).roles
POLICIES = ("auto", *ROLES)
SMALL_IMAGES = 64  # pixels: up to here the paper's gater is a CIFAR ResNet-20, else a ResNet-18


@dataclass(frozen=True)
class GaterNetSettings(Settings):
    """Settings of GaterNet."""

    gater: str | None = setting(
        None,
        "the gater's architecture, torchvision:NAME or cifar:NAME; none: cifar:resnet20, or"
        " torchvision:resnet18 for large images",
        structural=True,
    )
    gater_args: str = setting(
        "{}", "arguments of its architecture and its file's spellings, as JSON", structural=True
    )
    bottleneck: int = setting(
        8,
        "features between the gater's two last layers, b in the paper (8; 256 for ImageNet)",
        low=1,
        high=65536,
        structural=True,
    )
    policy: str = setting(
        "auto",
        "which convolutions to gate: " + ", ".join(ROLES) + "; auto: what the network has",
        choices=POLICIES,
        structural=True,
    )
    where: str | None = setting(
        None, "instead: pattern of convolutions, as layer3.*", structural=True
    )
    l1_weight: float = setting(
        1.0,
        "weight of the gates' mean beside the cross-entropy, lambda in the paper, which gives no"
        " value",
        low=0,
        high=1e30,
    )
    target_rate: float | None = setting(
        None,
        "press the gates' mean no further down than this; none: as the paper, on and on",
        low=0,
        high=1,
    )


class FilterGate(Gate):
    """Its share of what the gater says: no weights of its own."""

    def __init__(self, site: str, units: int, first: int) -> None:
        super().__init__(site, units)
        self.outputs: Sequence[int] = range(first, first + units)

    def sampled(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x: the gater's gates (N, c), in training."""
        return self._own(x), None

    def scores(self, x: Tensor) -> Tensor:
        odds = self._own(x)
        return torch.stack([torch.zeros_like(odds), odds], -1)

    def log_odds(self, x: Tensor) -> Tensor:
        """x: the gater's scores (N, c), in evaluation."""
        return self._own(x)

    def _own(self, x: Tensor) -> Tensor:
        return x.narrow(1, self.outputs[0], self.units)

    def keep(self, units: Sequence[int]) -> None:
        """Decide these units alone."""
        super().keep(units)
        self.outputs = [self.outputs[unit] for unit in units]


class GaterNet(Method):
    """GaterNet, as this file describes it."""

    needs: ClassVar[str] = (
        "convolutions at the ends of residual branches or of dense blocks' layers, or"
        " concatenations (or say which with --set where=PATTERN)"
    )
    paper: ClassVar[str] = (
        "Chen, Li, Bengio, Si: You look twice: GaterNet for dynamic filter selection in CNNs, 2019"
    )

    default_kinds: ClassVar[tuple[str, ...]] = (DEFAULT_KIND,)

    def offers(self, network: Network, settings: Any, kinds: Sequence[str] = ()) -> list[Site]:
        sites = self.candidates(network, kinds)
        if settings.where is not None:
            names = {site.name: site.name.rpartition(".")[0] for site in sites}
            return [site for site in sites if fnmatchcase(names[site.name], settings.where)]
        if kinds and tuple(kinds) != self.default_kinds:
            return sites
        return [site for site in sites if site.role and site.role == settings.policy]

    def complete(self, network: Network, settings: Any, gater: Network | None = None) -> Any:
        roles = {site.role for site in self.candidates(network)}
        if settings.policy == "auto":
            settings = replace(
                settings, policy=next((role for role in reversed(ROLES) if role in roles), "auto")
            )
        if gater is not None:
            return self._with_file(network, settings, gater)
        small = max(network.input.size) <= SMALL_IMAGES
        arch = settings.gater or ("cifar:resnet20" if small else "torchvision:resnet18")
        _check_known(arch)
        channels = network.input.channels
        return replace(
            settings,
            gater=arch,
            gater_args=_written(
                {} if channels == 3 else {CHANNEL_ARGS[split_arch(arch)[0]]: channels}, {}
            ),
        )

    def _with_file(self, network: Network, settings: Any, gater: Network) -> Any:
        """The settings for a gater that is a trained classifier's.

        Raises SettingError where it is not one for this network.
        """
        source, mine = gater.recipe.source, network.recipe.source
        what = f"the gater {source.file or source.arch}"
        if settings.gater is not None and settings.gater != source.arch:
            raise SettingError(
                f"expected --set gater to say what {what} is, {source.arch}, but got"
                f" {settings.gater}: leave it out"
            )
        if gater.recipe.steps:
            raise SettingError(
                f"expected {what} to be a plain classifier's checkpoint, but gatecli has changed it"
                f" ({', '.join(step.op for step in gater.recipe.steps)})"
            )
        if source.sha256 and source.sha256 == mine.sha256:
            raise SettingError(
                f"{what} is the backbone's own file: train a smaller network for the same classes"
                " and give that"
            )
        _check_known(source.arch)
        if (gater.input.size, gater.input.channels) != (network.input.size, network.input.channels):
            sizes = [
                f"{spec.channels} x {spec.size[0]} x {spec.size[1]}"
                for spec in (network.input, gater.input)
            ]
            raise SettingError(
                f"expected a gater for the backbone's images, {sizes[0]}, but {what} takes"
                f" {sizes[1]}"
            )
        if gater.num_classes != network.num_classes:
            raise SettingError(
                f"expected a gater trained for the backbone's {network.num_classes} classes, but"
                f" {what} has {gater.num_classes}"
            )
        return replace(
            settings, gater=source.arch, gater_args=_written(source.arch_args, source.names)
        )

    def attach(self, network: Network, sites: Iterable[str], settings: Any) -> None:
        if "gater" in network._modules:
            raise SettingError(
                "expected a network without a gater, but this one has one: prune first, or gate all"
                " at once"
            )
        sites = list(sites)
        _check_known(settings.gater)  # a recipe may say anything
        about = json.loads(settings.gater_args)
        gater = make_gater(
            settings.gater,
            about["args"],
            about["names"],
            settings.bottleneck,
            sum(network.sites[site].units for site in sites),
            seed=0,
        )
        said = edit.insert_reader(network.root, network.graph, "gater", gater)
        first = 0
        for site in sites:
            units = network.sites[site].units
            gate = FilterGate(site, units, first)
            surgery.insert_gate(network.traced, site, gate, self.name, said.name)
            first += units
        network.recompile()
        network.recount()

    def weights(self, network: Network, gater: Network) -> None:
        features = network.get_submodule("gater.features")
        given = gater.state_dict()
        features.load_state_dict({name: given[name] for name in features.state_dict()})

    def tidy(self, network: Network) -> None:
        gates = [gate for gate in network.site_gates.values() if isinstance(gate, FilterGate)]
        outputs = [output for gate in gates for output in gate.outputs]
        gater = network._modules.get("gater")
        if isinstance(gater, Gater) and gates and len(outputs) < gater.fc2.out_features:
            gater.keep(outputs)
            first = 0
            for gate in gates:
                gate.outputs = range(first, first + gate.units)
                first += gate.units

    def shared(self, network: Network) -> list[Parameter]:
        return list(network.get_submodule("gater").parameters())

    def targets(self, settings: Any, sites: Iterable[str], epoch: int) -> dict[str, float]:
        return dict.fromkeys(sites, 1.0 if settings.target_rate is None else settings.target_rate)

    def loss(
        self, decisions: Mapping[str, Tensor], settings: Any, targets: Mapping[str, float]
    ) -> Tensor:
        gates = torch.cat(list(decisions.values()), 1)
        target = sum(targets[site] * z.shape[1] for site, z in decisions.items()) / gates.shape[1]
        weight: float = settings.l1_weight
        return weight * (gates.abs().mean() - (target if target < 1 else 0)).clamp(min=0)


def _check_known(arch: str) -> None:
    if is_callable_name(arch):
        raise SettingError(
            f"expected the gater to be torchvision:NAME, cifar:NAME or timm:NAME, but got {arch}"
        )


def _written(args: Mapping[str, Any], names: Mapping[str, str]) -> str:
    return json.dumps({"args": dict(args), "names": dict(names)})


register(
    GaterNet(
        "gaternet",
        "one small network looks at the image and chooses the filters of all gated convolutions",
        GaterNetSettings,
    )
)
