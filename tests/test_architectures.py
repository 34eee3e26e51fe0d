"""Building networks by name, and finding them from their tensors."""

from __future__ import annotations

import builtins
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gatecli.architectures.build import (
    build,
    build_pretrained,
    build_skeleton,
    check_args,
    is_callable_name,
    parse_arch_args,
    switches,
)
from gatecli.architectures.comparison import spell
from gatecli.architectures.generate import listed
from gatecli.architectures.identify import found_for, identify
from gatecli.architectures.table import Row, make_row, pack, table, unpack
from gatecli.errors import ArchitectureError, SettingError

ROWS = list(listed())
Shapes = dict[str, tuple[int, ...]]


def shapes_of(arch: str, args: Mapping[str, Any]) -> Shapes:
    """Every tensor of the built network, BatchNorm's counters too; takes no memory."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in build_skeleton(arch, args).state_dict().items()
    }


def respell(shapes: Shapes, **names: str) -> Shapes:
    return {spell(name, names): shape for name, shape in shapes.items()}


def error(call: Any, *args: Any) -> str:
    with pytest.raises(ArchitectureError) as caught:
        call(*args)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module in the current folder.

    Returns its name, a new one each time because imports are remembered.
    """
    name = f"user_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n"
        "def free(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(8, num_classes))\n"
        "def usual(num_classes=10): return nn.Sequential(nn.Flatten(), nn.Linear(8, num_classes))\n"
        "def fixed(width=4): return nn.Linear(width, 3)\n"
        "def wide(num_classes): return nn.Linear(8, 2 * num_classes)\n"
        "def fails(): raise ValueError('two\\nlines')\n"
        "def number(): return 3\n"
        "constant = 5\n"
        "class Nets:\n    small = staticmethod(fixed)\n"
    )
    monkeypatch.chdir(tmp_path)
    return name


# --- the table ---


@pytest.mark.parametrize(("arch", "args"), ROWS, ids=[f"{arch} {args}" for arch, args in ROWS])
def test_every_row_is_found_from_its_tensors(arch: str, args: dict[str, Any]) -> None:
    channels = "channels" if arch.startswith("cifar") else "in_channels"
    full = {**args, "num_classes": 37, channels: 1}
    found = identify(shapes_of(arch, full))
    assert (found.arch, found.args, found.names) == (arch, full, {})
    assert (found.mean, found.std) == (None, None)  # one channel: ImageNet's cannot be meant


def test_three_channels_are_not_mentioned_and_bring_the_official_input() -> None:
    found = identify(shapes_of("torchvision:resnet18", {}))
    assert found.args == {"num_classes": 1000}
    assert (found.input_size, found.mean, found.std) == (
        224,
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    )
    assert len(found.notes) == 1 and "maxpool=false" in found.notes[0]
    small = identify(shapes_of("cifar:resnet20", {}))
    assert (small.input_size, small.mean, small.std) == (32, None, None)


def test_every_torchvision_classifier_is_in_the_table() -> None:
    from torchvision import models

    assert {f"torchvision:{name}" for name in models.list_models(module=models)} <= {
        row.arch for row in table()
    }


def test_rows_are_distinct() -> None:
    assert len(table()) == len(ROWS) >= 80
    assert len({tuple(sorted(row.tensors.items())) for row in table()}) == len(ROWS)


@pytest.mark.parametrize(
    ("arch", "args"),
    [
        ("torchvision:resnext50_32x4d", {}),
        ("torchvision:resnet18", {"stem": "cifar"}),
        ("cifar:resnet56", {"shortcut": "pad"}),
    ],
)
def test_the_shipped_table_is_what_would_be_generated(arch: str, args: dict[str, Any]) -> None:
    assert make_row(arch, args) in table()


def test_packing_is_exact_and_deterministic() -> None:
    rows = table()[:3]
    assert unpack(pack(rows)) == rows
    assert pack(rows) == pack(rows)


def test_other_torchvision_networks_fit_the_table() -> None:
    row = make_row("torchvision:mobilenet_v3_small", {})
    assert row.tensors["classifier.3.weight"] == (-1, 1024)
    assert row.tensors["features.0.0.weight"] == (16, -2, 3, 3)
    assert row.family == ""
    assert unpack(pack([row])) == (row,)


# --- finding ---


