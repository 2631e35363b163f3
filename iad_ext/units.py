"""Pixel units of [0, 1] as they are spoken of: 8/255."""

from fractions import Fraction
from typing import Annotated

import tyro


def parse_fraction(text: str) -> float:
    """Read `8/255` or `0.031`.

    Raises:
        ValueError: it is neither.
    """
    try:
        return float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"expected a number or a fraction such as 8/255, got {text!r}") from None


def show_fraction(value: float) -> str:
    """Write pixel units as they are spoken of: `8/255` where that is exact to rounding, but 0.2 for 51/255."""
    steps, decimal = value * 255, f"{value:g}"
    whole = value and abs(steps - round(steps)) < 1e-9 and len(decimal) > len("0.2")
    return f"{round(steps)}/255" if whole else decimal


Pixels = Annotated[
    float,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PIXELS",
        instance_from_str=lambda args: parse_fraction(args[0]),
        is_instance=lambda value: isinstance(value, float | int),
        str_from_instance=lambda value: [show_fraction(value)],
    ),
]
