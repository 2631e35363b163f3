"""Lines for a terminal: no wider than it is, their continuations under their beginning."""

import shutil
import textwrap

WIDEST = 110  # longer lines are hard to read, however wide the terminal


def width() -> int:
    """Columns to write in: the terminal's, 80 where there is none, at most `WIDEST`."""
    return min(WIDEST, shutil.get_terminal_size().columns)


def wrapped(text: str, *, first: str = "", rest: str = "") -> str:
    """`text` in lines of `width()` that break at spaces only.

    Args:
        text: one paragraph.
        first: what the first line begins with.
        rest: what the others begin with.
    """
    return textwrap.fill(
        text,
        width(),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def titled(title: str, text: str, *, column: int) -> str:
    """`text` from `column` on, `title` before its first line."""
    return wrapped(text, first=title.ljust(column), rest=" " * column)
