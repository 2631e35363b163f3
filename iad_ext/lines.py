"""Lines for a terminal: no wider than it is, their continuations under their beginning."""

import os
import shutil
import sys
import textwrap
import time
from typing import NoReturn

WIDEST = 110  # longer lines are hard to read, however wide the terminal
AFTER_THE_FIRST = 5.0  # seconds; a launcher ends the others within a tenth of one after the first


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


def fail(code: int, error: object) -> NoReturn:
    """Say what is wrong, and exit.

    Several processes of one launcher mostly fail of the same: the first on a machine says it, and the launcher ends
    the others while they hold back. One that fails alone is heard all the same.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(AFTER_THE_FIRST)
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(code)
