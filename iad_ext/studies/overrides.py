"""Settings in the recipes' own spelling, as a study has them: by role, from its file or its command line."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_origin

from iad_ext import settings as settings_
from iad_ext.names import unknown
from iad_ext.spelling import HINTS, typed

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
