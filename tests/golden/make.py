"""Make the golden files of this folder: `python tests/golden/make.py [--only NAME]`.

They hold what today's version writes: every method attached, tuned and pruned; stacks; calibrated
exits; the odd ends. Later versions must load them with the same logits, decisions and thresholds
(tests/test_golden.py), so the script is run by the version before a format or a module moves, and
never to make that test pass. It writes the files, `expected.json` and `logits.npz`.

The same machine and versions give the same bytes: all is seeded, one thread computes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]  # this copy of gatecli, and its tests

from commandline import save_source  # noqa: E402
from golden import facts  # noqa: E402

import gatecli  # noqa: E402

Network = gatecli.Network
Made = Iterator[tuple[str, Network]]
SIDE = 16
MEAN, STD = 0.3, 0.38  # of the digits, roughly
MADE_AT = "2026-11-26T00:00:00+00:00"  # steps hold the time; the same bytes every time need one
POOL = 48  # images to choose from
SURE = 1e-4  # what a score must be away from its threshold, at least
COARSE = facts.LIMIT / 3  # what float32 may lose of the largest logit
MEDIUM, SMALL, LARGE = 0.02, 1e-3, 0.5  # learning rates; the last one is for exits alone
MAKERS: dict[str, Callable[[], Made]] = {}


def golden(name: str) -> Callable[[Callable[[], Made]], Callable[[], Made]]:
    """Register what makes the files NAME.*."""

    def register(maker: Callable[[], Made]) -> Callable[[], Made]:
        MAKERS[name] = maker
        return maker

    return register


# --- data and sources ---


@cache
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits as `--data digits` gives them, and their labels."""
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    maps = torch.from_numpy(values).float().reshape(-1, 1, 8, 8) / 16
    large = F.interpolate(maps, (SIDE, SIDE), mode="bilinear", antialias=True)
    return (large - MEAN) / STD, torch.from_numpy(labels)


@cache
def images() -> Tensor:
    """Digits with some noise, of values that compress: (POOL, 1, SIDE, SIDE)."""
    noise = torch.randn(POOL, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return ((digits()[0][-POOL:] + 0.1 * noise) * 64).round() / 64


@cache
def source(arch: str, epochs: int = 3, spell: tuple[str, str] = ("", ""), **args: Any) -> Network:
    """A trained network as gatecli reads it from a plain file; `spell`: another word for a part."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plain.pt"
        save_source(file, arch, **args)
        how: Any = {"arch": arch, "arch_args": args, "input_size": (SIDE, SIDE)}
        network = gatecli.load(file, **how, mean=(MEAN,), std=(STD,))
        learn(network, epochs)
        tensors = {name.replace(*spell): value for name, value in network.state_dict().items()}
        torch.save(tensors, file)
        return gatecli.load(file, **how, mean=(MEAN,), std=(STD,))


def learn(network: Network, epochs: int) -> None:
    """A few steps, so that no tensor is what initialisation left."""
    x, y = digits()
    order = torch.Generator().manual_seed(1)
    torch.manual_seed(2)  # dropout
    step = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(1200, generator=order).split(64):
            loss = F.cross_entropy(network.train()(facts.images_for(network, x[rows])), y[rows])
            step.zero_grad()
            loss.backward()
            step.step()
    network.eval()


def own(name: str, **args: Any) -> Network:
    return source(f"golden.nets:{name}", **args)


@cache
def gater() -> Network:
    """The smallest classifier of a library that a gater can be."""
    args = {"width_mult": 0.01, "round_nearest": 2, "num_classes": 10, "in_channels": 1}
    return source("torchvision:mobilenet_v2", epochs=1, **args)


# --- what is done to them ---


def attached(network: Network, method: str, **how: Any) -> Network:
    """Attach as `gatecli attach` does; new gates' weights do not depend on what was made before."""
    torch.manual_seed(3)
    return gatecli.attach(network, method, **how).network


@cache
def data() -> Any:
    return gatecli.load_data("digits")


def trained(network: Network, rate: float = MEDIUM, epochs: int = 1, **how: Any) -> Network:
    """Train a copy as `gatecli finetune` does."""
    names = ("train", "schedule")
    options = {name: how.pop(name) for name in names if name in how}
    twin = network.copy()
    gatecli.fit(twin, data())
    settings = gatecli.TrainOptions(
        epochs=epochs, lr=rate, batch_size=64, bn_batches=4, save_every=0, **options
    )
    gatecli.finetune(twin, data(), settings, changes=how)
    return twin.eval()


def tuned(network: Network, **how: Any) -> Network:
    """Trained until some units never run, some always do and the others look at the image.

    An epoch of training, then the gates' biases are moved by hand, then an epoch that hardly moves
    a weight but records the rates.
    """
    stirred = network.copy()
    stir(stirred)
    first = trained(stirred, **how)
    aim(first)
    return trained(first, SMALL, **how)


def stir(network: Network) -> None:
    """Give the last layers of gates, which start at zero, weights by which images differ."""
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("decide.weight", "fc2.weight")):
                parameter.add_(torch.randn(parameter.shape, generator=draw))


