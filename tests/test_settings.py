"""Settings: their types, the spellings of each, and what files record of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
from commandline import call, refused, run, save_source
from networks import CASES, infer

import gatecli
from gatecli import methods
from gatecli.checkpoint import read_recipe
from gatecli.errors import CheckpointError, SettingError
from gatecli.methods.settings import Known, Settings, known, setting
from gatecli.methods.values import FrozenDict, ValueType, frozen, plain, told
from gatecli.network import Network
from gatecli.traced import recipe as recipes
from gatecli.traced.recipe import Recipe


@dataclass(frozen=True)
class EveryType(Settings):
    switch: bool = setting(default=False, help="h")
    count: int | None = setting(None, "h", low=1, high=9)
    share: float = setting(0.5, "h", low=0, high=1)
    word: str = setting("a", "h", choices=("a", "b"))
    text: str = setting("", "h")
    names: tuple[str, ...] | None = setting(None, "h")
    table: Mapping[str, Any] = setting(FrozenDict(), "h")


@dataclass(frozen=True)
class Odd(Settings):
    value: complex = setting(None, "h")


LETTERS = ValueType(expected="letters", read=frozenset)


@dataclass(frozen=True)
class Own(Settings):
    value: frozenset[str] = setting(frozenset(), "h", value=LETTERS)


KNOWN = known(EveryType)


def read(name: str, value: Any) -> Any:
    return KNOWN[name].read(value)


# --- what is read ---

SPELLINGS: list[tuple[str, Any, list[Any]]] = [
    ("switch", True, [True, "yes", "true", "on", "1", 1, "Yes", "TRUE", "oN"]),
    ("switch", False, [False, "no", "false", "off", "0", 0, "No"]),
    ("count", 3, [3, "3", " 3 "]),
    ("count", None, [None, "none"]),
    ("share", 0.25, [0.25, "0.25", ".25", "1/4", "2.5e-1"]),
    ("share", 1.0, [1, "1", 1.0]),
    ("word", "b", ["b"]),
    ("text", "yes", ["yes"]),
    ("text", "none", ["none"]),
    ("names", ("a.0", "b"), ["a.0,b", " a.0 , b ", ["a.0", "b"], ("a.0", "b")]),
    ("names", ("a",), ["a", ["a"]]),
    ("names", None, [None, "none"]),
    ("table", {}, ["{}", {}, FrozenDict()]),
    ("table", {"a": (1, {"b": None})}, ['{"a": [1, {"b": null}]}', {"a": [1, {"b": None}]}]),
]


@pytest.mark.parametrize(
    ("name", "wanted", "given"),
    [(name, wanted, each) for name, wanted, given in SPELLINGS for each in given],
)
def test_spellings(name: str, wanted: Any, given: Any) -> None:
    found = read(name, given)
    assert found == wanted
    assert type(found) is type(wanted) or isinstance(wanted, dict)
    hash(found)
    # what a file records is in JSON's types, and is read as the same; so are the words for people
    recorded = plain(found)
    assert json.loads(json.dumps(recorded, allow_nan=False)) == recorded
    assert read(name, recorded) == found
    if name != "names" or found is not None:
        assert read(name, told(found)) == found


WRONG: list[tuple[str, Any, str]] = [
    ("switch", "maybe", "yes or no, but got `maybe`"),
    ("switch", "", "yes or no"),
    ("switch", None, "yes or no, but got `none`"),
    ("switch", 2, "yes or no, but got `2`"),
    ("switch", 1.0, "yes or no, but got `1.0`"),
    ("switch", ["yes"], "yes or no, but got `yes`"),
    ("count", True, "a whole number, but got `True`"),
    ("count", 2.0, "a whole number, but got `2.0`"),
    ("count", "2.5", "a whole number"),
    ("count", [2], "a whole number"),
    ("count", {"a": 2}, 'a whole number, but got `{"a": 2}`'),
    ("count", 10, "between 1 and 9, but got `10`"),
    ("share", False, "a number, but got `False`"),
    ("share", "nan", "a number"),
    ("share", "1/0", "a number"),
    ("share", None, "a number, but got `none`"),
    ("share", [0.5], "a number"),
    ("word", "c", "one of a, b, but got `c`"),
    ("word", True, "a word, but got `True`"),
    ("text", 5, "a word, but got `5`"),
    ("text", ["a"], "a word"),
    ("names", "", "names with commas between, but got ``"),
    ("names", "a,,b", "names with commas between, but got `a,,b`"),
    ("names", [], "names with commas between"),
    ("names", 5, "names with commas between, but got `5`"),
    ("names", ["a", 5], "names with commas between, but got `a,5`"),
    ("names", {"a": 1}, "names with commas between"),
    ("table", "[]", "a JSON object, but got `[]`"),
    ("table", "{", "a JSON object, but got `{`"),
    ("table", '{"a": NaN}', "a JSON object"),
    ("table", "[" * 100_000, "a JSON object"),
    ("table", None, "a JSON object, but got `none`"),
    ("table", {1: 2}, "a JSON object"),
    ("table", {"a": float("inf")}, "a JSON object"),
    ("table", {"a": object}, "a JSON object"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_other_types_are_refused_by_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(SettingError) as caught:
        read(name, value)
    assert str(caught.value).startswith(f"expected setting `{name}` to be {message}")
    assert "\n" not in str(caught.value)


def test_words_for_people() -> None:
    words = {name: each.words for name, each in KNOWN.items()}
    assert words["switch"] == "yes|no"
    assert words["count"] == "whole number|none"
    assert words["share"] == "number"
    assert words["word"] == "a|b"
    assert words["names"] == "name,name,...|none"
    assert words["table"] == "JSON object"


def test_a_type_that_settings_cannot_have_is_its_author_s_mistake() -> None:
    with pytest.raises(TypeError, match=r"no setting can have the type .*complex"):
        known(Odd)

    assert known(Own)["value"].read("aba") == {"a", "b"}
    with pytest.raises(SettingError, match="`value` to be letters, but got `3`"):
        known(Own)["value"].read(3)


def test_frozen_mappings() -> None:
    table = frozen({"b": 1, "a": [2, {"c": 3}]})
    assert list(table) == ["b", "a"]  # their order says which pattern counts
    assert table == {"b": 1, "a": (2, {"c": 3})} and len(table) == 2
    assert hash(table) == hash(frozen({"a": [2, {"c": 3}], "b": 1}))
    with pytest.raises(TypeError):
        table["b"] = 2  # it is frozen
    assert plain(table) == {"b": 1, "a": [2, {"c": 3}]}


# --- every method's ---


def of_methods() -> list[tuple[str, Known]]:
    return [
        (name, each)
        for name in methods.names()
        for each in known(methods.get(name).about.settings).values()
    ]


@pytest.mark.parametrize(
    ("method", "each"), of_methods(), ids=[f"{name} {each.name}" for name, each in of_methods()]
)
def test_defaults_are_values_of_their_type(method: str, each: Known) -> None:
    hash(each.default)
    assert each.read(each.default) == each.default
    assert each.read(plain(each.default)) == each.default
    assert each.words and each.about["help"]
    assert each.choices != ["yes", "no"] or isinstance(each.default, bool)


@pytest.mark.parametrize("name", methods.names())
def test_settings_are_frozen_and_hashable_and_recorded_in_json_s_types(name: str) -> None:
    settings = methods.get(name).about.settings()
    assert hash(settings) == hash(replace(settings))
    recorded = methods.record_settings(settings)
    assert json.loads(json.dumps(recorded, allow_nan=False)) == recorded
    assert list(recorded) == [each.name for each in fields(settings)]
    assert methods.recorded_settings(methods.get(name), recorded) == settings


# --- from the command line into a file, and back ---

CASE = CASES["own"]
SITES = list(gatecli.attach(CASE.network(), "ind-pergate").network.gated_by)
ONE = SITES[0]
# method, setting -> spellings on the command line, what Python may say, what is recorded
ROADS: dict[tuple[str, str], tuple[list[str], list[Any], Any]] = {
    ("cgnet", "grouping"): (["yes", "true", "on", "1"], [True, "yes"], True),
    ("cgnet", "shuffle"): (["no", "false", "off", "0"], [False, "no"], False),
    ("dgate", "after"): ([ONE, f" {ONE}"], [ONE, [ONE], (ONE,)], [ONE]),
    ("early-exit", "after"): (["none"], [None], None),
    ("ind-pergate", "targets"): (
        [f"{ONE}:.25", f"*:.5,{ONE}:.25", f'{{"{ONE}": 0.25}}', ".25" + ",t" * (len(SITES) - 1)],
        [{ONE: 0.25}, [0.25, *["t"] * (len(SITES) - 1)], (0.25, *[None] * (len(SITES) - 1))],
        {ONE: 0.25},
    ),
}
LINES = [
    (*road, word, wanted)
    for road, (words, values, wanted) in ROADS.items()
    for word in [*words, *values]
]


def attached(method: str, **settings: Any) -> Network:
    how: dict[str, Any] = {"eta": 0.5} if method == "cgnet" else {}
    how |= {"width": 4} if method == "early-exit" else {}
    how |= {"input_size": CASE.size, "arch": CASE.arch}
    return gatecli.attach(CASE.build(), method, **how, **settings).network


@pytest.mark.parametrize(("method", "name", "given", "wanted"), LINES)
def test_what_is_said_is_recorded_as_json_and_replayed(
    method: str, name: str, given: Any, wanted: Any, tmp_path: Path
) -> None:
    network = attached(method, **{name: given})
    step = network.recipe.last("attach")
    assert step is not None
    found = step.settings["settings"][name]
    if isinstance(given, str) and given.startswith("*:"):
        wanted = dict.fromkeys(SITES, 0.5) | wanted  # the last pattern that matches counts
    assert found == wanted and type(found) is type(wanted)
    gatecli.write(network, tmp_path / "net.safetensors")
    again = gatecli.load(tmp_path / "net.safetensors", arch=CASE.arch)
    assert again.recipe == network.recipe
    x = CASE.images(3)
    assert (infer(network, x) == infer(again, x)).all()


# what versions before recorded, and what is recorded now
OLD: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("cgnet", {"grouping": "yes", "shuffle": "yes"}, {"grouping": True, "shuffle": True}),
    ("cgnet", {"grouping": "no", "shuffle": "yes"}, {"grouping": False, "shuffle": True}),
    ("dgate", {"after": ONE}, {"after": [ONE]}),
    ("ind-pergate", {"targets": f"{ONE}:0.25"}, {"targets": {ONE: 0.25}}),
    ("ind-pergate", {"targets": None}, {"targets": None}),
]


@pytest.mark.parametrize(("method", "old", "new"), OLD)
def test_older_files_mean_the_same(
    method: str, old: dict[str, Any], new: dict[str, Any], tmp_path: Path
) -> None:
    network = attached(method, **new)
    step = network.recipe.steps[0]
    chosen = methods.get(method)
    meant = methods.recorded_settings(chosen, step.settings["settings"])
    assert {name: step.settings["settings"][name] for name in new} == new
    step.settings["settings"].update(old)
    assert methods.recorded_settings(chosen, step.settings["settings"]) == meant
    gatecli.write(network, tmp_path / "old.safetensors")
    recipe = read_recipe(tmp_path / "old.safetensors")
    assert recipe is not None and recipe.steps[0].settings["settings"].items() >= old.items()
    again = gatecli.load(tmp_path / "old.safetensors", arch=CASE.arch)
    x = CASE.images(3)
    assert (infer(network, x) == infer(again, x)).all()


def test_an_older_gater_s_arguments_mean_the_same(tmp_path: Path) -> None:
    network = attached("gaternet")
    stored = network.recipe.steps[0].settings["settings"]
    assert stored["gater_args"] == {"args": {}, "names": {}}
    stored["gater_args"] = '{"args": {}, "names": {}}'
    gatecli.write(network, tmp_path / "old.safetensors")
    again = gatecli.load(tmp_path / "old.safetensors", arch=CASE.arch)
    x = CASE.images(3)
    assert (infer(network, x) == infer(again, x)).all()


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("cgnet", {"grouping": "off"}),
        ("dgate", {"after": f"{ONE}"}),
        ("ind-pergate", {"targets": f"{ONE}:.25"}),
    ],
)
def test_what_shapes_the_gates_may_be_said_again_but_not_otherwise(
    method: str, changes: dict[str, str]
) -> None:
    chosen = methods.get(method)
    base = methods.parse_settings(chosen, changes)
    assert methods.parse_settings(chosen, changes, base) == base
    (name,) = changes
    other = {"grouping": "yes", "after": "elsewhere", "targets": f"{ONE}:.5"}[name]
    with pytest.raises(SettingError, match=re.escape(f"again with --set {name}={other}")):
        methods.parse_settings(chosen, {name: other}, base)


# --- the format's version ---


@pytest.mark.parametrize(
    ("method", "settings", "version"),
    [
        ("ind-pergate", {}, 2),  # `coupled`, a switch
        ("early-exit", {}, 1),
        ("early-exit", {"after": ONE}, 2),
        ("dgate", {}, 2),
        ("ind-pergate", {"targets": f"{ONE}:.25"}, 2),
        ("cgnet", {}, 2),
        ("gaternet", {}, 2),
    ],
)
def test_older_versions_are_asked_to_upgrade_where_they_would_misread(
    method: str, settings: dict[str, str], version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = attached(method, **settings).recipe.to_json()
    assert json.loads(text)["format"] == version
    monkeypatch.setattr(recipes, "FORMAT", 1)
    if version == 1:
        Recipe.from_json(text, "net")
    else:
        with pytest.raises(CheckpointError, match=r"net has format version 2.*upgrade gatecli"):
            Recipe.from_json(text, "net")


# --- the command line ---


def test_methods_say_how_settings_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    (described,) = call("methods", "cgnet")["methods"]
    switch = {each["name"]: each for each in described["settings"]}["grouping"]
    assert switch["takes"] == "yes|no" and switch["default"] is False
    assert switch["type"] == "bool" and switch["choices"] == ["yes", "no"]
    line = next(line for line in run("methods", "cgnet").out.splitlines() if "grouping" in line)
    assert line.split()[:3] == ["grouping", "yes|no", "no"]


def test_a_wrong_word_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = save_source(tmp_path / "r.pt")
    refused(
        ["attach", source, "--method", "cgnet", "--input-size", 8, "--set", "grouping=maybe"],
        "expected setting `grouping` to be yes or no, but got `maybe`",
    )
    for number, word in enumerate(("yes", "on")):
        made = f"{number}.safetensors"
        call("attach", source, "--method", "cgnet", "--input-size", 8, "--set", f"grouping={word}",
             "--out", made)  # fmt: skip
        (step,) = call("log", made)["steps"]
        assert step["settings"]["settings"]["grouping"] is True
