"""The checkpoint file: what it says of itself, what is refused, and that a file appears in full or
not at all.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import CASES
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gatecli
from gatecli.architectures.build import build
from gatecli.checkpoint import KEY, Reading, check_output, read, read_recipe
from gatecli.checkpoint.atomic import replacing
from gatecli.errors import ArchitectureError, CheckpointError, GatecliError, SettingError
from gatecli.network import Network, counting
from gatecli.stages.fit import IMAGENET_MEAN
from gatecli.traced.recipe import FORMAT, InputSpec, Recipe, Source, Step, finite

ARCH = "networks:oneblock"


def gated(method: str = "aig-perbatch", arch: str = ARCH) -> Network:
    return gatecli.attach(networks.oneblock(), method, input_size=(8, 8), arch=arch).network


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A gated checkpoint of a very small network."""
    gatecli.write(gated(), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gated checkpoint of a library's network, which loads without being asked for the
    architecture.
    """
    folder = tmp_path_factory.mktemp("resnet")
    torch.save(build("cifar:resnet20", {"num_classes": 5}).state_dict(), folder / "plain.pt")
    network, _ = read(folder / "plain.pt")
    gatecli.write(
        gatecli.attach(network, "ind-perbatch", include=["layer1.*"]).network,
        folder / "gated.safetensors",
    )
    return folder / "gated.safetensors"


def recipe_of(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, "pt") as opened:
        document: dict[str, Any] = json.loads(opened.metadata()[KEY])
        return document


def rewrite(
    path: Path,
    to: Path,
    change: Callable[[dict[str, Any]], object] | None = None,
    tensors: Callable[[dict[str, Tensor]], object] | None = None,
) -> Path:
    """A copy of a checkpoint with its recipe or its tensors changed, as somebody might who means
    harm.
    """
    document, held = recipe_of(path), load_file(path)
    if change is not None:
        change(document)
    if tensors is not None:
        tensors(held)
    save_file(held, to, {KEY: json.dumps(document)})
    return to


def refused(path: Path, arch: str | None = ARCH) -> str:
    with pytest.raises(GatecliError) as caught:
        gatecli.load(path, arch=arch)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600
    return text


# --- the recipe ---

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(max_size=6), JSON, max_size=3)
SIDES = st.integers(1, 65536)
STATISTICS = st.none() | st.lists(st.floats(0.01, 10), min_size=1, max_size=4).map(tuple)
RECIPES = st.builds(
    Recipe,
    source=st.builds(
        Source,
        arch=st.text(),
        arch_args=OBJECTS,
        names=st.dictionaries(st.text(), st.text(), max_size=2),
        file=st.text(),
        sha256=st.text(),
        file_bytes=st.integers(0, 2**50),
        params=st.integers(0, 2**50),
        macs=st.integers(0, 2**50),
        num_classes=st.integers(0, 2**20),
        leaves=st.lists(st.text(), max_size=2),
    ),
    input=st.builds(
        InputSpec, size=st.tuples(SIDES, SIDES), channels=SIDES, mean=STATISTICS, std=STATISTICS
    ),
    steps=st.lists(
        st.builds(Step, op=st.text(), settings=OBJECTS, results=OBJECTS, at=st.text()), max_size=3
    ).map(tuple),
    data=st.none() | OBJECTS,
    baseline=st.none() | OBJECTS,
)


@settings(deadline=None, max_examples=50)
@given(RECIPES)
def test_a_recipe_survives_json(recipe: Recipe) -> None:
    text = recipe.to_json()
    assert json.loads(text)["format"] in (1, FORMAT)  # see test_settings.py
    assert Recipe.from_json(text, "x") == recipe


def test_json_is_strict() -> None:
    assert finite(1.5) == 1.5 and finite(float("inf")) is None and finite(float("nan")) is None
    recipe = Recipe(
        Source("a:b", {}), InputSpec((8, 8)), (Step("finetune", {}, {"loss": float("inf")}),)
    )
    with pytest.raises(ValueError, match="JSON"):
        recipe.to_json()


def test_a_file_says_where_it_came_from(resnet: Path) -> None:
    recipe, plain = read_recipe(resnet), resnet.parent / "plain.pt"
    assert (
        recipe is not None
        and read_recipe(plain) is None
        and read_recipe(resnet.parent / "nothing") is None
        and read_recipe(resnet.parent) is None
    )
    source = recipe.source
    assert (source.arch, source.arch_args, source.file, source.num_classes) == (
        "cifar:resnet20",
        {"num_classes": 5},
        "plain.pt",
        5,
    )
    assert (
        source.file_bytes == plain.stat().st_size
        and len(source.sha256) == 64
        and source.params == 272_474 - 5 * 65
    )
    convolution, first, projection = (
        16 * 16 * 9 * 32 * 32,
        16 * 32 * 9 * 16 * 16,
        16 * 32 * 16 * 16,
    )  # each stage halves the pixels and doubles the channels
    assert (
        source.macs
        == 3 * 16 * 9 * 32 * 32
        + 6 * convolution
        + 2 * (first + 5 * convolution + projection)
        + 64 * 5
    )
    assert recipe.input == InputSpec((32, 32)) and [step.op for step in recipe.steps] == ["attach"]
    assert recipe.steps[0].settings["sites"] == [
        "layer1.0",
        "layer1.1",
        "layer1.2",
    ] and recipe.steps[0].at.endswith("+00:00")
    assert recipe.with_step(Step("prune", {})).last("attach", "prune") == Step(
        "prune", {}, at=recipe.with_step(Step("prune", {})).steps[-1].at
    )


def test_data_independent_gates_are_stored_off_on(resnet: Path) -> None:
    tensors = load_file(resnet)
    assert tensors["gates.layer1.0.logits"].tolist() == [[pytest.approx(0.1), 4.0]] and tensors[
        "gates.layer1.0.threshold"
    ].tolist() == [0.5]


def test_loading_gives_what_was_written(resnet: Path) -> None:
    network = gatecli.load(str(resnet))
    assert (
        isinstance(network, Network)
        and not network.training
        and list(network.gated_by) == ["layer1.0", "layer1.1", "layer1.2"]
    )
    held = load_file(resnet)
    assert set(network.state_dict()) == set(held) and all(
        torch.equal(tensor, held[name]) for name, tensor in network.state_dict().items()
    )
    assert not any(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])


def test_loading_counts_again_only_where_costs_depend_on_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once traced and once for each structural step; fixed connections need their values too."""
    counts: list[Any] = []
    count_nodes = counting.count_nodes
    monkeypatch.setattr(
        counting, "count_nodes", lambda *args: counts.append(args) or count_nodes(*args)
    )
    gatecli.write(gated(), tmp_path / "gated.safetensors")
    connected = gatecli.attach(
        build("cifar:resnext20_8x4d", {}),
        "gateconnect",
        input_size=(8, 8),
        arch="cifar:resnext20_8x4d",
        fan_in=1,
    ).network
    gatecli.write(connected, tmp_path / "connected.safetensors")
    gatecli.write(gatecli.prune(connected).network, tmp_path / "fixed.safetensors")
    for name, expected in (("gated", 2), ("connected", 2), ("fixed", 4)):
        counts.clear()
        arch = ARCH if name == "gated" else None
        gatecli.load(tmp_path / f"{name}.safetensors", arch=arch)
        assert len(counts) == expected, name


def test_a_loaded_network_outlives_its_file(file: Path) -> None:
    network = gatecli.load(file, arch=ARCH)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with file.open("r+b") as opened:
        opened.write(b"\0" * file.stat().st_size)
    file.unlink()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


# --- what is refused ---


def test_a_newer_format_is_refused(file: Path, tmp_path: Path) -> None:
    def newer(document: dict[str, Any]) -> None:
        document.clear()
        document.update({"format": FORMAT + 1, "everything": "else"})

    text = refused(rewrite(file, tmp_path / "newer", newer))
    assert f"version {FORMAT + 1}" in text and "upgrade" in text


@pytest.mark.parametrize("version", [None, "1", 0, -1, 1.5, True, [], 10**400])
def test_other_versions_are_refused(file: Path, tmp_path: Path, version: object) -> None:
    refused(rewrite(file, tmp_path / "odd", lambda document: document.update(format=version)))


def test_an_unknown_method_is_refused_by_name(file: Path, tmp_path: Path) -> None:
    text = refused(
        rewrite(
            file,
            tmp_path / "x",
            lambda document: document["steps"][0]["settings"].update(method="os.system"),
        )
    )
    assert "`os.system`" in text and "aig-perbatch" in text and "x:" in text


def test_a_callable_is_not_imported_on_the_file_s_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"user_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'mark')!r}).touch()\nfrom networks import"
        " oneblock as make\n"
    )
    monkeypatch.chdir(tmp_path)
    gatecli.write(gated(), tmp_path / "mine")
    theirs = rewrite(
        tmp_path / "mine",
        tmp_path / "theirs",
        lambda document: document["source"].update(arch=f"{name}:make"),
    )
    text = refused(theirs, arch=None)
    assert f"{name}:make" in text and "--arch" in text and "arch=" in text
    assert f"{name}:make" in refused(theirs, arch=ARCH) and ARCH in refused(theirs, arch=ARCH)
    assert not (tmp_path / "mark").exists() and name not in sys.modules
    assert gatecli.load(theirs, arch=f"{name}:make").gated_by and (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "args",
    [
        {"weights": "DEFAULT"},
        {"pretrained": True},
        {"progress": True},
        {"weights_backbone": "DEFAULT"},
    ],
)
def test_nothing_in_a_file_causes_a_download(
    resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: dict[str, Any]
) -> None:
    def download(*_: object, **__: object) -> None:
        raise AssertionError("a download")

    for place in (
        "torch.hub.load_state_dict_from_url",
        "torch.hub.download_url_to_file",
        "urllib.request.urlopen",
    ):
        monkeypatch.setattr(place, download)
    for arch in ("torchvision:resnet18", "cifar:resnet20"):
        text = refused(
            rewrite(
                resnet,
                tmp_path / "x",
                lambda document, arch=arch: document["source"].update(arch=arch, arch_args=args),
            ),
            arch=None,
        )
        assert next(iter(args)) in text


