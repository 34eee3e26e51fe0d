"""The house as its source shows it: who names whom, which way imports run, how the code reads."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from gatecli import methods
from gatecli.kinds import registry
from gatecli.methods.settings import Settings

ROOT = Path(__file__).parent.parent / "gatecli"
FILES = sorted(ROOT.rglob("*.py"))
COLUMNS, COMPLEXITY = 100, 12
LINES = 300
MEMBERS = 10  # of a method's classes
BRANCHES = (
    ast.If,
    ast.For,
    ast.While,
    ast.ExceptHandler,
    ast.IfExp,
    ast.comprehension,
    ast.match_case,
    ast.Assert,
)
# Imports run from a later one of these to an earlier one, never back.
FLOORS = (
    ("errors", "limits"),
    ("traced",),
    ("graph",),
    ("gates",),
    ("lowering",),
    ("kinds",),
    ("network",),
    ("methods",),
    ("checkpoint",),
    ("training", "calibration", "stages", "exporting", "runtimes"),
    ("report",),
    ("cli",),
)


def floor_of(module: str) -> int | None:
    """The floor of `gatecli.X....`; None where it is on none."""
    part = [*module.split("."), ""][1]
    return next((number for number, rooms in enumerate(FLOORS) if part in rooms), None)


def module_of(path: Path) -> str:
    return ".".join(("gatecli", *path.relative_to(ROOT).with_suffix("").parts))


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules that a file imports when it runs, those for types alone left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gatecli"):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imports(node)


def read(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_imports_run_one_way() -> None:
    upward = []
    for path in FILES:
        here = floor_of(module_of(path))
        for name in imports(read(path)):
            there = floor_of(name)
            if here is not None and there is not None and there > here:
                upward.append(f"{path.relative_to(ROOT)}: {name}")
    assert not upward


def test_nobody_names_a_kind_but_itself_and_the_registry() -> None:
    named = []
    for path in FILES:
        parts = path.relative_to(ROOT).parts
        if parts == ("kinds", "registry.py"):
            continue
        own = parts[1] if parts[0] == "kinds" and len(parts) > 2 else ""
        for name in imports(read(path)):
            room = name.split(".")[2:3] if name.startswith("gatecli.kinds.") else []
            if set(room) & set(registry.names()) and room != [own]:
                named.append(f"{path.relative_to(ROOT)} imports {name}")
        named += [f"{path.relative_to(ROOT)}:{line}" for line in compared(read(path))]
    assert not named


def compared(tree: ast.Module) -> Iterator[int]:
    """Lines that compare a `.kind` with a kind's name."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        parts = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
        strings = {part.value for part in parts if isinstance(part, ast.Constant)}
        asks = any(isinstance(part, ast.Attribute) and part.attr == "kind" for part in parts)
        if asks and strings & set(registry.names()):
            yield node.lineno


def test_nobody_names_a_method_but_its_own_file() -> None:
    files = {type(methods.get(name)).__module__ for name in methods.names()}
    named = []
    for path in FILES:
        module = module_of(path).removesuffix(".__init__")
        for name in imports(read(path)):
            if name in files and name != module:
                named.append(f"{path.relative_to(ROOT)} imports {name}")
        for node in ast.walk(read(path)):
            if isinstance(node, ast.Compare) and module not in files:
                sides = (node.left, *node.comparators)
                strings = {side.value for side in sides if isinstance(side, ast.Constant)}
                if strings & set(methods.names()):
                    named.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not named


def test_a_method_s_classes_have_at_most_ten_members() -> None:
    """What a subclass may define, own and inherited; nn.Modules have more by nature."""
    crowded = {}
    for path in sorted((ROOT / "methods").rglob("*.py")):
        module = importlib.import_module(module_of(path).removesuffix(".__init__"))
        for name, each in vars(module).items():
            if not isinstance(each, type) or issubclass(each, (nn.Module, Settings)):
                continue
            members = {*dir(each), *inspect.get_annotations(each), *_set_by_init(each)}
            public = {member for member in members if not member.startswith("_")}
            if each.__module__ == module.__name__ and len(public) > MEMBERS:
                crowded[f"{module.__name__}.{name}"] = sorted(public)
    assert not crowded


def _set_by_init(kind: type) -> set[str]:
    """What instances get of their own: `self.x = ...` in any of the class's methods."""
    found: set[str] = set()
    for each in kind.__mro__:
        if each.__module__.startswith("gatecli."):
            for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(each)))):
                if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
                    continue
                if isinstance(node.value, ast.Name) and node.value.id == "self":
                    found.add(node.attr)
    return found


def test_no_method_is_untyped_or_long() -> None:
    for path in sorted((ROOT / "methods").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "settings: Any" not in text, path


def complexity(function: ast.AST) -> int:
    """1 + branches, comprehensions, their conditions, and each `and` and `or`."""
    count, todo = 1, list(ast.iter_child_nodes(function))
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        count += isinstance(node, BRANCHES)
        count += len(node.values) - 1 if isinstance(node, ast.BoolOp) else 0
        count += len(node.ifs) if isinstance(node, ast.comprehension) else 0
        todo.extend(ast.iter_child_nodes(node))
    return count


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= LINES and not [line for line in lines if len(line) > COLUMNS]
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert not {each.name for each in functions if complexity(each) > COMPLEXITY}


def in_room(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_public(path: Path) -> bool:
    """Whether it is a module for others to import from: not `_x.py`, and more than a docstring."""
    private = path.name.startswith("_") and path.name != "__init__.py"
    return not private and len(read(path).body) > 1


PUBLIC = [path for path in FILES if is_public(path)]


def imported(path: Path) -> ModuleType:
    return importlib.import_module(module_of(path).removesuffix(".__init__"))


@pytest.mark.parametrize("path", PUBLIC, ids=in_room)
def test_a_module_says_what_is_public(path: Path) -> None:
    module = imported(path)
    names = getattr(module, "__all__", None)
    assert names is not None and len(set(names)) == len(names)
    assert not [name for name in names if not hasattr(module, name)]


@pytest.mark.parametrize("path", PUBLIC, ids=in_room)
def test_public_methods_have_docstrings(path: Path) -> None:
    """Those that override keep their base's."""
    assert not list(undocumented(imported(path)))


def undocumented(module: ModuleType) -> Iterator[str]:
    """The methods without a docstring that a module's own public classes bring in."""
    for name, owner in vars(module).items():
        if isinstance(owner, type) and owner.__module__ == module.__name__ and name[0] != "_":
            yield from (f"{name}.{method}" for method in silent(owner))


def silent(owner: type) -> Iterator[str]:
    """A class's public methods without a docstring that no base has."""
    for name, value in vars(owner).items():
        is_field = name in vars(owner).get("__annotations__", {})
        if name[0] == "_" or is_field or is_inherited(owner, name):
            continue
        if is_method(value) and not inspect.getdoc(value):
            yield name


def is_method(value: Any) -> bool:
    return inspect.isroutine(value) or isinstance(value, property)


def is_inherited(owner: type, name: str) -> bool:
    """Whether a base has that name, be it as an annotation."""
    bases = owner.__mro__[1:]
    return any(name in dir(base) or name in vars(base).get("__annotations__", {}) for base in bases)
