"""GaterNet: one gater network looks at the image and chooses the backbone's filters.

    f = E(x);  g' = FC2(ReLU(BN(FC1(f))));  O_i = phi(F_i * I) * g_i,  g = [g' > 0]

Chen, Li, Bengio, Si, "You look twice: GaterNet for dynamic filter selection in CNNs" (2019).
Training binarises g' by improved semantic hashing (section 3.2.2): noise, half of a batch's samples
with real-valued gates. The loss is
    cross-entropy + l1_weight * ||g||_1 / c        (c gates; the mean over the batch)
where the second term reaches the gater alone, which sees the image and nothing of the backbone. A
filter is gated behind its BatchNorm and, in a residual unit, before the addition (ours; as
squeeze-and-excitation does). As attached FC2 has zero weights and a positive bias, so that all
gates are open whatever the image. Zero rows would learn alike, so training begins by drawing them
(ours; the paper says nothing of FC2's start). With a target rate t (ours) the term is
    l1_weight * max(0, ||g||_1 / c - t).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor
from torch.nn import Parameter

from gatecli.architectures.arguments import split_arch
from gatecli.architectures.shapes import CHANNEL_ARGS
from gatecli.errors import SettingError
from gatecli.graph import edit
from gatecli.methods.base import About, Method
from gatecli.methods.gaternet.gate import FilterGate
from gatecli.methods.gaternet.gater import Gater, make_gater
from gatecli.methods.gaternet.given import check_fits, check_known, usual
from gatecli.methods.gaternet.settings import DEFAULT_KIND, DRAWN, ROLES, GaterNetSettings
from gatecli.methods.objective import Objective
from gatecli.methods.registry import register
from gatecli.methods.values import frozen, plain
from gatecli.network import Network, surgery
from gatecli.traced.site import Site

__all__ = ["FilterGate", "GaterNetSettings"]


class FewFilters(Objective[GaterNetSettings]):
    """Presses the gates' mean down, through the gater alone."""

    def targets(
        self, settings: GaterNetSettings, sites: Iterable[str], epoch: int
    ) -> dict[str, float]:
        return dict.fromkeys(sites, 1.0 if settings.target_rate is None else settings.target_rate)

    def loss(
        self,
        decisions: Mapping[str, Tensor],
        settings: GaterNetSettings,
        targets: Mapping[str, float],
    ) -> Tensor:
        gates = torch.cat(list(decisions.values()), 1)
        target = sum(targets[site] * z.shape[1] for site, z in decisions.items()) / gates.shape[1]
        excess = gates.abs().mean() - (target if target < 1 else 0)
        return settings.l1_weight * excess.clamp(min=0)

    def shared(self, network: Network) -> list[Parameter]:
        return list(network.get_submodule("gater").parameters())

    def begin(self, network: Network, sites: Iterable[str], settings: GaterNetSettings) -> None:
        gater = network.get_submodule("gater")
        assert isinstance(gater, Gater)
        if settings.start == DRAWN and gater.neutral:
            gater.draw()


class GaterNet(Method[GaterNetSettings]):
    """GaterNet, as this file describes it."""

    def offers(
        self, network: Network, settings: GaterNetSettings, kinds: Sequence[str] = ()
    ) -> list[Site]:
        sites = super().offers(network, settings, kinds)
        if settings.where is not None:
            names = {site.name: site.name.rpartition(".")[0] for site in sites}
            return [site for site in sites if fnmatchcase(names[site.name], settings.where)]
        if kinds and tuple(kinds) != self.about.default_kinds:
            return sites
        policy = self._policy(network, settings)
        return [site for site in sites if site.role and site.role == policy]

    def _policy(self, network: Network, settings: GaterNetSettings) -> str:
        """Which convolutions to gate: for `auto` what this network has, the last of ROLES first."""
        if settings.policy != "auto":
            return settings.policy
        roles = {site.role for site in super().offers(network, settings)}
        return next((role for role in reversed(ROLES) if role in roles), "auto")

    def complete(
        self,
        network: Network,
        sites: list[str],
        settings: GaterNetSettings,
        gater: Network | None = None,
    ) -> tuple[list[str], GaterNetSettings]:
        if gater is not None:
            check_fits(network, gater, settings.gater)
            source = gater.recipe.source
            arch, args, names = source.arch, source.arch_args, source.names
        else:
            arch = settings.gater or usual(network)
            check_known(arch)
            channels = network.input.channels
            args = {} if channels == 3 else {CHANNEL_ARGS[split_arch(arch)[0]]: channels}
            names = {}
        return sites, replace(
            settings,
            policy=self._policy(network, settings),
            gater=arch,
            gater_args=frozen({"args": args, "names": names}),
        )

    def attach(
        self,
        network: Network,
        sites: Sequence[str],
        settings: GaterNetSettings,
        gater: Network | None = None,
    ) -> None:
        if "gater" in network._modules:
            raise SettingError(
                "expected a network without a gater, but this one has one: prune first, or gate all"
                " at once"
            )
        counts = {site: network.sites[site].units for site in sites}
        new = _make(settings, gates=sum(counts.values()))
        said = edit.insert_reader(network.root, network.graph, "gater", new)
        first = 0
        for site, units in counts.items():
            gate = FilterGate(site, units, first)
            surgery.insert_gate(network.traced, site, gate, self.about.name, said.name)
            first += units
        network.recompile()
        network.recount()
        if gater is not None:
            given = gater.state_dict()
            new.features.load_state_dict({name: given[name] for name in new.features.state_dict()})

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


def _make(settings: GaterNetSettings, *, gates: int) -> Gater:
    """The gater that completed settings, or a recipe's, describe."""
    if settings.gater is None:
        raise SettingError("expected setting `gater` to be an architecture, but got `none`")
    check_known(settings.gater)  # a recipe may say anything
    about = plain(settings.gater_args)
    args, names = about["args"], about["names"]
    return make_gater(settings.gater, args, names, settings.bottleneck, gates, seed=0)


register(
    GaterNet(
        About(
            name="gaternet",
            summary="one small network looks at the image and chooses the filters of all gated"
            " convolutions",
            settings=GaterNetSettings,
            paper="Chen, Li, Bengio, Si: You look twice: GaterNet for dynamic filter selection in"
            " CNNs, 2019",
            needs="convolutions at the ends of residual branches or of dense blocks' layers, or"
            " concatenations (or say which with --set where=PATTERN)",
            default_kinds=(DEFAULT_KIND,),
        ),
        FewFilters(),
    )
)