@pytest.mark.parametrize(
    "name", ['a", 0) or __import__("os").abort() or ("', "a b", "a..b", "", "a)"]
)
def test_names_end_up_in_generated_source_so_only_names_are_taken(
    resnet: Path, tmp_path: Path, name: str
) -> None:
    changed = rewrite(
        resnet,
        tmp_path / "x.safetensors",
        lambda document: document["source"].update(names={"conv1": name}),
    )
    assert "expected another name for `conv1`" in refused(changed, arch=None)


@pytest.mark.parametrize(
    "arch",
    [
        "timm:hf-hub:someone/model",
        "torchvision:",
        "resnet18",
        "",
        "torchvision:no_such_net",
        ":",
        "a:b:c",
        "cifar:resnet20:x",
        "http://x.y/z",
    ],
)
def test_odd_architectures_are_refused(resnet: Path, tmp_path: Path, arch: str) -> None:
    refused(
        rewrite(resnet, tmp_path / "x", lambda document: document["source"].update(arch=arch)),
        arch=None,
    )


@pytest.mark.parametrize(
    "count", [10**9, 10_000_000, 2**63, 10**300, 0, -3, 5.0, "5", None, True, [5], {"n": 5}]
)
def test_absurd_class_counts_are_refused_before_any_memory_is_taken(
    resnet: Path, tmp_path: Path, count: object
) -> None:
    text = refused(
        rewrite(
            resnet,
            tmp_path / "x",
            lambda document: document["source"]["arch_args"].update(num_classes=count),
        ),
        arch=None,
    )
    assert "num_classes" in text or "fc.weight" in text or "fc.bias" in text