def test_kuangliu_spelling() -> None:
    theirs = respell(
        shapes_of("torchvision:resnet18", {"stem": "cifar", "num_classes": 10}),
        downsample="shortcut",
        fc="linear",
    )
    found = identify(theirs)
    assert (found.arch, found.args) == (
        "torchvision:resnet18",
        {"stem": "cifar", "num_classes": 10},
    )
    assert found.names == {"downsample": "shortcut", "fc": "linear"}
    assert respell(shapes_of(found.arch, found.args), **found.names) == theirs
    assert len(found.notes) == 1 and "maxpool=true" in found.notes[0]


def test_akamaster_spelling() -> None:
    found = identify(respell(shapes_of("cifar:resnet110", {"shortcut": "pad"}), fc="linear"))
    assert (found.arch, found.args, found.names) == (
        "cifar:resnet110",
        {"shortcut": "pad", "num_classes": 10},
        {"fc": "linear"},
    )
    assert len(found.notes) == 1 and "pad=end" in found.notes[0]


def test_classifier_for_fc_and_bottleneck_note() -> None:
    found = identify(respell(shapes_of("torchvision:resnet50", {}), fc="classifier"))
    assert (found.arch, found.names) == ("torchvision:resnet50", {"fc": "classifier"})
    assert "stride_on=conv1" in found.notes[0]


def test_counters_may_be_missing() -> None:
    shapes = {
        name: shape
        for name, shape in shapes_of("cifar:resnet20", {}).items()
        if not name.endswith("num_batches_tracked")
    }
    assert identify(shapes).arch == "cifar:resnet20"


def test_a_near_miss_names_the_nearest_and_the_first_difference() -> None:
    shapes = respell(
        {
            **shapes_of("torchvision:resnet18", {"num_classes": 10}),
            "layer1.0.conv2.weight": (64, 64, 5, 5),
        },
        fc="linear",
    )
    text = error(identify, shapes)
    assert (
        "torchvision:resnet18 (1 tensor differs, first `layer1.0.conv2.weight`: expected (64, 64,"
        " 3, 3) but got (64, 64, 5, 5))" in text
    )
    assert text.count("first `") == 3
    assert "--arch torchvision:NAME" in text and "--arch package.module:callable" in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"fc.bias": None}, "`fc.bias`: expected (N,) but got no such tensor"),
        ({"head.weight": (3, 4)}, "`head.weight`: expected no such tensor but got (3, 4)"),
        (
            {"fc.bias": (11,)},
            "`fc.bias`: expected (N,) but got (11,)",
        ),  # not fc.weight's class count
    ],
)
def test_one_tensor_more_less_or_odd(change: dict[str, Any], expected: str) -> None:
    shapes = {**shapes_of("cifar:resnet20", {}), **change}
    text = error(identify, {name: shape for name, shape in shapes.items() if shape is not None})
    assert f"cifar:resnet20 (1 tensor differs, first {expected})" in text


def test_nothing_alike_still_lists_three() -> None:
    assert error(identify, {"conv.weight": (3, 3)}).count("tensors differ") == 3
    assert error(identify, {}).count("tensors differ") == 3


def test_several_that_fit_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(row for row in table() if row.arch == "cifar:resnet20")
    twin = Row(**{**vars(row), "arch": "torchvision:twin"})
    monkeypatch.setattr("gatecli.architectures.identify.table", lambda: (row, twin))
    text = error(identify, shapes_of("cifar:resnet20", {}))
    assert "several" in text and "cifar:resnet20, torchvision:twin" in text and "--arch" in text


def test_finding_does_not_build(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = shapes_of("torchvision:resnet152", {})
    monkeypatch.setattr(
        "gatecli.architectures.shapes.build_skeleton", lambda *_: pytest.fail("a network was built")
    )
    table.cache_clear()
    assert identify(shapes).arch == "torchvision:resnet152"


def test_image_size_of_a_vit() -> None:
    shapes = shapes_of("torchvision:vit_b_32", {"image_size": 96, "num_classes": 3})
    found = identify(shapes)
    assert (found.args, found.input_size) == ({"image_size": 96, "num_classes": 3}, 96)
    told = found_for("torchvision:vit_b_32", {"image_size": 96}, shapes)
    assert told == replace(found, assumed=())
    assert "(1, 17, 768) but got (1, 10, 768)" in error(
        found_for, "torchvision:vit_b_32", {"image_size": 128}, shapes
    )


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads(name: str) -> None:
    for args in ({}, {"aux_logits": False}):
        shapes = shapes_of(f"torchvision:{name}", args)
        for found in (identify(shapes), found_for(f"torchvision:{name}", {}, shapes)):
            assert found.args == {**args, "num_classes": 1000}
            assert "transform_input=true" in found.notes[0]
    assert found_for(f"torchvision:{name}", {"transform_input": True}, shapes).notes == ()
    assert (
        "AuxLogits" in error(found_for, "torchvision:inception_v3", {"aux_logits": True}, shapes)
        or name == "googlenet"
    )


def test_old_densenet_spelling() -> None:
    new = shapes_of("torchvision:densenet121", {})
    theirs = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): shape
        for name, shape in new.items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in theirs
    found = identify(theirs)
    assert (found.arch, found.names) == (
        "torchvision:densenet121",
        {"norm1": "norm.1", "norm2": "norm.2", "conv1": "conv.1", "conv2": "conv.2"},
    )
    assert respell(new, **found.names) == theirs
    assert identify(new).names == {}


