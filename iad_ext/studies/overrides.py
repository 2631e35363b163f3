"""Settings in the recipes' own spelling: read from a study's file or a command line, written back as arguments."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from iad_ext import settings as settings_
from iad_ext.names import unknown
from iad_ext.settings import Settings
from iad_ext.units import parse_fraction

Overrides = dict[str, Any]

ROLES = ("teachers", "students")
# what a study decides itself
OWN = {
    "recipe",
    "out",
    "resume",
    "dry_run",
    "accept_changes",
    "teacher",
    "natural_teacher",
    "teacher_architecture",
    "natural_teacher_architecture",
    "train.seed",
}


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
KNOWN = {name: hint for name, hint in HINTS.items() if name not in OWN}


def checked(given: object, where: str) -> Overrides:
    """Settings as a study's file has them: dotted names and values.

    Raises:
        ValueError: an unknown name, one that the study decides itself, or a value of another type.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} is a mapping of settings, such as objective.beta: 0.5; got {given!r}")
    found = {}
    for name, value in given.items():
        dotted = str(name).replace("-", "_")
        if dotted == "data.name":
            raise ValueError(f"{where}: the data sets of a study stand under data:")
        if dotted not in KNOWN:
            raise ValueError(f"{where}: {unknown('setting', str(name), KNOWN)}")
        found[dotted] = typed(dotted, value)
    return found


def typed(name: str, value: Any) -> Any:
    """A value as its setting's type: `8/255` is a number, 0.5 for γ is a text."""
    hint = HINTS[name]
    kinds = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
    if value is None or value == "None":
        if NoneType in kinds:
            return None
        raise ValueError(f"{settings_.option(name)} needs a value")
    kind = next(one for one in kinds if one is not NoneType)
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


def from_command_line(words: Sequence[str]) -> tuple[list[str], dict[str, Overrides]]:
    """Take the recipes' options out of a command line; what is left is the study's own.

    `--teachers.OPTION` and `--students.OPTION` speak of these alone.

    Returns:
        The other words, and the settings by role: `all`, `teachers`, `students`.

    Raises:
        ValueError: an option that a study decides itself, or a value that it cannot take.
    """
    rest: list[str] = []
    found: dict[str, Overrides] = {"all": {}, **{role: {} for role in ROLES}}
    words = [part for word in words for part in _split(word)]
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        role, name, negated = _parsed(word)
        if name is None:
            rest.append(word)
            continue
        values = []
        while position < len(words) and not words[position].startswith("--"):
            values.append(words[position])
            position += 1
        found[role][name] = typed(name, _joined(name, values, word, negated=negated))
    return rest, found


def _split(word: str) -> list[str]:
    """`--name=value` as two words."""
    name, equals, value = word.partition("=")
    return [name, value] if equals and word.startswith("--") else [word]


def _parsed(word: str) -> tuple[str, str | None, bool]:
    """An option's role and dotted name, and whether it says no; no name where it is none of the recipes'."""
    if not word.startswith("--"):
        return "all", None, False
    dotted, role = word[2:].replace("-", "_"), "all"
    first, dot, rest = dotted.partition(".")
    if dot and first in ROLES:
        role, dotted = first, rest
    positive = re.sub(r"(^|\.)no_", r"\1", dotted)
    if dotted not in HINTS and HINTS.get(positive) is bool:
        return role, positive, True
    if role != "all" and dotted not in KNOWN:
        raise ValueError(unknown("option", word, [f"--{role}.{name}" for name in KNOWN]))
    if dotted in OWN and "." in dotted:
        raise ValueError(f"{word} is the study's to say; --seeds takes the seeds")
    if dotted not in KNOWN and "." in dotted:
        raise ValueError(unknown("option", word, map(settings_.option, KNOWN)))
    return role, dotted if dotted in KNOWN else None, False


def _joined(name: str, values: list[str], word: str, *, negated: bool) -> Any:
    if HINTS[name] is bool and not values:
        return not negated
    if get_origin(HINTS[name]) is tuple:
        return values
    if len(values) != 1:
        raise ValueError(f"{word} takes one value, got {' '.join(values) or 'none'}")
    return values[0]


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


# what does not change which network comes out
_NOT_IN_A_NAME = {
    *OWN,
    *settings_.MEASURING,
    "data.name",
    "data.path",
    "data.revision",
    "log_with",
    "require_revision",
}


def named(values: Mapping[str, Any], *, prefix: str = "") -> str:
    """Settings as a part of a folder's name: `epochs=20,student=cifar_resnet8`, without what only measures."""
    parts = []
    for name, value in sorted(values.items(), key=lambda item: _in_a_name(item[0])):
        if name in _NOT_IN_A_NAME or name.startswith("checkpoint."):
            continue
        said = f"{value:g}" if isinstance(value, float) else str(value)
        if isinstance(value, tuple):
            said = "-".join(map(str, value))
        parts.append(f"{prefix}{_in_a_name(name)}={re.sub(r'[^A-Za-z0-9_.+-]+', '-', said)}")
    return ",".join(parts)


def matters(name: str) -> bool:
    """Whether a setting changes which network comes out."""
    return name not in _NOT_IN_A_NAME and not name.startswith("checkpoint.")


def _in_a_name(name: str) -> str:
    group, _, leaf = name.rpartition(".")
    if leaf == "name":
        return group
    return (f"{group}.{leaf}" if group == "eval" else leaf).replace("_", "-")
