"""Unknown names are errors that suggest the nearest known one."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from typing import ParamSpec, TypeVar, Unpack, get_args, get_origin

P = ParamSpec("P")
T = TypeVar("T")


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that `name` is no known `kind`, which one is nearest, and what there is.

    >>> unknown("objective", "iad3", ["ard", "iad1"])
    "unknown objective 'iad3'; did you mean 'iad1'? known: ard, iad1"
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"unknown {kind} {name!r}{hint} known: {', '.join(names)}"


def refuse_unknown(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise a TypeError, as Python does for arguments, for the first of `given` that is not `known`."""
    known = list(known)
    for name in given:
        if name not in known:
            raise TypeError(unknown(kind, name, known))


def known_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Make an unknown keyword argument of `function` a TypeError that suggests the nearest known one.

    What `**name: Unpack[SomeTypedDict]` passes on is known by that dictionary's keys.
    """
    owner, _, last = function.__qualname__.rpartition(".")
    called = owner if last == "__init__" else last
    parameters = [name for name in _arguments(function) if name not in ("self", "cls")]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        refuse_unknown(f"argument of {called}", kwargs, parameters)
        return function(*args, **kwargs)

    return checked


def _arguments(function: Callable[..., object]) -> Iterator[str]:
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD and get_origin(parameter.annotation) is Unpack:
            yield from get_args(parameter.annotation)[0].__annotations__
        else:
            yield name


def words(text: str | None) -> tuple[str, ...]:
    """What a list with commas holds, each once, whatever spaces are about it."""
    return tuple(dict.fromkeys(word.strip() for word in (text or "").split(",") if word.strip()))
