"""What the documentation says of the project, without building it (`make docs` does that)."""

from __future__ import annotations

import functools
import inspect
import re
import shlex
from pathlib import Path

import pytest
from command_line import about, names_of
from figures import FIGURES
from from_code import PARTS

from gatecli import methods
from gatecli.cli.app import COMMANDS
from gatecli.cli.commands import command
from gatecli.methods.settings import known

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
MARK = re.compile(r"^<!-- generated: ([\w-]+)(?: ([\w-]+))? -->$", re.M)
FIXED = (
    "gatecli attach resnet50.pt --method aig-perbatch",
    "gatecli calibrate --target-acc 94.7",
    "gatecli prune --threshold 0.5",
    "gatecli profile",
)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_of_the_top_level_lead_to_files(name: str) -> None:
    """The site's own links are looked at when it is built."""
    links = LINK.findall((ROOT / name).read_text(encoding="utf-8"))
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_readme_is_short_and_has_the_road() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    assert not [each for each in FIXED if each not in text]


@pytest.mark.parametrize("name", methods.names())
def test_every_method_has_a_whole_card(name: str) -> None:
    text = (DOCS / f"methods/{name}.md").read_text(encoding="utf-8")
    assert {("figure", name), ("card", name), ("settings", name)} <= set(MARK.findall(text))
    headings = ["How it decides", "What prune does with it", "Measured here", "What is ours"]
    assert set(re.findall(r"^## (.+)$", text, re.M)) >= {*headings, "Limits", "Settings"}
    assert FIGURES[name]().svg().count("<rect") > 1
    table = PARTS["settings"](name)
    assert all(f"| `{each}` |" in table for each in known(methods.get(name).about.settings))


PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("[!e]*/*.md"))]
COMMAND = re.compile(rf"^(?: {{4}})?gatecli ((?:{'|'.join(COMMANDS)})\b.*)$", re.M)
TYPED = [
    (page.name, line)
    for page in PAGES
    for line in COMMAND.findall(page.read_text(encoding="utf-8"))
]


def test_commands_in_pages_have_options_and_settings_that_exist() -> None:
    assert len(TYPED) > 100
    for page, line in TYPED:
        name, *words = shlex.split(line, comments=True)
        options = {each for each in words if each.startswith("--")}
        assert options <= options_of(name), (page, line)
        if "--method" in words:
            settings = known(methods.get(words[words.index("--method") + 1]).about.settings)
            for place, word in enumerate(words):
                if word == "--set":
                    setting, _, value = words[place + 1].partition("=")
                    settings[setting].read(value)


@functools.cache
def options_of(name: str) -> set[str]:
    every = inspect.signature(command(COMMANDS[name])).parameters.values()
    spelled = [word for each in every if about(each) for word in names_of(each)]
    return {part for word in spelled for part in word.split("/")}


def test_what_pages_ask_for_is_made() -> None:
    marks = {mark for page in DOCS.rglob("*.md") for mark in MARK.findall(page.read_text("utf-8"))}
    assert {name for name, _ in marks} == set(PARTS)
    for name, argument in marks:
        assert PARTS[name](*([argument] if argument else [])).strip(), (name, argument)


def test_the_command_line_is_told_whole() -> None:
    page = PARTS["command-line"]()
    shared = page.split("## Reading the checkpoint\n")[1]
    for name, body in COMMANDS.items():
        own = page.split(f"## {name}\n")[1].split("\n## ")[0]
        rows = [row for row in (own + shared).splitlines() if row.startswith("| ")]
        for each in inspect.signature(command(body)).parameters:
            word = each.strip("_").replace("_", "-")
            named = [
                row for row in rows if f"`--{word}" in row or row.startswith(f"| `{word.upper()}`")
            ]
            assert named or word == "context", (name, each)
    assert "`--quiet`, `-q`" in shared and "`--sites/--no-sites`" in page
