"""Exported files: the same logits without gatecli, what is skipped is not computed, and bad
requests.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from commandline import call, refused, run, save_npz, save_source
from environment import environment
from networks import CASES, traced
from PIL import Image
from torch import Tensor, fx, nn

import gatecli
from gatecli.errors import ExportError
from gatecli.exporting.export import export
from gatecli.gates.exit import Exit
from gatecli.network import Network

# Loads a file as a machine without gatecli would, and computes image by image.
WITH_TORCH = """
import sys, torch
file, given, result = sys.argv[1:]
if file.endswith(".pt2"):
    network = torch.export.load(file).module()
else:
    sys.path.insert(0, file.rpartition("/")[0])
    network = __import__(file.rpartition("/")[2].removesuffix(".py")).load()
with torch.no_grad():
    torch.save(torch.cat([network(image[None]) for image in torch.load(given)]), result)
"""
WITH_ONNXRUNTIME = """
import sys, numpy, onnxruntime
file, given, result = sys.argv[1:]
session = onnxruntime.InferenceSession(file)
found = [session.run(["logits"], {"images": image[None]})[0] for image in numpy.load(given)]
numpy.save(result, numpy.concatenate(found))
"""


@pytest.fixture(scope="module")
def pythons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Python that has torch alone, and one that has ONNX Runtime alone."""
    return {
        package: environment(tmp_path_factory.mktemp(package), package)
        for package in ("torch", "onnxruntime")
    }


def undecided(network: Network) -> Network:
    """Gates that really depend on the image, open for about half of them.

    Exits at which about half leave.
    """
    draw = torch.Generator().manual_seed(3)
    images = torch.randn(
        32, network.input.channels, *network.input.size, generator=torch.Generator().manual_seed(9)
    )
    for gate in network.site_gates.values():
        for layer in [part for part in gate.modules() if isinstance(part, nn.Linear)]:
            nn.init.normal_(layer.weight, 0, 0.5, generator=draw)
    network.eval()
    for site in network.site_gates:
        with gatecli.record_gates(network) as record, torch.no_grad():
            network(images)
        odds, gate = record.odds[site][-1].median(), network.site_gates[site]
        gate.threshold.fill_(odds if isinstance(gate, Exit) else odds.sigmoid())
    return network


def gated(case: str, *methods: str) -> Network:
    network = CASES[case].network()
    for method in methods:
        network = gatecli.attach(network, method).network
    return undecided(network)


def alone(file: Path, images: Tensor, pythons: dict[str, Path]) -> Tensor:
    """The file's logits, computed by a Python with torch or ONNX Runtime and nothing else."""
    given, result = file.parent / "images.npy", file.parent / "result.npy"
    if file.suffix == ".onnx":
        package, program = "onnxruntime", WITH_ONNXRUNTIME
        np.save(given, images.numpy())
    else:
        package, program = "torch", WITH_TORCH
        torch.save(images, given)
    done = subprocess.run(
        [pythons[package], "-I", "-c", program, file, given, result], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return torch.from_numpy(np.load(result)) if package == "onnxruntime" else torch.load(result)


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-4 * other.abs().max())


def outputs(path: Path, image: Tensor) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(str(path))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": image.numpy()}), strict=True))


# --- every kind of network, without gatecli ---


@pytest.mark.parametrize(
    ("package", "lacks"), [("torch", "onnxruntime, numpy"), ("onnxruntime", "torch")]
)
def test_alone_is_alone(package: str, lacks: str, pythons: dict[str, Path]) -> None:
    for name in ("gatecli", "torchvision", "safetensors", *lacks.split(", ")):
        done = subprocess.run(
            [pythons[package], "-I", "-c", f"import {name}"], capture_output=True, text=True
        )
        assert done.returncode == 1 and f"No module named '{name}'" in done.stderr


STACK = ("own", "aig-perbatch", "dgate")
DYNAMIC = [
    pytest.param(("dense", "aig-perbatch"), marks=pytest.mark.slow, id="dense"),
    pytest.param(("tokens", "aig-perbatch"), id="tokens"),
    pytest.param(STACK, id="own with exits"),
]


@pytest.mark.parametrize("case", DYNAMIC)
@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_dynamic(
    case: tuple[str, ...], format: str, pythons: dict[str, Path], tmp_path: Path
) -> None:
    network, images = gated(*case), CASES[case[0]].images(6, seed=4)
    done = export(network, tmp_path / f"file.{format}", format, images=images)
    assert done.dynamic and done.batch == 1 and done.max_difference <= 1e-4 and not done.masked
    if case == STACK:
        with torch.no_grad():
            assert close(alone(done.out, images, pythons), network(images))


