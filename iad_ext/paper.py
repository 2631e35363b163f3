"""The paper's numbers, to stand beside a run's: every figure of Tables 2 to 14, as printed there.

Source: Zhu et al., "Reliable Adversarial Distillation with Unreliable Teachers", ICLR 2022.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iad_ext.names import unknown

Row = Mapping[str, Any]


@functools.cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return content


def source() -> Mapping[str, str]:
    """Title, authors, venue and address of the paper."""
    found: Mapping[str, str] = _content()["source"]
    return found


def tables() -> tuple[str, ...]:
    """The tables' names: `table2` … `table14`."""
    return tuple(_content()["tables"])


def rows(table: str) -> Sequence[Row]:
    """The rows of a table.

    Each has `data`, what tells it from the others (`teacher`, `method`, `beta` …), and `numbers`: accuracies in
    percent by measure (`natural`, `fgsm`, `pgd20`, `cw_inf`, `aa`), in Table 14 `seconds_per_epoch` and `gpu_mib`.

    Raises:
        ValueError: there is no such table.
    """
    known = _content()["tables"]
    if table not in known:
        raise ValueError(unknown("table of the paper", table, known))
    found: Sequence[Row] = known[table]["rows"]
    return found


def numbers(table: str, **what: Any) -> Mapping[str, float]:
    """The numbers of the one row that has these values, such as `numbers("table5", method="IAD-I", beta=0.1)`.

    Raises:
        ValueError: no row of the table has them, or more than one.
    """
    found = [row for row in rows(table) if all(row.get(key) == value for key, value in what.items())]
    if len(found) != 1:
        asked = ", ".join(f"{key}={value!r}" for key, value in what.items())
        raise ValueError(f"{table} of the paper has {len(found) or 'no'} rows with {asked}; expected one")
    numbers: Mapping[str, float] = found[0]["numbers"]
    return numbers
