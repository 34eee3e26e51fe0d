"""gatecli report: the page, what it tells, and what it says where there is nothing to tell."""

from __future__ import annotations

import itertools
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import call, contents, edit, refused, run, save_source
from PIL import Image
from webpage import Page

import gatecli
from gatecli.data import batches
from gatecli.report.fates import ALWAYS, GONE, fates
from gatecli.report.looking import END, Look, look
from gatecli.report.sections import PARTS
from gatecli.stages import fit
from gatecli.stages.subject import subject_of
from gatecli.traced.recipe import InputSpec
from gatecli.training.curves import EPOCHS, curves
from gatecli.words import gmacs, percent

NAMES = ("<i>one&amp;", "<script>alert(1)<script>", "$two_{")  # folders' names, so no slash
SIDE = 8
STACK, GATED, SOURCE = "stack.safetensors", "gated.safetensors", "r20.pt"


def save_folder(root: Path) -> None:
    """Image folders whose classes have names that are markup: each is bright in its own place."""
    chance = np.random.RandomState(0)
    for split, count in (("train", 12), ("val", 7)):
        for label, name in enumerate(NAMES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = chance.randint(0, 90, (SIDE, SIDE, 3)).astype(np.uint8)
                pixels[2 * label : 2 * label + 2] += 150
                Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source, gates on it, exits on these, calibrated, and the data."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_folder(folder / "data")
        save_source(Path(SOURCE), num_classes=len(NAMES))
        data = ("--data", f"imagefolder:{folder / 'data'}", "--batch-size", 12)
        call("attach", SOURCE, "--method", "aig-perbatch", "--input-size", SIDE)
        call("finetune", *data, "--epochs", 2, "--out", GATED)
        call("attach", GATED, "--method", "dgate")
        call("finetune", *data, "--epochs", 1)
        call("calibrate", *data, "--thresholds", "exit1=0,exit2=0.1", "--out", STACK)
    return folder


@pytest.fixture
def place(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


@pytest.fixture(scope="module")
def told(made: Path) -> Iterator[tuple[dict[str, Any], Page]]:
    """The stack's report: its JSON, and the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        found = call("report", STACK, "--images", 2)
        yield found, Page((made / "report.html").read_text(encoding="utf-8"))


def check_page(page: Page) -> None:
    """Raise AssertionError unless a page stands alone and can be walked through without eyes."""
    ids = [each["id"] for _, each in page.elements if "id" in each]
    assert len(ids) == len(set(ids))
    for tag, each in page.elements:
        for name in ("href", "src", "xlink:href", "action", "data"):
            address = each.get(name, "#content")
            assert address.startswith("data:image/png;base64,") or address[1:] in ids, (tag, each)
        for name in ("aria-labelledby", "aria-describedby"):
            assert set(each.get(name, "").split()) <= set(ids), (tag, each)
        assert not [name for name in each if name.startswith("on")], each
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    used = re.findall(r"url\(([^)]*)\)", page.text)
    assert all(address[1:] in ids for address in used)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table"))
    assert {each.get("scope") for each in page.all("th")} == {"row", "col"}
    assert all(each["alt"] for each in page.all("img"))
    assert all(each["role"] == "img" for each in page.all("svg"))
    assert page.all("html") == [{"lang": "en"}]


def test_the_page_stands_alone(told: tuple[dict[str, Any], Page], made: Path) -> None:
    found, page = told
    check_page(page)
    size = (made / "report.html").stat().st_size
    assert found["bytes"] == size < 3e6
    drawn = {"summary", "history", "sites", "frontier", "exits", "classes", "training", "times"}
    assert drawn <= set(found["sections"]) <= {part.key for part in PARTS}
    assert {each["id"] for each in page.all("h2")} >= set(found["sections"])


def test_names_that_are_markup_are_text(told: tuple[dict[str, Any], Page]) -> None:
    _, page = told
    assert all(name in page.prose for name in NAMES)
    assert not page.all("i") and not page.all("script")


def test_figures_are_those_of_the_recipe(told: tuple[dict[str, Any], Page], made: Path) -> None:
    _, page = told
    _, recipe = contents(made / STACK)
    head, source, after = page.cells["What was made of the source"]
    last = recipe["steps"][-1]["results"]
    columns = {name: place for place, name in enumerate(head)}
    assert source[columns["top-1"]] == percent(recipe["baseline"]["top1"])
    assert source[columns["GMACs"]] == gmacs(recipe["source"]["macs"])
    assert after[columns["top-1"]] == percent(last["top1"])
    assert after[columns["GMACs"]] == gmacs(last["macs_expected"])
    assert float(after[columns["ms, native"]]) > 0
    steps = page.cells["Steps, in order"][1:]
    assert [row[1] for row in steps] == [step["op"] for step in recipe["steps"]]
    facts = dict(page.cells["The file and its source"])
    assert facts["SHA-256 of the source"] == recipe["source"]["sha256"]


def test_who_leaves_where_against_single_images(
    told: tuple[dict[str, Any], Page], place: Path
) -> None:
    """The counts of the page are those of asking the network image by image."""
    _, page = told
    network = gatecli.load(STACK)
    data = fit.open_data(network, None)
    left, right = dict.fromkeys([*network.site_exits, END], 0), 0
    for x, y in batches(data.splits["val"], input=network.input, batch_size=1):
        with gatecli.record_gates(network.eval()) as record, torch.no_grad():
            answer = network(x).argmax(1)
        asked = record.latest()  # of the exits that the image came to
        taken = [site for site in network.site_exits if site in asked and asked[site].any()]
        left[taken[0] if taken else END] += 1
        right += int(answer == y)
    rows = {row[0]: row[1] for row in page.cells["The same in numbers"][1:] if row[0] in left}
    assert {site: int(rows[site]) for site in left} == left
    seen = look(network, data, Look())
    assert seen.top1 == pytest.approx(100 * right / seen.images)


def test_the_sample_is_drawn_and_counted(place: Path) -> None:
    network = gatecli.load(STACK)
    data = fit.open_data(network, None)
    seen = look(network, data, Look(images=9, examples=1, batch_size=4))
    assert (seen.images, seen.total) == (9, 21)
    assert sum(each.images for each in seen.leaving) == 9
    assert all(len(each.examples) == min(1, each.images) for each in seen.leaving)
    assert seen.use is not None and len(set(seen.use.labels.tolist())) > 1


def test_examples_are_the_images_themselves(place: Path) -> None:
    """What is shown of a class is, but for rounding, one of its files."""
    network = gatecli.load(STACK)
    data = fit.open_data(network, None)
    seen = look(network, data, Look(examples=21))
    shown = [example for each in seen.leaving for example in each.examples]
    assert len(shown) == 21
    plain = InputSpec((SIDE, SIDE), mean=(0.0,), std=(1.0,), resize=network.input.resize)
    passes = batches(data.splits["val"], input=plain, batch_size=1)
    files = [(x[0], int(y)) for x, y in passes]
    for example in shown:
        apart = [(x - example.pixels / 255).abs().max() for x, y in files if y == example.label]
        assert min(apart) < 0.003


def test_data_that_has_gone(place: Path, tmp_path: Path) -> None:
    shutil.move("data", tmp_path / "data")
    try:
        done = run("report", STACK, "--out", tmp_path / "gone.html", "--runtime", "none")
        assert done.code == 0 and "made without images" in done.err
        refused(
            ["report", STACK, "--out", "x.html", "--data", f"imagefolder:{place / 'data'}"], "data"
        )
    finally:
        shutil.move(tmp_path / "data", "data")
    page = Page((tmp_path / "gone.html").read_text(encoding="utf-8"))
    check_page(page)
    assert "could not be used" in page.prose and "Not in this report" in page.prose
    assert {"exits", "training"} <= {each.get("id") for each in page.all("h2")}
    assert "gatecli report stack.safetensors --data DATA" in page.prose


def test_a_network_without_steps(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "plain.html"
    found = call("report", SOURCE, "--input-size", SIDE, "--out", out, "--runtime", "none")
    assert found["sections"] == ["summary", "history", "sites", "provenance"]
    page = Page(out.read_text(encoding="utf-8"))
    check_page(page)
    assert "No step is recorded" in page.prose


def test_side_by_side(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.html"
    found = call("report", GATED, STACK, "--out", out, "--runtime", "none", "--sample", 6)
    page = Page(out.read_text(encoding="utf-8"))
    check_page(page)
    assert found["checkpoints"] == [GATED, STACK]
    rows = [row[0] for row in page.cells["What was made of the source"]]
    assert rows == ["network", f"source: {SOURCE}", GATED, STACK]
    assert page.prose.count(f"Sites of {GATED}") == page.prose.count(f"Sites of {STACK}") == 2


def test_bad_input(place: Path) -> None:
    Path("text.safetensors").write_text("no checkpoint")
    try:
        refused("report text.safetensors --out x.html", "text.safetensors")
        refused(f"report {STACK} --out {STACK}", "is the input")
        refused(f"report {STACK} --out {GATED}", "--force")
        refused(f"report {STACK} --out x.html --runtime nowhere", "native", "nowhere")
        refused(f"report {STACK} --out x.html --images -1", "--images")
        refused(f"report {STACK} --out x.html --sample 0", "--sample")
        refused(["report", STACK, "--out", "x.html", "--split", "best"], "best")
        edit(Path(STACK), Path("text.safetensors"), recipe=spoil)
        refused("report text.safetensors --out x.html --runtime none", "damaged")
    finally:
        Path("text.safetensors").unlink()


def spoil(recipe: dict[str, Any]) -> None:
    recipe["steps"][-1]["results"]["top1"] = "all"


def test_without_the_extra(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    refused(f"report {STACK} --out x.html", "jinja2", "gatecli[report]")


def test_what_is_gone_stands_where_it_was() -> None:
    from networks import CASES

    network = gatecli.attach(CASES["cifar-projection"].network(), "ind-perbatch").network
    names = list(network.gated_by)
    with torch.no_grad():
        for number, gate in enumerate(network.site_gates.values()):
            gate.logits[:, 1] = -5.0 if number in (0, 4) else 5.0
    smaller = gatecli.prune(network, threshold=0.5).network
    found = fates(subject_of("pruned", smaller, 0, {}))
    assert [fate.name for fate in found] == names
    gone = [fate.name for fate in found if fate.state == GONE]
    assert gone == [name for name in names if name not in smaller.sites]
    assert names[4] in gone


def test_connections_that_stay_are_not_gone() -> None:
    golden = Path(__file__).parent / "golden" / "gateconnect.pruned.safetensors"
    found = fates(subject_of("pruned", gatecli.load(golden, arch="golden.nets:resnext"), 0, {}))
    assert {fate.state for fate in found} <= {ALWAYS, GONE}
    kept = [fate for fate in found if fate.state == ALWAYS and fate.before]
    assert kept and all(fate.units for fate in kept)


def test_curves_keep_the_ends() -> None:
    rows = [{"epoch": epoch, "val_top1": 1.0, "rates": {"a": 1.0}} for epoch in range(1, 1001)]
    kept = curves(rows)
    assert len(kept) == EPOCHS and (kept[0]["epoch"], kept[-1]["epoch"]) == (1, 1000)
    assert set(kept[0]) == {"epoch", "val_top1"}
    assert [row["epoch"] for row in curves(rows[:3])] == [1, 2, 3] and curves([]) == []