@pytest.mark.parametrize("format", ["onnx", "pt2"])
@pytest.mark.parametrize(
    "other",
    [
        ("cgnet", {"include": ["units.1.*"]}),
        ("gaternet", {}),
        ("dgate", {}),
        ("aig-pergate", {"granularity": 4, "include": ["units.1"]}),
    ],
    ids=lambda other: other[0],
)
def test_whole_branches_are_skipped_beside_other_gates(
    other: tuple[str, dict[str, Any]], format: str, tmp_path: Path
) -> None:
    network, images = CASES["own"].network(), CASES["own"].images(6, seed=4)
    first: dict[str, Any] = (
        {"granularity": 4, "exclude": ["units.2.body"]}
        if other[0] == "dgate"
        else {"include": ["units.0", "units.2.body"]}
    )
    for method, settings in [("aig-perbatch", first), other]:
        network = gatecli.attach(network, method, **settings).network
    draw = torch.Generator().manual_seed(5)
    for parameter in [
        each for name, each in network.named_parameters() if name.startswith("gater.")
    ]:
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
    network = undecided(network)
    done = export(network, tmp_path / f"file.{format}", format, images=images)
    assert done.dynamic and done.max_difference <= 1e-4
    assert sorted(done.masked) == sorted(
        site for site, gate in network.site_gates.items() if gate.units > 1
    )


@pytest.mark.parametrize("method", ["cgnet", "gaternet"])
def test_gates_that_save_nothing_in_a_file_are_named(method: str, tmp_path: Path) -> None:
    network = gatecli.attach(CASES["own"].network(), method).network.eval()
    done = export(network, tmp_path / "file.onnx", images=CASES["own"].images(3))
    assert done.masked == list(network.site_gates) and not done.dynamic


@pytest.mark.parametrize("format", ["onnx", "pt2", "weights"])
@pytest.mark.parametrize("case", ["tokens"])
def test_static_any_batch_alone(
    case: str, format: str, pythons: dict[str, Path], tmp_path: Path
) -> None:
    network, images = CASES[case].network().eval(), CASES[case].images(3)
    done = export(network, tmp_path / f"a-file.{format}", format, images=images)
    assert not done.dynamic and done.batch is None
    with torch.no_grad():
        assert close(alone(done.files[-1], images, pythons), network(images))


def test_all_computed_takes_batches(tmp_path: Path) -> None:
    network, images = gated("own", "aig-perbatch", "dgate"), CASES["own"].images(5)
    done = export(network, tmp_path / "file.onnx", all_computed=True, decisions=True, images=images)
    found = outputs(done.out, images)
    with torch.no_grad(), gatecli.record_gates(network):
        logits, taken = network(images, return_exits=True)
    assert (
        not done.dynamic
        and close(torch.from_numpy(found["logits"]), logits)
        and found["exit"].tolist() == taken.tolist()
    )
    for row, image in enumerate(images.split(1)):
        with torch.no_grad(), gatecli.record_gates(network) as record:
            network(image)
        assert all(
            found[f"gate.{site}"][row].tolist()
            == record.latest().get(site, torch.zeros(1, 1))[0].tolist()
            for site in network.site_gates
            if site not in network.site_exits
        )
    assert (
        export(network, tmp_path / "file.pt2", "pt2", all_computed=True, images=images).batch
        is None
    )


# --- what is skipped is not computed ---


def test_weights_are_in_the_branches(tmp_path: Path) -> None:
    network = gated("cifar-projection", "aig-perbatch")
    export(network, tmp_path / "file.onnx", images=CASES["cifar-projection"].images(2))
    model = onnx.load(tmp_path / "file.onnx")
    ifs = [node for node in model.graph.node if node.op_type == "If"]
    inside = {
        name: [
            node
            for branch in ifs
            for attribute in branch.attribute
            if attribute.name == name
            for node in attribute.g.node
        ]
        for name in ("then_branch", "else_branch")
    }
    convs = {
        name: [node for node in nodes if node.op_type == "Conv"] for name, nodes in inside.items()
    }
    assert (
        len(ifs) == 9 and len(convs["then_branch"]) == 20 and len(convs["else_branch"]) == 2
    )  # two projections, needed in any case
    assert sum(node.op_type == "Conv" for node in model.graph.node) == 1  # the stem
    for branch in ifs:
        for attribute in branch.attribute:
            own = {weight.name for weight in attribute.g.initializer}
            assert all(node.input[1] in own for node in attribute.g.node if node.op_type == "Conv")