def aim(network: Network) -> None:
    """Move the gates' biases, site after site, so that units decide as `wish` says."""
    first = 0  # the gater's output that a site begins at
    for index, (site, units) in enumerate(facts.units_of(network).items()):
        odds = _odds(network, site)
        wishes = [wish(index, unit, units) for unit in range(units)]
        shifts = [_shift(odds[:, unit], wished) for unit, wished in enumerate(wishes)]
        of_gater = _move(network, site, torch.stack(shifts), slice(first, first + units))
        first += units * of_gater


def wish(index: int, unit: int, units: int) -> str:
    """What a unit of the site with this index shall do: "never", "always" or "image"."""
    turns = ("image", "never", "image", "always")
    return turns[index % 4] if units == 1 else turns[(index + unit) % 4]


def _odds(network: Network, site: str) -> Tensor:
    """A gate's log-odds of all images, (N, units), nobody leaving early."""
    x, stay = facts.images_for(network, images()), {name: [0] for name in network.site_exits}
    with gatecli.force(network, stay), gatecli.record_gates(network) as record:
        facts.logits(network, x)
    return record.odds[site][-1]


def _shift(odds: Tensor, wished: str) -> Tensor:
    """What to add to a unit's log-odds; one that does not look at the image stays as it is."""
    if wished == "image" and bool((odds == odds[0]).all()):
        return torch.zeros(())
    return {"never": -odds.max() - 5, "always": 5 - odds.min(), "image": -odds.median()}[wished]


def _move(network: Network, site: str, shifts: Tensor, outputs: slice) -> bool:
    """Add to the bias of a site's gate; returns whether that is the gater's, at these outputs."""
    parts = dict(network.named_parameters())
    name = f"{'exits' if site in network.site_exits else 'gates'}.{site}"
    with torch.no_grad():
        if f"{name}.decide.bias" in parts:
            parts[f"{name}.decide.bias"][1::2] += shifts
        elif f"{name}.logits" in parts:
            parts[f"{name}.logits"][:, 1] += shifts
        elif f"{name}.delta" in parts:
            parts[f"{name}.delta"] -= shifts / 2  # cgnet's log-odds have this slope
        else:
            parts["gater.fc2.bias"][outputs] += shifts
            return True
    return False


def pruned(network: Network, **how: Any) -> Network:
    """Prune by the rates that are measured on val."""
    twin = network.copy()
    gatecli.fit(twin, data())
    rates = gatecli.evaluate(twin, data(), split="val").rates
    return gatecli.prune(twin, rates=rates, **how).network


def chain(network: Network, method: str, prune: Any = None, tune: Any = None, **how: Any) -> Made:
    """A method attached, tuned and pruned."""
    gated = attached(network, method, **how)
    yield "attached", gated
    after = tuned(gated, **(tune or {}))
    yield "tuned", after
    yield "pruned", pruned(after, **(prune or {}))


