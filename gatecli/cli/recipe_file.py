"""A command's options out of a YAML file, as `--recipe` and `--config` name it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

import typer

from gatecli.cli.options import READING
from gatecli.cli.parsing import is_function
from gatecli.cli.resuming import named
from gatecli.cli.session import Session
from gatecli.cli.trust import option_of
from gatecli.errors import SettingError

__all__ = ["group_of", "read_recipe_file", "set_common", "spelled_name", "told_by"]

G = TypeVar("G")
LARGEST = 1 << 20  # bytes
SCALARS = (str, int, float)


def read_recipe_file(path: Path) -> Mapping[Any, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        SettingError: The file cannot be read, or holds something else.
    """
    import yaml

    try:
        if path.stat().st_size > LARGEST:
            raise SettingError(f"expected {path} to be a recipe, but it is too large for one")
        text = path.read_text(encoding="utf-8")
        _check_once(path, yaml.compose(text, yaml.SafeLoader))
        held = yaml.safe_load(text)
    except OSError as error:
        raise SettingError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:200]
        raise SettingError(f"expected {path} to be YAML, but it cannot be read: {said}") from error
    if not isinstance(held, Mapping):
        raise SettingError(
            f"expected {path} to hold options, a line each, as `max-drop: 1`, but it holds"
            f" {type(held).__name__}"
        )
    return held


def _check_once(path: Path, node: Any) -> None:
    """Check that no option stands in the file twice: YAML itself would take the last one.

    Nor may a name within an option, as of --set.

    Raises:
        SettingError: One does, perhaps in another spelling.
    """
    if not hasattr(node, "value") or node.id != "mapping":
        return
    inner = {id(value): value for _, value in node.value if value.id == "mapping"}
    for mapping in (node, *inner.values()):
        seen: dict[str, str] = {}
        for key, _ in mapping.value:
            name = str(key.value).replace("_", "-")
            if name in seen:
                raise SettingError(
                    f"expected {path} to say each option once, but it says `{seen[name]}` and then"
                    f" `{key.value}`: take one away"
                )
            seen[name] = str(key.value)


def told_by(
    held: Mapping[Any, Any], path: Path, context: typer.Context, leave: Collection[str]
) -> dict[str, Any]:
    """Return what a file says of a command's options, by the parameter's name.

    What the user has typed is left out: it comes first. Of a mapping, as of --set, what the user
    has typed comes name by name.

    Args:
        held: What the file holds: options without their dashes, and their values.
        path: The file, for errors.
        context: The command line, which knows the options.
        leave: Parameters that only the command line may say.

    Raises:
        SettingError: It names an option that there is not, says a value that is none, or names
            code, which a file's word is not enough for.
    """
    known = {}
    for parameter in context.command.params:
        if parameter.name and parameter.name not in leave:
            known[spelled_name(parameter.name)] = parameter
    typed = named(context)
    told = {}
    for key, value in held.items():
        name = str(key).replace("_", "-")
        if name not in known:
            raise SettingError(_unknown(path, str(key), known))
        parameter = known[name]
        words = _words(path, name, value, parameter)
        try:
            found = parameter.process_value(context, words)
        except Exception as error:  # typer's own, whose class it does not show
            said = " ".join(str(getattr(error, "message", error)).split())
            raise SettingError(f"{path}: `{key}`: {said}") from error
        if parameter.name not in typed:
            told[str(parameter.name)] = found
        elif isinstance(value, Mapping):
            told[str(parameter.name)] = [*found, *context.params[parameter.name]]
    _check_code(path, told)
    return told


def spelled_name(parameter: str) -> str:
    """A parameter's name as a file has it: `max_drop` is `max-drop`."""
    return option_of(parameter).removeprefix("--")


def set_common(session: Session, params: Mapping[str, Any]) -> None:
    """Let the session be as a file's options say, those that every command has.

    Raises:
        SettingError: A value is none.
    """
    session.seed = params["seed"]
    session.device = params["device"]
    session.threads = params["threads"]
    session.reading = {name: params[name] for name in READING}
    session.prepare()


def group_of(params: Mapping[str, Any], group: type[G]) -> G:
    """A group of options, of all of them by the parameter's name."""
    return group(**{each.name: params[each.name] for each in fields(cast("Any", group))})


def _unknown(path: Path, key: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(key.replace("_", "-"), known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"expected {', '.join(known)}"
    return f"{path} has the key `{key}`, which is no option that a recipe can say: {hint}"


def _words(path: Path, name: str, value: Any, parameter: Any) -> Any:
    """A value as the command line would have it: a text, or a list of texts."""
    repeatable = bool(getattr(parameter, "multiple", False))
    texts = list(_texts(value))
    if not texts or None in texts:
        raise SettingError(
            f"expected `{name}` in {path} to be a text, a number, a list of these"
            f"{' or name: value' if repeatable else ''}, but got {type(value).__name__}"
        )
    return texts if repeatable else ",".join(map(str, texts))


def _texts(value: Any) -> Iterator[str | None]:
    """The texts that a value holds; None for what is no text."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            text = _text(each)
            yield None if text is None else f"{key}={text}"
        return
    for each in value if isinstance(value, list) else [value]:
        yield _text(each)


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, SCALARS) else None


def _check_code(path: Path, told: Mapping[str, Any]) -> None:
    """Raises SettingError where the file names code that would be imported."""
    from gatecli.architectures.arguments import is_callable_name

    for name, is_code in (("data", is_function), ("arch", is_callable_name)):
        value = told.get(name)
        if value and is_code(value):
            raise SettingError(
                f"{path} names code, `{value}`, which gatecli does not import on a file's word: if"
                f" you trust it, type {option_of(name)} {value}"
            )