def test_conditions_are_scalars(tmp_path: Path) -> None:
    """Some runtimes refuse an `If` whose condition has dimensions."""
    export(gated("cifar-projection", "aig-perbatch"), tmp_path / "file.onnx")
    graph = onnx.load(tmp_path / "file.onnx").graph
    makers = {name: node for node in graph.node for name in node.output}
    conditions = [node.input[0] for node in graph.node if node.op_type == "If"]
    assert conditions and {makers[name].op_type for name in conditions} == {"Squeeze"}


def test_a_branch_stays_in_its_layout(tmp_path: Path) -> None:
    """What ONNX Runtime can fuse or compute in its own layout lies within the branch.

    The addition of a value that is not plain, and the means that the next gate takes.
    """
    network = gated("cifar-projection", "aig-perbatch")
    export(network, tmp_path / "file.onnx", images=CASES["cifar-projection"].images(2))
    model = onnx.load(tmp_path / "file.onnx")
    for branch in [node for node in model.graph.node if node.op_type == "If"]:
        run = next(attribute.g for attribute in branch.attribute if attribute.name == "then_branch")
        made = {name for node in run.node for name in node.output}
        (add,) = (node for node in run.node if node.op_type == "Add")
        assert (
            set(add.input) <= made
            and len(branch.output) == 2
            and any(node.op_type == "GlobalAveragePool" for node in run.node)
        )
    everything = [node for graph in walk(model.graph) for node in graph.node]
    reduced = [node for node in everything if node.op_type.startswith("Reduce")]
    assert len(reduced) == 1  # of what comes before the first gate
    assert not any(node.op_type == "Mul" for node in everything)  # the gates' products do that


def test_a_closed_branch_is_not_run(tmp_path: Path) -> None:
    """A branch whose weights are NaN spoils the logits exactly where its gate is open and nobody
    has left before.
    """
    network, images = gated("own", "aig-perbatch", "dgate"), CASES["own"].images(10, seed=5)
    export(network, tmp_path / "file.onnx", decisions=True, images=images)
    sites, seen = [site for site in network.site_gates if site not in network.site_exits], set()
    for number, site in enumerate(sites):
        model = onnx.load(tmp_path / "file.onnx")
        branch = [
            part
            for part in walk(model.graph)
            if part.name.startswith("run") and not any(node.op_type == "If" for node in part.node)
        ][number]
        for weight in branch.initializer:
            if weight.data_type == onnx.TensorProto.FLOAT:
                weight.CopyFrom(
                    onnx.numpy_helper.from_array(
                        np.full_like(onnx.numpy_helper.to_array(weight), np.nan), weight.name
                    )
                )
        onnx.save(model, tmp_path / "nan.onnx")
        for image in images.split(1):
            ran = bool(outputs(tmp_path / "file.onnx", image)[f"gate.{site}"].any())
            seen.add((site, ran))
            assert (
                bool(
                    torch.from_numpy(outputs(tmp_path / "nan.onnx", image)["logits"]).isnan().any()
                )
                == ran
            )
    assert len(seen) > len(sites)