def test_preactivation_resnets() -> None:
    for args, size, projections in (({}, 1_703_258, 3), ({"narrow": True}, 1_620_058, 2)):
        model = build_skeleton("cifar:preresnet164", args)
        assert sum(parameter.numel() for parameter in model.parameters()) == size
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        assert sum(name.endswith("downsample.0.weight") for name in shapes) == projections
        assert identify(shapes).args == {**args, "num_classes": 10}
    assert [shapes[f"layer{group}.1.conv3.weight"][:2] for group in (1, 2, 3)] == [
        (16, 4),
        (128, 32),
        (256, 64),
    ]
    notes = identify(shapes).notes
    assert len(notes) == 1
    assert "stride_on=conv1" in notes[0] and "project=activation" in notes[0]
    assert (
        found_for(
            "cifar:preresnet164", {"stride_on": "conv1", "project": "activation"}, shapes
        ).notes
        == ()
    )


@pytest.mark.parametrize(
    "args", [{}, {"narrow": True}, {"stride_on": "conv1"}, {"project": "activation"}]
)
def test_preactivation_resnets_against_slow_arithmetic(args: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model: Any = build("cifar:preresnet56", args)
    block, x = model.layer2[0], torch.randn(2, 16 if args.get("narrow") else 64, 8, 8)
    active = torch.relu(block.bn1(x))
    middle = torch.relu(block.bn3(block.conv2(torch.relu(block.bn2(block.conv1(active))))))
    short = block.downsample(active if "project" in args else x)
    assert torch.equal(block(x), block.conv3(middle) + short) and short.shape == (2, 128, 4, 4)
    assert (block.conv1.stride, block.conv2.stride) == (
        ((2, 2), (1, 1)) if "stride_on" in args else ((1, 1), (2, 2))
    )


# --- a named architecture ---


def test_named_architecture_takes_counts_from_the_tensors() -> None:
    given = {"stem": "cifar", "maxpool": True, "stem_stride": 2}
    found = found_for(
        "torchvision:resnet18",
        given,
        shapes_of("torchvision:resnet18", {"stem": "cifar", "num_classes": 4}),
    )
    assert found.args == {**given, "num_classes": 4}
    assert (found.input_size, found.notes) == (32, ())
    found = found_for(
        "cifar:resnet20", {}, respell(shapes_of("cifar:resnet20", {"channels": 1}), fc="linear")
    )
    assert (found.args, found.names) == ({"num_classes": 10, "channels": 1}, {"fc": "linear"})


def test_named_architecture_outside_the_table() -> None:
    shapes = shapes_of("torchvision:efficientnet_b1", {"num_classes": 5})
    found = found_for("torchvision:efficientnet_b1", {}, shapes)
    assert (found.args, found.input_size, found.names) == ({"num_classes": 5}, 240, {})
    wide = {"width_per_group": 32}
    assert found_for(
        "torchvision:resnet50", wide, shapes_of("torchvision:resnet50", wide)
    ).args == {**wide, "num_classes": 1000}


def test_named_architecture_that_does_not_fit() -> None:
    shapes = shapes_of("torchvision:resnet18", {})
    text = error(found_for, "torchvision:resnet50", {}, shapes)
    assert (
        "torchvision:resnet50" in text
        and "`layer1.0.conv1.weight`: expected (64, 64, 1, 1) but got (64, 64, 3, 3)" in text
    )
    assert "`fc.weight`: expected (5, 512) but got (1000, 512)" in error(
        found_for, "torchvision:resnet18", {"num_classes": 5}, shapes
    )
    assert "nope" in error(found_for, "torchvision:nope", {}, shapes)


def test_callable(user_code: str) -> None:
    shapes = {"1.weight": (10, 8), "1.bias": (10,)}
    found = found_for(f"{user_code}:free", {}, shapes)
    assert (found.args, found.input_size, found.names) == ({"num_classes": 10}, 224, {})
    assert not found.notes  # what is taken for granted of its images is said when it is read
    assert found_for(f"{user_code}:usual", {}, shapes).args == {}
    assert found_for(f"{user_code}:usual", {}, {"1.weight": (7, 8), "1.bias": (7,)}).args == {
        "num_classes": 7
    }
    assert found_for(
        f"{user_code}:Nets.small", {"width": 6}, {"weight": (3, 6), "bias": (3,)}
    ).args == {"width": 6}
    assert "num_classes=N" in error(
        found_for, f"{user_code}:wide", {}, {"weight": (20, 8), "bias": (20,)}
    )
    assert "`weight`: expected (3, 4) but got (3, 5)" in error(
        found_for, f"{user_code}:fixed", {}, {"weight": (3, 5), "bias": (3,)}
    )


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("nothere", {}, "no attribute 'nothere'"),
        ("constant", {}, "to be a callable that returns an nn.Module but got int"),
        ("number", {}, "to return an nn.Module but got int"),
        ("fails", {}, "failed with no arguments: ValueError: two lines"),
        ("fixed", {"depth": 3}, "its signature is (width=4)"),
        ("fixed", {"pretrained": True}, "refused"),
    ],
)
def test_callable_errors(user_code: str, name: str, args: dict[str, Any], words: str) -> None:
    text = error(build, f"{user_code}:{name}", args)
    assert words in text


