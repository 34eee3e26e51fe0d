"""gates: what the gates of a network do on a split.

Always on, always off or by the image, how many are on for an image, and whether images of a class
are alike.

The figures that "You Look Twice: GaterNet" (Chen et al. 2019) draws of its gates, for every method
that has some.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gatecli.errors import SettingError
from gatecli.gates import Exit
from gatecli.network import Network
from gatecli.network.compare import require_finite
from gatecli.progress import Progress, silent
from gatecli.record import record_gates

BINS, COMPONENTS, FEWEST = 10, 400, 10


@dataclass(frozen=True)
class SiteUse:
    """Of a site's units, how many were always on, always off, and which it was by the image.

    `rate` is their mean.
    """

    name: str
    kind: str
    units: int
    on: int
    off: int
    dependent: int
    rate: float


@dataclass(frozen=True)
class Use:
    """`histogram`: of the units that depend on the image, how many are on for 0-10 %, 10-20 %, ...

    Of the images; `per_image`: units on, least, mean, most.

    vectors (N, units): the decisions about each image; labels (N,).
    """

    sites: list[SiteUse]
    histogram: list[int]
    per_image: tuple[float, float, float]
    vectors: Tensor
    labels: Tensor


def analyse(
    network: Network,
    images: Iterable[tuple[Tensor, Tensor]],
    progress: Progress = silent,
    total: int | None = None,
) -> Use:
    """What the gates decide about images (N, C, H, W) with labels (N,), in evaluation, nobody
    leaving by an exit. Raises SettingError where there are no gates.
    """
    gates = {site: gate for site, gate in network.site_gates.items() if not isinstance(gate, Exit)}
    if not gates:
        raise SettingError(
            "the network has no gates to look at: attach a method first (gatecli attach CHECKPOINT"
            " --method NAME)"
        )
    decided: dict[str, list[Tensor]] = {site: [] for site in gates}
    labels = []
    with (
        torch.no_grad(),
        record_gates(network.eval()) as record,
        progress.task("gates", total) as task,
    ):
        for x, y in images:
            record.clear()
            require_finite(network.at_exits(x.to(network.device))[1])
            latest = record.latest()
            for site, seen in decided.items():
                seen.append(latest[site].cpu())
            labels.append(y)
            task.advance()
    vectors = {site: torch.cat(seen) for site, seen in decided.items()}
    rates = torch.cat([z.double().mean(0) for z in vectors.values()])
    every, varying = (
        torch.cat(list(vectors.values()), 1),
        torch.cat([_varies(z) for z in vectors.values()]),
    )
    counts = torch.histc(rates[varying], BINS, 0, 1).long().tolist()
    on = every.double().sum(1)
    sites = [_use(network, site, z) for site, z in vectors.items()]
    return Use(
        sites,
        counts,
        (on.min().item(), on.mean().item(), on.max().item()),
        every,
        torch.cat(labels),
    )


def _varies(z: Tensor) -> Tensor:
    return (z != z[:1]).any(0)


def _use(network: Network, site: str, z: Tensor) -> SiteUse:
    varies = _varies(z)
    on, off = int((~varies & (z[0] > 0)).sum()), int((~varies & (z[0] == 0)).sum())
    return SiteUse(
        site,
        network.sites[site].kind,
        z.shape[1],
        on,
        off,
        int(varies.sum()),
        z.double().mean().item(),
    )


def embedded(vectors: Tensor, seed: int = 0) -> Tensor:
    """Decisions (N, units) as points of the plane (N, 2): PCA to 400 dimensions, then t-SNE.

    Raises: SettingError for fewer than 10 images, where no unit varies, or without scikit-learn.
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
    return torch.from_numpy(
        TSNE(
            2, perplexity=min(30.0, (len(reduced) - 1) / 3), init="random", random_state=seed
        ).fit_transform(reduced)
    )
