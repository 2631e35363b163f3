"""HTML that is safe by construction: whatever is not `Html` is escaped, so that names out of files stay text."""

import html
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias, TypeGuard

from iad_ext.provenance import versions

# what a browser is asked to refuse: pages carry no script and fetch nothing
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Child: TypeAlias = "object | Iterable[object]"
VOID = ("img", "meta", "br")


def tag(name: str, *children: Child, **attributes: object) -> Html:
    """An element. Children are escaped unless they are `Html`; lists are taken apart, None is left out.

    `class_` stands for `class`, `_` in a name for `-`; an attribute that is None is left out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{joined(children)}</{name}>")


def joined(children: Child) -> Html:
    """Children one after the other."""
    if children is None:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, list | tuple):
        return Html("".join(joined(child) for child in children))
    return Html(html.escape(str(children)))


def page(title: str, *body: Child, made_of: str = "the files in this folder") -> str:
    """A whole page: its style inside, nothing fetched, no script."""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("title", title),
        Html(f"<style>{style}</style>"),
    )
    foot = tag("footer", f"Made by iad-ext {versions()['iad-ext']} from {made_of} alone.")
    return f'<!DOCTYPE html>\n<html lang="en">{head}{tag("body", tag("main", *body), foot)}</html>\n'


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value out of a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: object, digits: int = 1) -> str:
    """A number with so many decimals; a dash for what is none."""
    return f"{value:.{digits}f}".replace("-", "−") if is_number(value) else "–"


def count(value: object) -> str:
    """A whole number with commas; a dash for what is none."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else "–"


def share(value: float) -> str:
    """A place on a scale of 0 to 100 as CSS."""
    return f"{min(100.0, max(0.0, value)):.2f}%"


def section(title: str, *children: Child, intro: Child = None, id_: str | None = None) -> Html:
    """A part of a page under its heading."""
    lead = tag("p", intro, class_="intro") if intro else None
    return tag("section", tag("h2", title), lead, *children, id_=id_)


def badge(text: object, kind: str) -> Html:
    """A word in a coloured pill: `good`, `bad`, `warn` or `plain`; a sign says the same without colour."""
    signs = {"good": "✓", "bad": "✗", "warn": "!", "plain": "·"}
    return tag("span", tag("span", signs[kind], aria_hidden="true"), " ", text, class_=f"badge {kind}")


def notes(found: Iterable[tuple[str, Child]]) -> Html | None:
    """Warnings (`warn`) and remarks (`plain`), one a line."""
    lines = [tag("li", text, class_=kind) for kind, text in found]
    return tag("ul", *lines, class_="notes") if lines else None