@pytest.mark.parametrize("hidden", [0, -1, 10**4, 10**12, 10**400, 16.5, "x", None, True, [16]])
def test_absurd_settings_are_refused(file: Path, tmp_path: Path, hidden: object) -> None:
    text = refused(
        rewrite(
            file,
            tmp_path / "x",
            lambda document: document["steps"][0]["settings"]["settings"].update(hidden=hidden),
        )
    )
    assert "hidden" in text


TAMPERED: dict[str, Callable[[dict[str, Any]], object]] = {
    "unknown site": lambda d: d["steps"][0]["settings"].update(sites=["layer9.0"]),
    "site of another type": lambda d: d["steps"][0]["settings"].update(sites=[["add"]]),
    "sites as text": lambda d: d["steps"][0]["settings"].update(sites="add"),
    "a site twice": lambda d: d["steps"][0]["settings"].update(sites=["add", "add"]),
    "attached twice": lambda d: d["steps"].append(d["steps"][0]),
    "unknown setting": lambda d: d["steps"][0]["settings"]["settings"].update(evil=1),
    "prune of an unknown site": (
        lambda d: d["steps"].append(
            {**d["steps"][0], "op": "prune", "settings": {"plan": {"nowhere": []}}}
        )
    ),
    "prune of an ungated site": (
        lambda d: d["steps"].insert(
            0, {**d["steps"][0], "op": "prune", "settings": {"plan": {"add": []}}}
        )
    ),
    "prune without a plan": (
        lambda d: d["steps"].append({**d["steps"][0], "op": "prune", "settings": {}})
    ),
    "prune of everything": (
        lambda d: d["steps"].append(
            {**d["steps"][0], "op": "prune", "settings": {"plan": {"add": []}}}
        )
    ),
    "no steps": lambda d: d.update(steps=[]),
    "steps as an object": lambda d: d.update(steps={}),
    "a step as text": lambda d: d["steps"].append("attach"),
    "no settings": lambda d: d["steps"][0].pop("settings"),
    "another field": lambda d: d["source"].update(evil=1),
    "no source": lambda d: d.pop("source"),
    "names to nowhere": lambda d: d["source"].update(names={"one": "forward"}),
    "names that meet": lambda d: d["source"].update(names={"one": "two"}),
    "names that vanish": lambda d: d["source"].update(names={"one": ""}),
    "names that are taken": lambda d: d["source"].update(names={"one": "graph"}),
    "names that are gatecli's": lambda d: d["source"].update(names={"one": "gates"}),
    "an endless image": lambda d: d["input"].update(size=[10**9, 10**9]),
    "a flat image": lambda d: d["input"].update(size=[8]),
    "a fractional image": lambda d: d["input"].update(size=[8.5, 8]),
    "a true image": lambda d: d["input"].update(size=[True, True]),
    "other channels": lambda d: d["input"].update(channels=4),
    "means that are no numbers": lambda d: d["input"].update(mean=["a"]),
    "infinite means": lambda d: d["input"].update(mean=[float("inf")]),
    "means that are huge": lambda d: d["input"].update(mean=[10**400]),
    "data as text": lambda d: d.update(data="digits"),
    "a list": lambda d: d.update(baseline=[]),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_tampered_recipes_are_refused(file: Path, tmp_path: Path, kind: str) -> None:
    refused(rewrite(file, tmp_path / "x", TAMPERED[kind]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "5",
        "{",
        '{"format": NaN}',
        '{"format": 1}',
        "[" * 100_000,
        '{"format":' + "[" * 100_000,
        "\ud800".encode("utf-8", "replace").decode(),
    ],
)
def test_what_is_no_recipe_is_refused(file: Path, tmp_path: Path, text: str) -> None:
    save_file(load_file(file), tmp_path / "x", {KEY: text})
    refused(tmp_path / "x")


ODD = JSON | st.sampled_from(
    [
        10**30,
        -(10**30),
        10**400,
        "x" * 1000,
        float("inf"),
        float("-inf"),
        float("nan"),
        1e308,
        [[[[[]]]]],
        "../../etc/passwd",
        "os:system",
    ]
)


@settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_change_to_a_recipe_loads_or_gives_one_error(file: Path, data: st.DataObject) -> None:
    def change(document: dict[str, Any]) -> None:
        here: Any = document
        while True:
            places = list(here) if isinstance(here, dict) else list(range(len(here)))
            key = data.draw(st.sampled_from(places))
            inside = here[key]
            if isinstance(inside, (dict, list)) and inside and data.draw(st.integers(0, 3)):
                here = inside
                continue
            if data.draw(st.booleans()):
                here[key] = data.draw(ODD)
            else:
                del here[key]
            return

    tampered = rewrite(file, file.parent / "tampered", change)
    try:
        network = gatecli.load(tampered, arch=ARCH)
    except GatecliError as error:
        assert "\n" not in str(error)
    else:
        assert network.recipe == Recipe.from_json(network.recipe.to_json(), "x")


# --- tensors ---

BROKEN: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda t: t.pop("one.weight"), "lacks `one.weight`"),
    "a missing gate": (lambda t: t.pop("gates.add.threshold"), "lacks `gates.add.threshold`"),
    "a missing counter": (
        lambda t: t.pop("gates.add.norm.num_batches_tracked"),
        "lacks `gates.add.norm.num_batches_tracked`",
    ),
    "extra": (lambda t: t.update(evil=torch.zeros(1)), "has `evil` too much"),
    "misshaped": (
        lambda t: t.update({"fc.weight": torch.zeros(4, 4)}),
        r"`fc.weight`.*\(4, 4\).*\(4, 3\)",
    ),
    "of a shape that broadcasts": (lambda t: t.update({"fc.bias": torch.zeros(1)}), "`fc.bias`"),
    "whole numbers": (
        lambda t: t.update({"fc.weight": torch.zeros(4, 3, dtype=torch.int64)}),
        "`fc.weight`",
    ),
    "truth values": (
        lambda t: t.update({"fc.weight": torch.zeros(4, 3, dtype=torch.bool)}),
        "`fc.weight`",
    ),
    "complex numbers": (
        lambda t: t.update({"fc.weight": torch.zeros(4, 3, dtype=torch.complex64)}),
        "`fc.weight`",
    ),
    "a counter with a fraction": (
        lambda t: t.update({"gates.add.norm.num_batches_tracked": torch.tensor(0.5)}),
        "num_batches_tracked",
    ),
    "none": (lambda t: t.clear(), "lacks"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_tensors_are_refused(file: Path, tmp_path: Path, kind: str) -> None:
    import re

    change, expected = BROKEN[kind]
    text = refused(rewrite(file, tmp_path / "broken", tensors=change))
    assert re.search(expected, text) and "broken" in text


@pytest.mark.parametrize("length", [0, 7, 100, 3000, -1])
def test_cut_files_are_refused(file: Path, tmp_path: Path, length: int) -> None:
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:length])
    refused(tmp_path / "cut.safetensors")