def walk(graph: Any) -> Any:
    """The graph and those within it, in order."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from walk(attribute.g)


def test_decisions_and_exits_are_told(tmp_path: Path) -> None:
    network, images = gated("own", "aig-perbatch", "dgate"), CASES["own"].images(8, seed=6)
    export(
        network,
        tmp_path / "file.onnx",
        decisions=True,
        images=images,
        classes=["a", "b", "c", "d", "e"],
    )
    exits = set()
    for image in images.split(1):
        with torch.no_grad(), gatecli.record_gates(network) as record:
            _, taken = network(image, return_exits=True)
        found = outputs(tmp_path / "file.onnx", image)
        assert found["exit"].tolist() == taken.tolist()
        exits |= set(taken.tolist())
        assert all(
            found[f"gate.{site}"].tolist() == record.latest().get(site, torch.zeros(1, 1)).tolist()
            for site in network.site_gates
            if site not in network.site_exits
        )
    assert exits == {0, 1}
    facts = json.loads(
        next(
            entry.value
            for entry in onnx.load(tmp_path / "file.onnx").metadata_props
            if entry.key == "gatecli"
        )
    )
    assert (
        facts["classes"] == ["a", "b", "c", "d", "e"]
        and facts["batch"] == 1
        and facts["exits"] == list(network.site_exits)
    )


def test_gates_that_do_not_look_are_decided(tmp_path: Path) -> None:
    network = gatecli.attach(CASES["own"].network(), "ind-perbatch").network.eval()
    with torch.no_grad():
        network.site_gates["units.0"].logits.copy_(torch.tensor([[4.0, 0.1]]))
    done = export(network, tmp_path / "file.onnx")
    kinds = [node.op_type for node in onnx.load(done.out).graph.node]
    assert (
        not done.dynamic and kinds.count("Conv") == 6 and "If" not in kinds and network.gated_by
    )  # the network itself is as it was


def test_pruned_groups_as_source(tmp_path: Path) -> None:
    """What has lost some of its filters widens again, in the generated source as well."""
    network = gatecli.attach(
        CASES["own"].network(), "ind-perbatch", granularity=4, exclude=["units.2.body"]
    ).network.eval()
    with torch.no_grad():
        network.site_gates["units.1"].logits[1] = torch.tensor([4.0, 0.1])
    pruned = gatecli.prune(network).network.eval()
    images = CASES["own"].images(3)
    assert (
        export(pruned, tmp_path / "file.weights", "weights", images=images).max_difference <= 1e-5
    )
    text = (tmp_path / "file.py").read_text(encoding="utf-8")
    assert "gatecli import" not in text and "import gatecli" not in text and "def widen" in text


# --- the command line ---


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_source(tmp_path / "r20.pt")
    save_npz(tmp_path / "data.npz")
    Image.new("RGB", (20, 14), (200, 30, 90)).save(tmp_path / "one.png")
    return tmp_path


def test_export_and_run(here: Path) -> None:
    call(
        "attach", "r20.pt", "--method", "aig-perbatch", "--input-size", 8, "--out", "g.safetensors"
    )
    done = call("export", "--data", "npz:data.npz", "--decisions")
    assert (
        done["out"] == "g.onnx"
        and done["dynamic"]
        and done["real_images"]
        and done["max_logit_change"] <= 1e-4
    )
    assert (here / ".gatecli" / "current").read_text(
        encoding="utf-8"
    ).strip() == "g.safetensors"  # an export is no checkpoint
    native = call("run", "g.safetensors", "one.png", "--data", "npz:data.npz", "--repeats", 1)[
        "predictions"
    ][0]
    file = call("run", "g.onnx", "one.png", "--repeats", 1)["predictions"][0]
    assert [each["class"] for each in native["classes"]] == [
        each["class"] for each in file["classes"]
    ] and native["skipped"] == file["skipped"] == []
    assert abs(native["classes"][0]["probability"] - file["classes"][0]["probability"]) < 1e-4
    assert "one.png" in run("run", "g.onnx", "one.png").out


def test_bad_requests(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("attach", "r20.pt", "--method", "dgate", "--input-size", 8, "--out", "e.safetensors")
    refused(["export", "r20.pt", "--format", "tflite"], "--format")
    refused(["export", "e.safetensors"], "not been calibrated")
    refused(["export", "r20.pt", "--input-size", 8, "--opset", 7], "--opset")
    refused(["run", "r20.pt", "two.png"], "two.png", "readable image")
    (here / "broken.onnx").write_bytes(b"no")
    refused(["run", "broken.onnx", "one.png"], "cannot read")
    assert call("export", "e.safetensors", "--force", "--out", "e.onnx")["dynamic"] is False
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "gatecli.exporting.onnx.packages.find_spec",
        lambda name: None if name.startswith("onnx") else find(name),
    )
    refused(["export", "r20.pt", "--input-size", 8], "gatecli[onnx]")
    assert not (here / "r20.onnx").exists()


class Sorting(nn.Module):
    """An operation that ONNX does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.special.bessel_j0(self.conv(x)).mean((2, 3)))


def test_what_will_not_convert_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"bessel_j0"):
        export(traced(Sorting(), (8, 8)).eval(), tmp_path / "file.onnx")
    assert not list(tmp_path.iterdir())


@fx.wrap
def leaky(x: Tensor, slope: float = 0.2) -> Tensor:
    return torch.where(x > 0, x, slope * x)


class Leaking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = (
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc((leaky(self.conv(x)) + x).mean((2, 3)))


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_functions_that_tracing_keeps_whole_may_stand_in_branches(
    format: str, tmp_path: Path
) -> None:
    network = gatecli.attach(traced(Leaking(), (8, 8)), "aig-perbatch").network.eval()
    assert leaky in {node.target for node in network.graph.nodes}
    assert export(network, tmp_path / f"file.{format}", format).dynamic
    assert leaky.__defaults__ == (0.2,)


class Shaping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        n, c = x.shape[:2]
        return self.fc(x.reshape(n, c, -1).mean(2))


def test_weights_of_a_network_that_reads_shapes(tmp_path: Path) -> None:
    done = export(traced(Shaping(), (8, 8)).eval(), tmp_path / "file.safetensors", "weights")
    assert done.max_difference <= 1e-6 and ".shape" in done.files[-1].read_text(encoding="utf-8")


def test_weights_need_a_static_network(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="prune first"):
        export(gated("own", "aig-perbatch"), tmp_path / "file.safetensors", "weights")