def buffer(network: Network, name: str) -> Tensor:
    return dict(network.named_buffers())[name]


def cut(network: Network, method: str = "", after: str | None = None, **how: Any) -> Network:
    """Prune to the first exit, at which everybody leaves: makes large library networks small."""
    gated = attached(network, method, **how) if method else network
    gated = attached(gated, "dgate", include=["exit1"], after=after)
    with torch.no_grad():
        draw = torch.Generator().manual_seed(5)
        weight = dict(gated.named_parameters())["exits.exit1.linear.weight"]
        weight.copy_(0.3 * torch.randn(weight.shape, generator=draw))
        buffer(gated, "exits.exit1.threshold").fill_(-100.0)
    return gated


# --- every method attached, tuned, pruned ---


@golden("aig-pergate")
def aig_pergate() -> Made:
    yield from chain(own("residual"), "aig-pergate", target_rate=0.6)


@golden("aig-perbatch")
def aig_perbatch() -> Made:
    yield from chain(own("dense"), "aig-perbatch", hidden=8)


@golden("ind-pergate")
def ind_pergate() -> Made:
    yield from chain(own("residual"), "ind-pergate", granularity=4)


@golden("ind-perbatch")
def ind_perbatch() -> Made:
    yield from chain(own("tokens"), "ind-perbatch")


@golden("dgate")
def dgate() -> Made:
    gated = attached(own("residual"), "dgate")
    yield "attached", gated
    after = trained(gated, LARGE, epochs=2)
    yield "tuned", after
    calibrated = gatecli.calibrate_exits(after, data(), max_gmacs=0.0007).network
    yield "calibrated", calibrated
    buffer(calibrated, "exits.exit1.threshold").fill_(torch.inf)
    yield "pruned", pruned(calibrated)


@golden("early-exit")
def early_exit() -> Made:
    yield from chain(own("residual"), "early-exit", width=8)


@golden("gaternet")
def gaternet() -> Made:
    yield from chain(own("residual", width=4), "gaternet", gater_network=gater(), bottleneck=2)


@golden("gateconnect")
def gateconnect() -> Made:
    gated = attached(own("resnext"), "gateconnect", fan_in=2, shared="no")
    yield "attached", gated
    with torch.no_grad():  # the last branches are the least likely to be read
        for name, parameter in gated.named_parameters():
            if name.endswith(".real"):
                parameter *= torch.tensor([1.0, 1.0, 0.3, 0.01])
    after = trained(gated, epochs=2, phases="imagenet")
    yield "tuned", after
    yield "pruned", pruned(after)


@golden("cgnet")
def cgnet() -> Made:
    yield from chain(own("residual"), "cgnet")


# --- variants ---


@golden("cgnet-fine")
def cgnet_fine() -> Made:
    gated = attached(own("residual"), "cgnet", gate="fine")
    yield "tuned", tuned(gated)


@golden("cgnet-l1")
def cgnet_l1() -> Made:
    after = tuned(attached(own("residual"), "cgnet", gate="l1", base_path="yes"))
    yield "pruned", pruned(after)


@golden("cgnet-fc")
def cgnet_fc() -> Made:
    after = tuned(attached(own("inception"), "cgnet", gate="fc", base_path="yes", eta=0.5))
    yield "pruned", pruned(after, static=0.5)


@golden("cgnet-grouped")
def cgnet_grouped() -> Made:
    gated = attached(own("residual"), "cgnet", grouping="yes", shuffle="yes")
    yield "pruned", pruned(tuned(gated))


@golden("gaternet-joined")
def gaternet_joined() -> Made:
    """Sums at which several filters meet; some convolutions' readers keep their width."""
    after = tuned(
        attached(own("joined"), "gaternet", gater_network=gater(), bottleneck=2, where="*")
    )
    yield "pruned", pruned(after)
    yield "rounded", pruned(after, static=0.5, round_to=4)