def test_shared_tensors_are_written(tmp_path: Path) -> None:
    model = networks.oneblock()
    model.get_submodule("two").weight = model.get_submodule("one").weight
    network = gatecli.attach(model, "ind-perbatch", input_size=(8, 8), arch=ARCH).network
    gatecli.write(network, tmp_path / "x")
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(network(x), gatecli.load(tmp_path / "x", arch=ARCH)(x))


def test_odd_memory_layouts_are_written(tmp_path: Path) -> None:
    network = gated().to(memory_format=torch.channels_last)
    network.get_submodule("fc").weight = nn.Parameter(torch.randn(9, 3)[2:6])
    gatecli.write(network, tmp_path / "x")
    loaded = gatecli.load(tmp_path / "x", arch=ARCH).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in network.state_dict().items())
    assert (tmp_path / "x").stat().st_size < 6000


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.module = networks.oneblock()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.module(x)
        return logits


def test_names_that_look_like_a_prefix_stay(tmp_path: Path) -> None:
    arch = f"{__name__}:Wrapped"
    network = gatecli.prune(
        gatecli.attach(Wrapped(), "ind-perbatch", input_size=(8, 8), arch=arch).network
    ).network
    gatecli.write(network, tmp_path / "x")
    assert (
        list(gatecli.load(tmp_path / "x", arch=arch).state_dict())
        == list(network.state_dict())
        == list(Wrapped().state_dict())
    )


