"""Settings as people spell them: in a YAML file, and as the arguments of a recipe's command line."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from iad_ext import files
from iad_ext import settings as settings_
from iad_ext.names import unknown
from iad_ext.settings import Recipe, Settings
from iad_ext.units import parse_fraction

OPTION = "--settings"
# of a run's own file: where that run was, and what its command line asked of it once
OF_THAT_RUN = ("out", "resume", "accept_changes", "dry_run")


def _hints() -> dict[str, Any]:
    hints: dict[str, Any] = {}
    whole = Settings()
    for field in fields(whole):
        value = getattr(whole, field.name)
        if is_dataclass(value):
            inner = get_type_hints(type(value))
            hints |= {f"{field.name}.{name}": hint for name, hint in inner.items()}
        else:
            hints[field.name] = get_type_hints(Settings)[field.name]
    return hints


HINTS = _hints()


def typed(name: str, value: Any) -> Any:
    """A value as its setting's type: `8/255` is a number, 0.5 for γ is a text."""
    hint = HINTS[name]
    kinds = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
    if value is None or value == "None":
        if NoneType in kinds:
            return None
        raise ValueError(f"{settings_.option(name)} needs a value")
    kind = next(one for one in kinds if one is not NoneType)
    if name == "objective.class_temperature" and isinstance(value, int | float):
        raise ValueError(
            f"{settings_.option(name)} takes CLASS:TEMPERATURE,…, got the number {value}: YAML reads 3:2 without "
            "quotes as 182, in base 60; put it in quotes, '3:2'"
        )
    try:
        return _as(kind, value)
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"{settings_.option(name)} takes {getattr(kind, '__name__', kind)}, got {value!r}"
        ) from None


def _as(kind: Any, value: Any) -> Any:
    if get_origin(kind) is tuple:
        return tuple(int(item) for item in (value.split() if isinstance(value, str) else value))
    if kind is bool:
        words = {"true": True, "false": False}
        return words[str(value).lower()]
    if isinstance(value, bool | Mapping | list):
        return _refuse()
    if kind is int:
        return int(value) if float(value) == int(value) else _refuse()
    if kind is float:
        return parse_fraction(value) if isinstance(value, str) else float(value)
    return Path(value) if kind is Path else str(value)


def _refuse() -> Any:
    raise ValueError


def arguments(values: Mapping[str, Any]) -> Iterator[str]:
    """Settings as a recipe's command line."""
    for name, value in values.items():
        option = settings_.option(name)
        if HINTS[name] is bool:
            group, dot, leaf = option[2:].rpartition(".")
            yield option if value else f"--{group}{dot}no-{leaf}"
        elif isinstance(value, tuple):
            yield from (option, *map(str, value))
        else:
            yield from (option, str(value))


def with_file(recipe: Recipe, args: Sequence[str]) -> list[str]:
    """A recipe's command line behind the settings of the file that `--settings` names.

    The file is a YAML mapping of settings, by their names on the command line (`train.epochs: 30`) or by groups, as in
    a run's `settings.yaml`. The command line comes after it, so that it has the last word. Of a file that names its
    recipe, as a run's own does, the folder and the orders are left out (`OF_THAT_RUN`): they were that run's.

    Raises:
        ValueError: no file, more than one, none that can be read; an unknown name, a value of another type, or the
            settings of another recipe's run.
    """
    rest: list[str] = []
    named: list[str] = []
    words = iter(args)
    for word in words:
        name, equals, value = word.partition("=")
        if name != OPTION:
            rest.append(word)
        elif (found := value if equals else next(words, "")) and not found.startswith("--"):
            named.append(found)
        else:
            raise ValueError(f"{OPTION} takes a YAML file, such as a run's settings.yaml; none is named")
    if len(named) > 1:
        raise ValueError(f"{OPTION} takes one file; got {' and '.join(named)}")
    return [*arguments(_read(recipe, Path(named[0]))), *rest] if named else rest


def _read(recipe: Recipe, file: Path) -> dict[str, Any]:
    """What a file sets, without what would be as it is: nothing where the recipe has nothing."""
    try:
        content = files.parse_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"cannot read {file}: {error.strerror}; {OPTION} takes a YAML file of settings"
        ) from None
    except ValueError as error:
        raise ValueError(f"{file} holds no settings: {error}") from None
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{file} must hold a mapping, such as train.epochs: 30; got {type(content).__name__}"
        )
    usual = dict(settings_.flat(recipe.settings))
    found: dict[str, Any] = {}
    for name, value in _by_dotted_name(content):
        if name not in HINTS:
            raise ValueError(f"{file}: {unknown('setting', name, HINTS)}")
        if name in found:
            raise ValueError(f"{file} sets {name} twice")
        found[name] = typed(name, value)
    if "recipe" in found:
        if (of := found.pop("recipe")) != usual["recipe"]:
            raise ValueError(
                f"{file} is of the recipe {of}, this is {usual['recipe']}; launch that one, or leave the line out"
            )
        found = {name: value for name, value in found.items() if name not in OF_THAT_RUN}
    return {name: value for name, value in found.items() if value is not None or usual[name] is not None}


def _by_dotted_name(content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    groups = {name.partition(".")[0] for name in HINTS if "." in name}
    for name, value in content.items():
        spelt = str(name).replace("-", "_")
        if spelt in groups and isinstance(value, Mapping):
            yield from ((f"{spelt}.{str(leaf).replace('-', '_')}", inner) for leaf, inner in value.items())
        else:
            yield spelt, value