@golden("gaternet-dense")
def gaternet_dense() -> Made:
    gated = attached(own("dense"), "gaternet", gater_network=gater(), bottleneck=2)
    yield "pruned", pruned(tuned(gated, target_rate=0.5))


@golden("gaternet-concatenation")
def gaternet_concatenation() -> Made:
    gated = attached(own("inception"), "gaternet", gater_network=gater(), bottleneck=2)
    yield "pruned", pruned(tuned(gated))


@golden("gateconnect-one")
def gateconnect_one() -> Made:
    gated = attached(own("resnext"), "gateconnect", fan_in=1, connectivity="random", seed=3)
    yield "pruned", pruned(gated)


@golden("gateconnect-all")
def gateconnect_all() -> Made:
    yield "attached", attached(own("resnext"), "gateconnect", fan_in=4)


@golden("aig-granular")
def aig_granular() -> Made:
    after = tuned(attached(own("residual"), "aig-perbatch", granularity=2, hidden=8))
    yield "static", pruned(after, static=0.5)


@golden("aig-calibrated")
def aig_calibrated() -> Made:
    after = tuned(attached(own("residual"), "aig-pergate", targets="layers.2:1", hidden=8))
    yield "uniform", gatecli.calibrate(after, data(), max_drop=5.0).network
    yield "per-gate", gatecli.calibrate(after, data(), max_drop=5.0, per_gate=True).network


@golden("ind-rounded")
def ind_rounded() -> Made:
    after = tuned(attached(own("residual"), "ind-perbatch", granularity=4))
    yield "pruned", pruned(after, round_to=4)


@golden("ind-filters")
def ind_filters() -> Made:
    """Convolutions that lose inputs which an addition beside them reads as zeros."""
    after = tuned(attached(own("residual", width=4), "ind-perbatch", kinds=["filter"]))
    yield "pruned", pruned(after)


@golden("ind-stuck")
def ind_stuck() -> Made:
    after = tuned(attached(own("padded_dense"), "ind-pergate"))
    yield "pruned", pruned(after)


@golden("dgate-placed")
def dgate_placed() -> Made:
    gated = attached(own("residual"), "dgate", after="layers.1,layers.3", loss="cross-entropy")
    after = trained(gated, LARGE, epochs=2)
    how = {"target_acc": 80.0, "confidence": 0.9}
    yield "certified", gatecli.calibrate_exits(after, data(), **how).network


@golden("early-exit-calibrated")
def early_exit_calibrated() -> Made:
    after = tuned(attached(own("residual"), "early-exit", width=4))
    yield "calibrated", gatecli.calibrate_exits(after, data(), max_gmacs=0.0009).network


# --- the library's own networks, pruned until they are small ---


@golden("cifar-resnet20")
def cifar_resnet20() -> Made:
    """A state dict with another spelling, of which most blocks are gone."""
    network = source("cifar:resnet20", epochs=1, spell=("downsample", "shortcut"))
    gated = attached(network, "ind-perbatch")
    with torch.no_grad():
        for name, parameter in gated.named_parameters():
            if name.endswith("logits") and name.startswith(
                ("gates.layer3", "gates.layer2.1", "gates.layer2.2")
            ):
                parameter.copy_(torch.tensor([[3.0, 0.1]]))
    yield "pruned", pruned(gated)


@golden("cifar-preresnet56")
def cifar_preresnet56() -> Made:
    network = source("cifar:preresnet56", epochs=1, narrow=True)
    gated = cut(network, "aig-perbatch", after="layer2.0", include=["layer[12].[0-2]"], hidden=4)
    stir(gated)
    yield "pruned", gatecli.prune(gated, rates=_rates(gated)).network


@golden("cifar-resnext20")
def cifar_resnext20() -> Made:
    """Branches with a BatchNorm of their own, each read by one other."""
    network = source("cifar:resnext20_8x4d", epochs=1)
    how = {"include": ["layer1.0.branches"], "fan_in": 1, "connectivity": "random"}
    gated = cut(network, "gateconnect", after="layer1.1.relu", **how)
    yield "pruned", gatecli.prune(gated, rates=_rates(gated)).network