# --- plain checkpoints ---


def plain(
    path: Path,
    spell: Callable[[str], str] = lambda name: name,
    keep: Callable[[str], bool] = lambda name: True,
) -> dict[str, Tensor]:
    state = {
        spell(name): tensor
        for name, tensor in CASES["cifar-projection"].build().state_dict().items()
        if keep(name)
    }
    torch.save(state, path)
    return state


def test_spellings_are_kept(tmp_path: Path) -> None:
    state = plain(
        tmp_path / "x.pt",
        lambda name: name.replace("downsample", "shortcut").replace("fc.", "linear."),
    )
    network, _ = read(tmp_path / "x.pt")
    assert (
        set(network.state_dict()) == set(state)
        and any("shortcut" in name for name in state)
        and "linear.weight" in state
    )
    result = gatecli.attach(network, "ind-perbatch").network
    assert set(state) < set(result.state_dict())
    with torch.no_grad():
        for site in ("layer2.0", "layer3.1"):
            gate: Any = result.site_gates[site]
            gate.logits.copy_(torch.tensor([[9.0, 0.0]]))
    pruned = gatecli.prune(result).network
    for each in (result, pruned):
        gatecli.write(each, tmp_path / "y")
        loaded, held = gatecli.load(tmp_path / "y"), load_file(tmp_path / "y")
        assert list(loaded.state_dict()) == list(each.state_dict()) and set(held) == set(
            each.state_dict()
        )
        assert all(
            torch.equal(held[name], state[name]) for name in held if not name.startswith("gates.")
        )
    assert any("shortcut" in name for name in pruned.state_dict()) and set(
        pruned.state_dict()
    ) < set(state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_are_taken_off(tmp_path: Path, prefix: str) -> None:
    state = plain(tmp_path / "x.pt", lambda name: prefix + name)
    network, _ = read(tmp_path / "x.pt")
    assert {prefix + name for name in network.state_dict()} == set(state)


def test_counters_may_be_missing(tmp_path: Path) -> None:
    state = plain(tmp_path / "x.pt", keep=lambda name: "num_batches" not in name)
    network, _ = read(tmp_path / "x.pt")
    held = network.state_dict()
    assert set(state) < set(held) and all(held[name] == 0 for name in set(held) - set(state))
    source, x = CASES["cifar-projection"].build(), CASES["cifar-projection"].images(2)
    with torch.no_grad():
        assert torch.equal(source(x), network(x))


def test_a_plain_file_s_tensors_are_checked(tmp_path: Path) -> None:
    plain(tmp_path / "x.pt", keep=lambda name: name != "layer1.0.conv1.weight")
    with pytest.raises(ArchitectureError, match=r"layer1\.0\.conv1\.weight"):
        read(tmp_path / "x.pt")
    state = plain(tmp_path / "x.pt")
    torch.save({**state, "conv1.weight": state["conv1.weight"].to(torch.int8)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"`conv1\.weight`"):
        read(tmp_path / "x.pt")


def test_what_the_user_says_of_images_is_recorded(tmp_path: Path) -> None:
    plain(tmp_path / "x.pt")
    network, _ = read(tmp_path / "x.pt", Reading(input_size=(24, 40), mean=(0.5,), std=(0.25,)))
    assert network.input == InputSpec((24, 40), 3, (0.5,), (0.25,))
    small, _ = read(tmp_path / "x.pt")
    assert network.recipe.source.macs > small.recipe.source.macs * 0.9 and small.input == InputSpec(
        (32, 32)
    )
    gatecli.write(gatecli.attach(network, "ind-perbatch").network, tmp_path / "y")
    assert gatecli.load(tmp_path / "y").input == network.input
    assert gatecli.load(tmp_path / "y", input_size=(16, 16)).input.size == (16, 16)


# --- writing ---


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "place", ["gatecli.checkpoint.saving.save_file", "os.fsync", "pathlib.Path.replace"]
)
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("there", [False, True])
def test_a_failing_save_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException, there: bool
) -> None:
    network, out = gated(), tmp_path / "x.safetensors"
    if there:
        out.write_bytes(b"before")

    def fail(*arguments: Any, **_: object) -> None:
        if place.endswith("save_file"):
            Path(arguments[1]).write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(place, fail)
    with pytest.raises(
        CheckpointError if isinstance(error, OSError) else KeyboardInterrupt
    ) as caught:
        gatecli.write(network, out)
    monkeypatch.undo()
    assert isinstance(error, KeyboardInterrupt) or (
        str(out) in str(caught.value) and "No space left" in str(caught.value)
    )
    assert listing(tmp_path) == ({"x.safetensors": b"before"} if there else {})
    gatecli.write(network, out)
    assert list(listing(tmp_path)) == ["x.safetensors"] and gatecli.load(out, arch=ARCH).gated_by


