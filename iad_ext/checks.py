"""Arguments of the wrong kind or out of range are refused by name, before anything is done with them."""

import math
from collections.abc import Mapping

LARGEST = 2**63  # what torch can hold as an integer


def check_number(
    name: str,
    value: object,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Raise a ValueError unless `value` is a finite number in the range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    if not (at_least <= value <= at_most and above < value < below):
        low = f"above {above:g}" if above > -math.inf else f"at least {at_least:g}"
        high = f" and at most {at_most:g}" if at_most < math.inf else ""
        high = f" and below {below:g}" if below < math.inf else high
        raise ValueError(f"{name} must be {low}{high}, got {value:g}")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def check_whole(name: str, value: object, *, at_least: int, hint: str = "") -> None:
    """Raise a TypeError unless `value` is an integer, a ValueError if it is below the least or beyond 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer of at least {at_least}; got {value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}; got {value}{hint}")
    if value >= LARGEST:
        raise ValueError(f"{name} must be less than 2^63; got {value}")


def check_flag(name: str, value: object) -> None:
    """Raise a TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_name(name: str, value: object) -> None:
    """Raise a TypeError unless `value` is a string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a name, as a string; got {value!r}")


def check_mapping(name: str, value: object, example: str) -> None:
    """Raise a TypeError unless `value` is a mapping from names."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} must be a mapping from names, such as {example}; got {value!r}")