@golden("torchvision-mobilenet")
def torchvision_mobilenet() -> Made:
    args = {"width_mult": 0.02, "round_nearest": 2, "num_classes": 10}
    network = source("torchvision:mobilenet_v2", **args)
    yield "pruned", pruned(tuned(attached(network, "ind-perbatch")))


@golden("torchvision-densenet121")
def torchvision_densenet121() -> Made:
    network = source(
        "torchvision:densenet121", epochs=1, stem="cifar", in_channels=1, num_classes=10
    )
    how = {"include": ["features.denseblock1.*"]}
    gated = cut(network, "ind-pergate", after="features.denseblock1.denselayer6", **how)
    with torch.no_grad():
        for name, parameter in gated.named_parameters():
            if name.endswith("logits") and "denseblock1.denselayer3" not in name:
                parameter.copy_(torch.tensor([[3.0, 0.1]]))
    narrow = gatecli.prune(gated, rates={"exit1": [0.5]}).network
    yield "pruned", gatecli.prune(narrow, rates=_rates(narrow)).network


def _rates(network: Network) -> dict[str, list[float]]:
    """Rates where everybody leaves at the first exit, and gates before it look at the image."""
    units = facts.units_of(network)
    return {site: [1.0 if site == "exit1" else 0.5] * count for site, count in units.items()}


# --- stacks ---


@golden("stack-ind-dgate")
def stack_ind_dgate() -> Made:
    small = pruned(tuned(attached(own("residual"), "ind-perbatch")))
    after = trained(attached(small, "dgate"), LARGE, epochs=2)
    yield "calibrated", gatecli.calibrate_exits(after, data(), max_drop=10.0).network


@golden("stack-aig-early")
def stack_aig_early() -> Made:
    stacked = attached(attached(own("residual"), "aig-perbatch"), "early-exit", width=8)
    after = tuned(stacked, train="aig-perbatch,early-exit")
    yield "pruned", pruned(after)


@golden("stack-gaternet-dgate")
def stack_gaternet_dgate() -> Made:
    small = own("residual", width=4)
    first = tuned(attached(small, "gaternet", gater_network=gater(), bottleneck=2))
    after = trained(attached(first, "dgate"), LARGE, epochs=2)
    calibrated = gatecli.calibrate_exits(after, data(), max_drop=2.0).network
    yield "pruned", pruned(calibrated)


@golden("stack-cgnet-dgate")
def stack_cgnet_dgate() -> Made:
    first = pruned(tuned(attached(own("residual"), "cgnet", gate="fc", base_path="yes")))
    after = trained(attached(first, "dgate"), LARGE, epochs=2)
    yield "calibrated", gatecli.calibrate_exits(after, data(), max_drop=3.0).network


@golden("stack-aig-gaternet")
def stack_aig_gaternet() -> Made:
    """Filters inside branches that are gated themselves."""
    first = tuned(attached(own("residual", width=4), "aig-pergate", hidden=8))
    how = {"gater_network": gater(), "bottleneck": 2, "where": "layers.*.conv1"}
    yield "pruned", pruned(tuned(attached(first, "gaternet", **how)))


# --- write them, and what they must answer ---


def sure_images(network: Network) -> list[int]:
    """Images, of all exits, that no gate decides so narrowly that rounding could change it."""
    found = []
    for index in in_turn(network):
        if is_sure(network, facts.images_for(network, images()[index : index + 1])):
            found.append(index)
        if len(found) == facts.COUNT:
            return found
    raise SystemExit(f"only {len(found)} of {POOL} images are decided clearly")


def in_turn(network: Network) -> list[int]:
    """All images, the first of each exit before the second of each, and so on."""
    with torch.no_grad():
        taken = network(facts.images_for(network, images()), return_exits=True)[1].tolist()
    turns = [taken[:index].count(exit_) for index, exit_ in enumerate(taken)]
    return sorted(range(POOL), key=turns.__getitem__)