def test_the_file_appears_at_once(tmp_path: Path) -> None:
    with replacing(tmp_path / "x") as temporary:
        assert temporary.parent == tmp_path and not (tmp_path / "x").exists()
        temporary.write_text("all")
    assert (tmp_path / "x").read_text() == "all" and list(listing(tmp_path)) == ["x"]
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~umask


def test_writing_into_nowhere_is_refused(tmp_path: Path) -> None:
    for out in (tmp_path / "no" / "folder" / "x", tmp_path):
        with pytest.raises(CheckpointError, match="cannot write"):
            gatecli.write(gated(), out)
    assert not listing(tmp_path)


def test_a_network_without_an_architecture_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="arch="):
        gatecli.write(gated(arch=""), tmp_path / "x")
    assert not listing(tmp_path)


def test_an_architecture_that_is_not_the_model_s_is_refused_at_once() -> None:
    with pytest.raises(ArchitectureError, match="resnet18"):
        gated(arch="torchvision:resnet18")
    with pytest.raises(ArchitectureError, match="own"):
        gated(arch="networks:own")


def test_outputs_are_checked_before_any_work(file: Path, tmp_path: Path) -> None:
    check_output(tmp_path / "new", force=False, inputs=[file])
    check_output(tmp_path / "new", force=False, inputs=[tmp_path / "absent"])
    (tmp_path / "there").write_text("x")
    with pytest.raises(CheckpointError, match="--force"):
        check_output(tmp_path / "there", force=False)
    check_output(tmp_path / "there", force=True)
    (tmp_path / "link").symlink_to(file)
    os.link(file, tmp_path / "hard")
    for same in (file, tmp_path / "link", tmp_path / "hard", tmp_path / "." / file.name):
        with pytest.raises(CheckpointError, match="is the input"):
            check_output(same, force=True, inputs=[tmp_path / "there", file])
    with pytest.raises(CheckpointError, match="does not exist"):
        check_output(tmp_path / "no" / "x", force=False)


