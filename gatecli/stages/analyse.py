"""gates: what the gates of a network do on a split.

Which are always on, always off or depend on the image, how many are on for an image, and whether
images of a class are alike: the figures that "You Look Twice: GaterNet" (Chen et al. 2019) draws of
its gates, for every method that has some. And which classes exits know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gatecli.errors import SettingError
from gatecli.gates.exit import Exit
from gatecli.gates.observe import record_gates
from gatecli.network import Network
from gatecli.network.compare import require_finite
from gatecli.network.costs import leaving_costs, spread_of
from gatecli.progress import Progress, silent
from gatecli.stages.alike import Counts, Distances, counts_of, distances
from gatecli.stages.exit_classes import ByClass, ExitClasses
from gatecli.stages.predict import ask_exits

__all__ = ["SiteUse", "Use", "Watch", "analyse", "embedded"]

BINS = 10  # of the histogram
SELDOM = 0.01  # of the images: a unit on for fewer, or off for fewer, hardly depends on the image
COMPONENTS = 400  # that PCA leaves for t-SNE
FEWEST = 10  # images for t-SNE
# Is shown images (n, C, H, W), labels (n,), and what `ask_exits` says of these images.
Watch = Callable[[Tensor, Tensor, tuple[dict[str, Tensor], dict[str, Tensor], Tensor]], None]


@dataclass(frozen=True, kw_only=True)
class SiteUse:
    """What a site's gate does.

    Attributes:
        name: the site.
        kind: what is gated there.
        units: how many units the gate decides.
        on: how many of them were on for all images.
        off: how many were off for all.
        dependent: how many were on for some.
        rate: the share of images and units that were on.
    """

    name: str
    kind: str
    units: int
    on: int
    off: int
    dependent: int
    rate: float


@dataclass(frozen=True, kw_only=True)
class Use:
    """What all gates do; nobody leaves by an exit.

    Attributes:
        sites: site by site.
        histogram: of the units that depend on the image, how many were on for 0-10 %, 10-20 %, ...
            of the images.
        switching: how many units were on for at least 1 % and at most 99 % of the images.
        macs: how single images' MACs lie, nobody leaving by an exit (see
            gatecli.network.costs.spread_of).
        per_image: how many units were on for an image: the fewest, the mean, the most.
        counts: for how many images how many units were on.
        alike: how far apart the decisions about images of one class, and of two, are.
        vectors: the decisions about each image, (N, units).
        labels: (N,).
        exits: what each exit knows of each class.
    """

    sites: list[SiteUse]
    histogram: list[int]
    switching: int
    macs: dict[str, float]
    per_image: tuple[float, float, float]
    counts: Counts
    alike: Distances
    vectors: Tensor
    labels: Tensor
    exits: dict[str, ExitClasses]


def analyse(
    network: Network,
    images: Iterable[tuple[Tensor, Tensor]],
    progress: Progress = silent,
    total: int | None = None,
    watch: Watch | None = None,
) -> Use:
    """Look at what the gates decide in evaluation, nobody leaving by an exit.

    Args:
        network: goes into evaluation.
        images: batches (n, C, H, W) with labels (n,).
        progress: is told of each batch.
        total: how many batches there are, where that is known.
        watch: is shown each batch with its answers.

    Raises:
        SettingError: the network has no gates.
        CheckpointError: its logits are not numbers.
    """
    sites = [site for site, gate in network.site_gates.items() if not isinstance(gate, Exit)]
    if not network.site_gates:
        raise SettingError(
            "the network has no gates to look at: attach a method first (gatecli attach CHECKPOINT"
            " --method NAME)"
        )
    decided: dict[str, list[Tensor]] = {site: [] for site in sites}
    labels = []
    by_class = ByClass(network.site_exits, network.num_classes)
    with (
        torch.no_grad(),
        record_gates(network.eval()) as record,
        progress.task("gates", total) as task,
    ):
        for x, y in images:
            record.clear()
            answers, scores, logits = ask_exits(network, x)
            require_finite(logits)
            by_class.add(answers, scores, y)
            if watch is not None:
                watch(x, y, (answers, scores, logits))
            latest = record.latest()
            for site, seen in decided.items():
                seen.append(latest[site].cpu())
            labels.append(y)
            task.advance()
    vectors = {site: torch.cat(seen) for site, seen in decided.items()}
    known = torch.cat(labels)
    every = torch.cat([torch.empty(len(known), 0), *vectors.values()], 1)
    on = every.double().sum(1)
    return Use(
        sites=[_use(network, site, z) for site, z in vectors.items()],
        histogram=_histogram(list(vectors.values())),
        switching=_switching(every),
        macs=spread_of(leaving_costs(network, vectors)[:, -1]),
        per_image=(on.min().item(), on.mean().item(), on.max().item()),
        counts=counts_of(on),
        alike=distances(every, known),
        vectors=every,
        labels=known,
        exits=by_class.counts(),
    )


def _histogram(vectors: Sequence[Tensor]) -> list[int]:
    """How many of the varying units are on for how many of the images."""
    rates = torch.cat([torch.empty(0), *[z.double().mean(0) for z in vectors]])
    varying = torch.cat([torch.empty(0, dtype=torch.bool), *[_varies(z) for z in vectors]])
    counts: list[int] = torch.histc(rates[varying], BINS, 0, 1).long().tolist()
    return counts


def _switching(vectors: Tensor) -> int:
    """How many units are on for many images and off for many: vectors (N, units)."""
    rates = vectors.double().mean(0)
    return int(((rates >= SELDOM) & (rates <= 1 - SELDOM)).sum())


def _varies(z: Tensor) -> Tensor:
    """Which units are not the same for all images: z (N, units) -> (units,)."""
    return (z != z[:1]).any(0)


def _use(network: Network, site: str, z: Tensor) -> SiteUse:
    varies = _varies(z)
    return SiteUse(
        name=site,
        kind=network.sites[site].kind,
        units=z.shape[1],
        on=int((~varies & (z[0] > 0)).sum()),
        off=int((~varies & (z[0] == 0)).sum()),
        dependent=int(varies.sum()),
        rate=z.double().mean().item(),
    )


def embedded(vectors: Tensor, seed: int = 0) -> Tensor:
    """Put decisions into the plane, by PCA to 400 dimensions and then t-SNE.

    Args:
        vectors: (N, units).
        seed: of both.

    Returns:
        Points (N, 2).

    Raises:
        SettingError: there are fewer than 10 images, no unit varies, or scikit-learn is missing.
    """
    if len(vectors) < FEWEST:
        raise SettingError(f"expected at least {FEWEST} images for t-SNE, but got {len(vectors)}")
    varying = vectors[:, _varies(vectors)].float().numpy()
    if not varying.size:
        raise SettingError(
            "no gate depends on the image, so there is nothing that t-SNE could tell apart"
        )
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise SettingError("t-SNE needs scikit-learn: pip install 'gatecli[report]'") from error
    components = min(COMPONENTS, *varying.shape)
    reduced = PCA(components, random_state=seed).fit_transform(varying)
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="random", random_state=seed)
    return torch.from_numpy(tsne.fit_transform(reduced))