def test_callable_module_missing_or_broken(user_code: str) -> None:
    assert "No module named 'not_there_at_all'" in error(build, "not_there_at_all:f", {})
    Path(f"{user_code}_broken.py").write_text("raise SystemExit(3)")
    assert "cannot be imported: SystemExit" in error(build, f"{user_code}_broken:f", {})


def test_checking_a_callables_arguments_imports_nothing() -> None:
    check_args("not_there_at_all:f", {"num_classes": 3, "depth": 2.5, "kind": "x"})
    assert "num_classes" in error(check_args, "not_there_at_all:f", {"num_classes": 0})
    assert "kind" in error(check_args, "not_there_at_all:f", {"kind": [1]})


# --- building ---


def test_build_is_in_evaluation_mode_and_counts_are_kept() -> None:
    model = build(
        "cifar:resnet20", {"num_classes": 7, "channels": 1, "shortcut": "pad", "pad": "end"}
    )
    assert not model.training
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_resnet_surgery() -> None:
    with torch.device("meta"):
        model: Any = build(
            "torchvision:resnet50", {"stem": "cifar", "in_channels": 1, "stride_on": "conv1"}
        )
        pooled: Any = build(
            "torchvision:resnet18", {"stem": "cifar", "maxpool": True, "stem_stride": 2}
        )
        unpooled: Any = build("torchvision:resnet18", {"maxpool": False})
    conv = model.conv1
    assert (conv.in_channels, conv.kernel_size, conv.stride, conv.padding, conv.bias) == (
        1,
        (3, 3),
        (1, 1),
        (1, 1),
        None,
    )
    assert isinstance(model.maxpool, nn.Identity)
    assert [
        (block.conv1.stride, block.conv2.stride) for block in (model.layer1[0], model.layer2[0])
    ] == [((1, 1), (1, 1)), ((2, 2), (1, 1))]
    assert isinstance(pooled.maxpool, nn.MaxPool2d) and pooled.conv1.stride == (2, 2)
    assert isinstance(unpooled.maxpool, nn.Identity) and unpooled.conv1.kernel_size == (7, 7)
    assert not model.training and not any(part.training for part in model.modules())