# --- the package ---


def test_importing_does_not_import_torch() -> None:
    code = (
        "import sys, gatecli, gatecli.cli.app; dir(gatecli); sys.exit(any(name.split('.')[0] in"
        " ('torch', 'torchvision', 'numpy') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_public_names() -> None:
    assert sorted(gatecli.__all__) == sorted(set(gatecli.__all__)) and set(gatecli.__all__) <= set(
        dir(gatecli)
    )
    for name in gatecli.__all__:
        assert getattr(gatecli, name).__module__.startswith("gatecli."), name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = gatecli.no_such_name


@pytest.mark.parametrize(
    ("make", "options", "mean", "said"),
    [
        ("own", {}, IMAGENET_MEAN, ["224x224", "ImageNet's"]),
        ("own", {"input_size": (16, 16)}, IMAGENET_MEAN, ["ImageNet's"]),
        ("own", {"mean": (0.5,) * 3, "std": (0.2,) * 3}, (0.5,) * 3, ["224x224"]),
        ("gray", {}, None, ["224x224"]),
        ("gray", {"input_size": (16, 16), "mean": (0.5,)}, (0.5,), []),
    ],
)
def test_what_is_assumed_of_the_images_of_a_network_of_ones_own(
    tmp_path: Path, make: str, options: dict[str, Any], mean: object, said: list[str]
) -> None:
    torch.save(getattr(networks, make)().state_dict(), tmp_path / "own.pt")
    how = Reading(arch=f"networks:{make}", **options)
    network, notes = read(tmp_path / "own.pt", how)
    assert network.input.mean == mean and len(notes) == len(said)
    assert all(word in note for word, note in zip(said, notes, strict=True))