def is_sure(network: Network, image: Tensor) -> bool:
    """Whether scores keep away from thresholds, and no decision moves with a little noise.

    The second finds gates that decide for single activations, whose scores are told as means.
    """
    if not _per_activation(network) and facts.margin(network, image) < SURE:
        return False
    if (
        facts.change(facts.logits(network, image), facts.logits(network.copy().double(), image))
        > COARSE
    ):
        return False
    noise = torch.randn(6, *image.shape[1:], generator=torch.Generator().manual_seed(6))
    near = torch.cat([image, image + 2e-5 * noise])
    decided = facts.decisions(network, near)
    return bool((decided == decided[0]).all())


def _per_activation(network: Network) -> bool:
    return any(
        step.settings.get("settings", {}).get("gate") == "fine" for step in network.recipe.steps
    )


def write(network: Network, name: str) -> None:
    """Write a file, and record what it answers when it is loaded again."""
    path = HERE / f"{name}.safetensors"
    steps = tuple(replace(step, at=MADE_AT) for step in network.recipe.steps)
    network.recipe = replace(network.recipe, steps=steps)
    gatecli.write(network, path)
    loaded = facts.load(path)
    rows = sure_images(loaded)
    x = facts.images_for(loaded, images()[rows])
    found = facts.answers(loaded, x)
    check_precision(loaded, x, found)
    record(name, path, loaded, rows, found)


def check_precision(network: Network, x: Tensor, found: facts.Answers) -> None:
    """Stop where float32 is nearly as coarse as the test's limit: another machine would fail it."""
    exact = facts.answers(network.copy().double(), x.double())
    for one, two in ((found.logits, exact.logits), (found.forced, exact.forced)):
        if facts.change(one, two) > COARSE:
            raise SystemExit(f"float32 is off by {facts.change(one, two):.1e} of the largest logit")


EXPECTED: dict[str, Any] = {}
ARRAYS: dict[str, Any] = {}


def record(name: str, path: Path, network: Network, rows: list[int], found: facts.Answers) -> None:
    """Keep what the test compares."""
    EXPECTED[name] = {
        "sha256": facts.sha256(path),
        "steps": facts.steps_of(path),
        "images": rows,
        "exits": found.exits.tolist(),
        "units": facts.units_of(network),
        "thresholds": facts.thresholds_of(network),
        "rates": facts.rates_of(network, found.decisions),
        **facts.told(path),
    }
    for what in ("logits", "forced", "decisions"):
        ARRAYS[f"{name}.{what}"] = getattr(found, what).numpy()


def save() -> None:
    """Write what was recorded; after each family, so that an error loses none."""
    text = json.dumps(dict(sorted(EXPECTED.items())), indent=1, allow_nan=False)
    (HERE / "expected.json").write_text(text + "\n", encoding="utf-8")
    np.savez_compressed(
        HERE / "logits.npz", images=images().numpy(), **dict(sorted(ARRAYS.items()))
    )


def resume(only: str) -> None:
    """Keep the recorded answers of the files that are not made anew."""
    old = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
    EXPECTED.update({name: said for name, said in old.items() if name.split(".")[0] != only})
    with np.load(HERE / "logits.npz") as held:
        ARRAYS.update({key: held[key] for key in held if key.split(".")[0] in _families()})


def _families() -> set[str]:
    return {name.split(".")[0] for name in EXPECTED}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the golden files.")
    parser.add_argument("--only", choices=sorted(MAKERS), help="make these files alone")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    os.chdir(tempfile.mkdtemp())  # commands keep a folder of their own where they run
    if only:
        resume(only)
    for old in HERE.glob(f"{only or '*'}.*safetensors"):
        old.unlink()
    for family in [only] if only else MAKERS:
        for stage, network in MAKERS[family]():
            write(network, f"{family}.{stage}")
            size = (HERE / f"{family}.{stage}.safetensors").stat().st_size
            print(f"{family}.{stage}: {size / 1000:.0f} kB", flush=True)
        save()


if __name__ == "__main__":
    main()