def test_surgery_keeps_the_meaning() -> None:
    torch.manual_seed(0)
    model = build("torchvision:resnet18", {"stem": "cifar", "num_classes": 10, "in_channels": 1})
    assert model(torch.randn(1, 1, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("arch", "args", "words"),
    [
        ("torchvision:resnet5O", {}, "nearest names are resnet50"),
        ("cifar:resnet18", {}, "resnet110, resnet56"),
        ("resnet50", {}, "torchvision:NAME"),
        ("torchvision:", {}, "torchvision:NAME"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "`weights` is refused"),
        ("torchvision:resnet18", {"weights_backbone": "DEFAULT"}, "`weights_backbone` is refused"),
        ("torchvision:resnet18", {"pretrained": True}, "`pretrained` is refused"),
        ("timm_like.module:net", {"pretrained_cfg": "x"}, "`pretrained_cfg` is refused"),
        ("torchvision:resnet18", {"progress": False}, "`progress` is refused"),
        (
            "torchvision:resnet18",
            {"depth": 3},
            "no argument `depth`: it takes num_classes, in_channels, stem",
        ),
        (
            "torchvision:resnet18",
            {"num_classes": 0},
            "`num_classes` of torchvision:resnet18 to be an integer from 1 to 10000000 but got 0",
        ),
        ("torchvision:resnet18", {"num_classes": 10_000_001}, "num_classes"),
        ("torchvision:resnet18", {"num_classes": True}, "but got True"),
        ("torchvision:resnet18", {"num_classes": "ten"}, "but got 'ten'"),
        ("torchvision:resnet18", {"maxpool": 1}, "true or false"),
        ("torchvision:resnet18", {"stem": "tiny"}, "imagenet or cifar"),
        ("torchvision:resnet18", {"norm_layer": "x"}, "no argument `norm_layer`"),
        ("torchvision:vgg11", {"stem": "cifar"}, "no argument `stem`"),
        ("torchvision:vgg11", {"dropout": float("nan")}, "a number"),
        ("cifar:resnet20", {"pad": "left"}, "both or end"),
    ],
)
def test_arguments_are_checked(arch: str, args: dict[str, Any], words: str) -> None:
    assert words in error(check_args, arch, args)
    assert words in error(build, arch, args)


def test_what_the_library_refuses_is_one_line() -> None:
    dilated = {"replace_stride_with_dilation": "false,true,true"}
    assert "false,true,true" in error(build, "torchvision:resnet18", dilated)
    assert "stride_on=conv1" in error(build, "torchvision:resnet18", {"stride_on": "conv1"})


def test_timm_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_timm(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "timm":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    for call in (
        lambda: build("timm:resnet50", {}),
        lambda: build_pretrained("timm:resnet50"),
        lambda: found_for("timm:resnet50", {}, {}),
    ):
        assert "pip install 'gatecli[timm]'" in error(call)


def test_timm() -> None:
    pytest.importorskip("timm")
    found = found_for(
        "timm:repvgg_a0", {}, shapes_of("timm:repvgg_a0", {"num_classes": 7, "in_chans": 1})
    )
    assert (found.args, found.input_size, found.mean) == (
        {"num_classes": 7, "in_chans": 1},
        224,
        None,
    )
    assert "hf-hub" in error(build, "timm:hf-hub:someone/something", {})  # would be fetched
    assert "pretrained" in error(build, "timm:resnet18", {"pretrained": True})


def test_pretrained(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no network in tests" in error(build_pretrained, "torchvision:resnet18")
    assert "nearest names" in error(build_pretrained, "torchvision:nope")
    assert "has no pretrained weights" in error(build_pretrained, "cifar:resnet20")
    seen: dict[str, Any] = {}

    def get_model(name: str, **settings: Any) -> nn.Module:
        seen.update(settings, name=name)
        return nn.Linear(2, 2)

    monkeypatch.setattr("torchvision.models.get_model", get_model)
    assert not build_pretrained("torchvision:resnet18").training
    assert (seen["name"], seen["weights"]) == ("resnet18", "DEFAULT")


def test_what_a_pretrained_network_says_of_itself() -> None:
    own = build_skeleton("torchvision:googlenet", {"transform_input": True, "aux_logits": False})
    assert switches("torchvision:googlenet", own) == {"transform_input": True, "aux_logits": False}
    assert switches("torchvision:resnet18", own) == {} == switches("timm:resnet18", own)


def test_is_callable_name() -> None:
    assert is_callable_name("my.package:net")
    assert not any(
        map(
            is_callable_name,
            ("torchvision:resnet50", "cifar:resnet20", "timm:resnet50", "resnet50"),
        )
    )


def test_parse_arch_args() -> None:
    pairs = [
        "num_classes=10",
        "dropout=0.5",
        "maxpool=true",
        "flag=False",
        "stem=cifar",
        "low=-3",
        "note=a=b",
        "odd=inf",
    ]
    assert parse_arch_args(pairs) == {
        "num_classes": 10,
        "dropout": 0.5,
        "maxpool": True,
        "flag": False,
        "stem": "cifar",
        "low": -3,
        "note": "a=b",
        "odd": "inf",
    }


@pytest.mark.parametrize("pair", ["stem", "=3", "stem=", "a b=3", ""])
def test_malformed_arch_args(pair: str) -> None:
    with pytest.raises(SettingError, match="NAME=VALUE"):
        parse_arch_args([pair])
    with pytest.raises(SettingError, match="twice"):
        parse_arch_args(["a=1", "a=2"])
