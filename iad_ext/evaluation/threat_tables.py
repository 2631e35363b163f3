"""What `evaluate_threats` measured as tables: for a terminal of 80 columns, and in Markdown."""

import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from iad_ext.units import show_fraction

Row = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: a line above it.
        head: the columns' names; the first is that of the rows.
        rows: of cells.
        note: a sentence below it; empty for none.
    """

    title: str
    head: Row
    rows: Sequence[Row]
    note: str = ""

    def text(self, width: int) -> str:
        """Plain text, at most `width` columns wide: what does not fit goes on below, with the first column again."""
        cells = [self.head, *self.rows]
        widths = [max(_wide(row[k]) for row in cells) for k in range(len(self.head))]
        blocks: list[list[int]] = [[]]
        for column in range(1, len(widths)):
            block = [*blocks[-1], column]
            if blocks[-1] and widths[0] + sum(2 + widths[k] for k in block) > width:
                blocks.append([column])
            else:
                blocks[-1] = block
        parts = ["\n".join(_aligned(cells, widths, block)) for block in blocks]
        return "\n".join([textwrap.fill(self.title, width), "\n\n".join(parts)])

    def markdown(self) -> str:
        """A Markdown table under its title."""
        rule = ("---", *("---:" for _ in self.head[1:]))
        escaped = [tuple(cell.replace("|", "\\|") for cell in row) for row in (self.head, rule, *self.rows)]
        lines = [f"## {self.title}", "", *(f"| {' | '.join(map(str.strip, row))} |" for row in escaped), ""]
        return "\n".join([*lines, *([self.note, ""] if self.note else [])])


def _aligned(cells: Sequence[Row], widths: Sequence[int], columns: Sequence[int]) -> list[str]:
    return [
        "  ".join(
            [
                row[0] + " " * (widths[0] - _wide(row[0])),
                *(" " * (widths[k] - _wide(row[k])) + row[k] for k in columns),
            ]
        ).rstrip()
        for row in cells
    ]


def _wide(text: str) -> int:
    """How many columns of a terminal it takes: the tilde of x̃ takes none of its own."""
    return sum(not unicodedata.combining(character) for character in text)


def letters(names: Sequence[str]) -> dict[str, str]:
    """A letter for each network, so that a column is narrow: A … Z, then AA, AB and so on."""
    return {
        name: (ascii_uppercase[k // 26 - 1] if k >= 26 else "") + ascii_uppercase[k % 26]
        for k, name in enumerate(names)
    }


def tables(result: Mapping[str, Any]) -> list[Table]:
    """The tables of what `evaluate_threats` returned, one a part; networks go by their `letters`."""
    parts = {
        "transfer": _transfer,
        "unseen": _unseen,
        "corruptions": _corruptions,
        "calibration": _calibration,
    }
    return [make(result) for part, make in parts.items() if part in result]


def _transfer(result: Mapping[str, Any]) -> Table:
    short, found = letters(result["networks"]), result["transfer"]
    rows = [
        (
            short[source],
            *(f"{value:.1f}" + ("*" if target == source else " ") for target, value in answers.items()),
        )
        for source, answers in found["accuracy"].items()
    ]
    natural = ("natural", *(f"{found['natural'][name]:.1f} " for name in result["networks"]))
    eps = show_fraction(found["protocol"]["eps"])
    ends = [end for answers in found["interval"]["accuracy"].values() for end in answers.values()]
    widest = max(high - low for low, high in ends) / 2
    return Table(
        f"Transfer: accuracy (%) of the column under PGD-20 of {eps} on the row, n={found['n']}",
        ("made on", *(f"{short[name]} " for name in result["networks"])),
        [*rows, natural],
        f"* is the network's own attack, white-box. 95% intervals are up to ±{widest:.1f} points.",
    )


def _unseen(result: Mapping[str, Any]) -> Table:
    short, protocol = letters(result["networks"]), result["protocol"]
    rows = []
    for name in result["networks"]:
        found = result["unseen"][name]
        cells = [_with_interval(found[threat], found["interval"][threat]) for threat in ("linf", "l2")]
        seen = result.get("transfer")
        before = (
            [
                _with_interval(seen["natural"][name], seen["interval"]["natural"][name]),
                _with_interval(seen["accuracy"][name][name], seen["interval"]["accuracy"][name][name]),
            ]
            if seen
            else []
        )
        rows.append((short[name], *before, *cells))
    head = ("", *(("natural", f"L∞ {show_fraction(protocol['eps'])}") if "transfer" in result else ()))
    return Table(
        f"Unseen threats: accuracy (%) under PGD-20 and its 95% interval, n={result['n']}",
        (*head, f"L∞ {show_fraction(protocol['linf_eps'])}", f"L2 {show_fraction(protocol['l2_eps'])}"),
        rows,
    )


def _corruptions(result: Mapping[str, Any]) -> Table:
    short, found = letters(result["networks"]), result["corruptions"]
    of = [found["networks"][name] for name in result["networks"]]
    kinds = list(found["protocol"]["corruptions"])
    severities = found["protocol"]["severities"]
    rows = [(kind, *(f"{network['kinds'][kind]['mean']:.1f}" for network in of)) for kind in kinds]
    ends = [
        (title, *(f"{network['interval'][k]:.1f}" for network in of))
        for k, title in enumerate(("95% from", "to"))
    ]
    size = found["protocol"]["image_size"]
    other = f" These images are {size[0]} × {size[1]}." if size != [32, 32] else ""
    return Table(
        f"Corruptions: accuracy (%), mean of severities {', '.join(map(str, severities))}, n={result['n']}",
        ("corruption", *short.values()),
        [*rows, ("mean", *(f"{network['mean']:.1f}" for network in of)), *ends],
        f"Corruptions are {found['protocol']['note']}. The constants are for 32 × 32 pixels.{other}",
    )


def _calibration(result: Mapping[str, Any]) -> Table:
    short = letters(result["networks"])
    rows = []
    for name in result["networks"]:
        found = result["calibration"][name]
        for key, what in (
            ("student_nat", "itself on x"),
            ("student_adv", "itself on x̃"),
            ("teacher_nat", "teacher on x"),
            ("teacher_adv", "teacher on x̃"),
        ):
            if key in found:
                one = found[key]
                cells = (
                    f"{one['by_chance']:.1f}",
                    f"{one['classes']:.1f}",
                    f"{one['nll']:.2f}",
                    f"{one['brier']:.2f}",
                )
                rows.append(
                    (f"{short[name]} {what}", *_forecast(one, one["confidence"], one["ece"], "ece"), *cells)
                )
        for one in found.get("trust", ()):
            power = "" if one["beta"] == 1 else f"^{one['beta']:g}"
            rows.append(
                (
                    f"{short[name]} α = P(y|x̃){power}",
                    *_forecast(one, one["trust"], one["error"], "error"),
                    *("–",) * 4,
                )
            )
    return Table(
        f"Calibration (%): forecast and how often it came true, n={result['n']}",
        ("", "right", "sure", "ECE", "95%", "chance", "classes", "NLL", "Brier"),
        rows,
        "x̃ is PGD-20 on the network itself, also where its teacher is asked. sure: mean largest probability, or mean "
        "α; ECE: expected calibration error of it, 15 bins, its interval without the bias of finitely many images; "
        "chance: what a calibrated network stays below in 19 of 20 such samples; classes: the error of the probability "
        "of every class. In the rows of α, right is the teacher's accuracy on x̃: "
        "α knows the true class, and is no calibrated forecast even of a calibrated teacher.",
    )


def _forecast(found: Mapping[str, Any], sure: float, error: float, name: str) -> Row:
    low, high = found["interval"][name]
    return f"{found['accuracy']:.1f}", f"{sure:.1f}", f"{error:.1f}", f"{low:.1f}–{high:.1f}"


def _with_interval(value: float, ends: Sequence[float]) -> str:
    return f"{value:.1f} ({ends[0]:.1f}–{ends[1]:.1f})"


def networks_table(result: Mapping[str, Any], facts: Mapping[str, Mapping[str, Any]]) -> Table:
    """Which network goes by which letter, and what it is.

    Args:
        result: what `evaluate_threats` returned.
        facts: by network, `of` (best or last), `architecture` and `weights`.
    """
    short = letters(result["networks"])
    rows = []
    for name in (*short, *(name for name in facts if name not in short)):
        of = facts[name]
        rows.append(
            (
                short.get(name, "–"),
                name,
                of["of"] or "–",
                str(of["architecture"]),
                result["teachers"].get(name, "–"),
                of["weights"][:12],
            )
        )
    return Table("Networks", ("", "network", "of run", "architecture", "teacher", "SHA-256"), rows)


def page(
    result: Mapping[str, Any],
    facts: Mapping[str, Mapping[str, Any]],
    data: Mapping[str, Any],
    figures: Sequence[str],
) -> str:
    """All tables as one Markdown page, under what they were measured on.

    Args:
        result: what `evaluate_threats` returned.
        facts: as for `networks_table`.
        data: the images' provenance.
        figures: files beside the page, to be shown.
    """
    protocol, note = result["protocol"], data.get("encoding_note")
    about = f"{result['n']} test images of {data['name']}{f' ({note})' if note else ''}"
    lines = [
        "# Beyond one threat",
        "",
        f"{about}; seed {protocol['seed']}, batches of {protocol['batch_size']}, {protocol['hardware']}, "
        f"torch {protocol['versions']['torch']}.",
        "",
        *(f"- {flag['flag']}: {flag['detail']}." for flag in result["flags"]),
        *([""] if result["flags"] else []),
    ]
    parts = [table.markdown() for table in (networks_table(result, facts), *tables(result))]
    shown = [f"![{figure.partition('.')[0]}]({figure})\n" for figure in figures]
    return "\n".join([*lines, *parts, *shown])
