"""Objectives and plug-ins by name: what one function with a decorator above it makes known everywhere."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ParamSpec

from iad_ext.checks import check_name
from iad_ext.names import refuse_unknown, unknown
from iad_ext.objectives.core import Objective

P = ParamSpec("P")


ROWS: dict[str, Callable[..., Objective]] = {}
"""Constructors of objectives by name."""
PLUGINS: dict[str, Callable[..., Objective]] = {}
"""What any objective can be given beside its own settings, by name, in the order in which it is applied."""


def instead_of(setting: str) -> Callable[[Callable[P, Objective]], Callable[P, Objective]]:
    """Say of a plug-in that nothing reads the row's `setting` beside it, which is then refused where it is given."""

    def noted(function: Callable[P, Objective]) -> Callable[P, Objective]:
        function.instead_of = setting  # type: ignore[attr-defined]
        return function

    return noted


def unread(chosen: Mapping[str, object]) -> dict[str, str]:
    """Settings that nothing reads beside the plug-ins that are chosen, each with the plug-in in its place."""
    replaced = {plug: getattr(function, "instead_of", None) for plug, function in PLUGINS.items()}
    return {setting: plug for plug, setting in replaced.items() if setting and _is_chosen(chosen.get(plug))}


def row(constructor: Callable[P, Objective]) -> Callable[P, Objective]:
    """Register an objective's constructor under its own name, and refuse arguments that it does not know.

    Plug-ins are arguments of every constructor: `iad1(beta=0.1, igdm=20.0)`. A setting goes to the row and to each
    chosen plug-in that has an argument of its name; `weights` reach added terms too, and a plug-in judges what it is
    given by the weights that its terms will have.

    Raises:
        ValueError: the package has an objective of that name, which results would be confused with.
    """
    signature = inspect.signature(constructor)
    name = constructor.__name__
    # one's own may be defined again, as a notebook's cell is
    if getattr(ROWS.get(name), "__module__", "").startswith("iad_ext."):
        raise ValueError(f"iad_ext has an objective called {name}; give yours another name")

    @functools.wraps(constructor)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Objective:
        chosen = [p for p in PLUGINS if p not in signature.parameters and _is_chosen(kwargs.get(p))]
        plugs = {p: plugin_settings(p) for p in chosen}
        known = [*signature.parameters, *PLUGINS, *(s for settings in plugs.values() for s in settings)]
        refuse_unknown(f"argument of {name}", kwargs, known)
        given = {key: value for key, value in kwargs.items() if value is not None and key not in PLUGINS}
        replaced = unread({p: kwargs[p] for p in chosen})
        for setting, plug in replaced.items():
            if setting in given:
                raise ValueError(
                    f"{name}: nothing reads {setting} beside {plug}={kwargs[plug]!r}; leave one of them out"
                )
        weights = given.pop("weights", None) if chosen else None
        own = {key: value for key, value in kwargs.items() if key in signature.parameters}
        if chosen:
            own.pop("weights", None)
        bound = signature.bind(*args, **own)
        bound.apply_defaults()
        objective = constructor(*bound.args, **bound.kwargs)
        for plug, settings in plugs.items():
            here = {key: value for key, value in given.items() if key in settings}
            objective = PLUGINS[plug](_weighted(objective, weights), kwargs[plug], **here)
        objective = objective.with_weights(weights)  # type: ignore[arg-type]
        if not any(term.weight for term in objective.terms):
            raise ValueError(f"{name}: every term's weight is 0, nothing is left to train on")
        shown = {
            key: value for key, value in bound.arguments.items() if value is not None and key not in replaced
        }
        shown |= {key: value for key, value in given.items() if key not in shown}
        shown |= {plug: kwargs[plug] for plug in chosen} | ({"weights": weights} if weights else {})
        return replace(objective, name=name, settings=shown)

    ROWS[name] = checked
    return checked


def _weighted(objective: Objective, weights: object) -> Objective:
    """With those of the weights whose terms it has by now."""
    if isinstance(weights, Mapping):
        names = {term.name for term in objective.terms}
        weights = {name: weight for name, weight in weights.items() if name in names}
    return objective.with_weights(weights)  # type: ignore[arg-type]


def warmup_share(share: float) -> Callable[[Callable[P, Objective]], Callable[P, Objective]]:
    """Say of a row, below its `@row`, what share of a run's epochs its warm-up is where no number is given."""

    def noted(constructor: Callable[P, Objective]) -> Callable[P, Objective]:
        constructor.warmup_share = share  # type: ignore[attr-defined]
        return constructor

    return noted


def of_epochs(name: str, epochs: int, given: Mapping[str, object]) -> dict[str, int]:
    """The settings that the objective called `name` takes from a run of `epochs`, less those that are given."""
    share = getattr(ROWS[name], "warmup_share", None)
    found = {} if share is None else {"warmup_epochs": round(share * epochs)}
    if takes(name, "ramp_epochs", given):
        found["ramp_epochs"] = epochs
    return {setting: value for setting, value in found.items() if given.get(setting) is None}


def takes(name: str, setting: str, chosen: Mapping[str, object]) -> bool:
    """Whether the objective called `name` has an argument `setting`, of its own or of one of its chosen plug-ins."""
    if setting in inspect.signature(ROWS[name]).parameters:
        return True
    return any(setting in plugin_settings(p) for p in PLUGINS if _is_chosen(chosen.get(p)))


def plugin(function: Callable[P, Objective]) -> Callable[P, Objective]:
    """Register a plug-in under its own name: (objective, value, further settings by keyword) -> objective."""
    PLUGINS[function.__name__] = function
    return function


def plugin_settings(name: str) -> list[str]:
    """The further settings of the plug-in called `name`."""
    parameters = inspect.signature(PLUGINS[name]).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def _is_chosen(value: object) -> bool:
    return value is not None and value is not False


def build(name: str, **settings: object) -> Objective:
    """Build the objective called `name`, such as `build("iad2", beta=0.1)`.

    Raises:
        ValueError: no objective has that name (the nearest one is suggested), or a value is out of range.
        TypeError: the objective has no such argument and chooses no plug-in that has, or a value is of the wrong kind.
    """
    check_name("name", name)
    if name not in ROWS:
        raise ValueError(unknown("objective", name, ROWS))
    return ROWS[name](**settings)


def as_objective(objective: "str | Objective", **settings: object) -> Objective:
    """Return `objective` itself, or build the one of that name."""
    if isinstance(objective, Objective):
        if settings:
            raise TypeError(
                f"settings {sorted(settings)} go to an objective given by name, not to a finished one"
            )
        return objective
    return build(objective, **settings)
