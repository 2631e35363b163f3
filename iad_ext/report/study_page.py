"""A study's page: many runs beside each other and beside the paper's, what differs, and which claims hold."""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from iad_ext.evaluation import TITLES
from iad_ext.plots import MARKS, Run, relation_svg
from iad_ext.report.html import Html, badge, count, is_number, notes, number, page, section, share, tag
from iad_ext.report.reading import Sections, bar, mapping, read

VERDICTS = {"holds": "good", "fails": "bad", "cannot be told": "plain"}
DIFFERENCES = {"higher": "good", "lower": "bad", "tie": "plain"}


def html_of(folder: Path) -> str:
    """The page of a study's folder.

    Raises:
        ValueError: its `study.json` cannot be read at all.
    """
    study, sections = read(folder, "study.json"), Sections()
    made = [
        sections.make("the claims", lambda: _claims(study)),
        *(
            sections.make(f"the results of {which}", functools.partial(_table, study, which, folder))
            for which in ("best", "last")
        ),
        sections.make("the comparisons", lambda: _comparisons(study)),
        sections.make("the relations", lambda: _relations(study)),
        sections.make("the curves", lambda: _curves(study, folder, sections)),
        sections.make("the settings", lambda: _pairs("Settings", study.get("settings"))),
        sections.make("the provenance", lambda: _pairs("Provenance", study.get("provenance"))),
    ]
    title = str(study.get("title") or study.get("name") or "Study")
    head = sections.make("the headline", lambda: _header(study, title))
    doubts = sections.make("the warnings", lambda: notes(_doubts(study)))
    broken = notes(("bad", line) for line in sections.broken)
    return page(title, tag("header", head, broken, doubts), *made)


def _rows(study: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [mapping(row) for row in study.get("rows") or ()]


def _measures(study: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in study.get("measures") or ()]


def _label(row: Mapping[str, Any]) -> str:
    return str(row.get("label") or row.get("method"))


def _doubts(study: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """What a reader must know before believing the numbers."""
    found = mapping(study.get("provenance"))
    for row in _rows(study):
        if row.get("masking"):
            yield "warn", f"signs of masked gradients in {_label(row)}: {', '.join(map(str, row['masking']))}"
    if "test" in (found.get("selection") or ()):
        yield (
            "warn",
            "checkpoints were chosen on the test images, as in the paper: their numbers flatter them",
        )
    for note in found.get("data_notes") or ():
        yield "warn", f"images: {note}"
    runs, wanted = found.get("runs"), found.get("runs_wanted")
    if is_number(runs) and is_number(wanted) and runs < wanted:
        yield "warn", f"{runs} of {wanted} runs are finished"
    if study.get("note"):
        yield "plain", study["note"]
    points = mapping(study.get("settings")).get("detectable_points")
    if is_number(points):
        yield "plain", f"differences below about {number(points)} points are too small for this study to tell"


def _header(study: Mapping[str, Any], title: str) -> Html:
    theirs = mapping(study.get("paper"))
    runs = sum(len(row.get("runs") or ()) for row in _rows(study))
    verdicts = [str(mapping(claim).get("verdict")) for claim in study.get("claims") or ()]
    said = ", ".join(f"{verdicts.count(v)} {v}" for v in VERDICTS if v in verdicts)
    chips = {
        "study": study.get("name"),
        "paper": ", ".join(_named(theirs[key]) for key in ("table", "source") if theirs.get(key)) or None,
        "runs": runs,
        "claims": said or None,
    }
    shown = [tag("li", tag("b", f"{name} "), value) for name, value in chips.items() if value is not None]
    return tag(
        "div",
        tag("p", "Study", class_="kicker"),
        tag("h1", title),
        tag("p", _sentence(study, runs), class_="lead"),
        tag("ul", *shown, class_="chips"),
    )


def _named(table: object) -> str:
    """`Table 2` for `table2`."""
    return re.sub(r"^table(?=\d)", "Table ", str(table))


def _sentence(study: Mapping[str, Any], runs: int) -> list[object]:
    """How much was run, and which row leads under the strongest attack that was measured."""
    rows, measures = _rows(study), _measures(study)
    measure = next((m for m in ("aa", "cw_inf", "pgd20", "natural") if m in measures), "natural")
    held = [
        (float(cell["mean"]), row)
        for row in rows
        if is_number((cell := _cell(row, "best", measure)).get("mean"))
    ]
    began = f"{len(rows)} settings in {runs} runs"
    highest = sorted((value for value, _ in held), reverse=True)
    # one row does not lead, nor one of two equals, nor are two data sets one race
    if len(held) < 2 or highest[0] == highest[1] or len({str(row.get("data")) for row in rows}) > 1:
        return [f"{began}."]
    value, row = max(held, key=lambda pair: pair[0])
    of = TITLES.get(measure, measure)
    return [
        f"{began}. The highest mean accuracy under {of} is that of ",
        tag("strong", f"{_label(row)}: {value:.1f}%"),
        f" (best checkpoint, {_over(_cell(row, 'best', measure))}). "
        "Whether it is more than chance, the comparisons say.",
    ]


def _cell(row: Mapping[str, Any], which: str, measure: str | None) -> Mapping[str, Any]:
    return mapping(mapping(mapping(row.get("checkpoints")).get(which)).get(str(measure)))


def _over(cell: Mapping[str, Any]) -> str:
    values = cell.get("values")
    seeds = len(values) if isinstance(values, list) else 0
    return f"{seeds} seed{'' if seeds == 1 else 's'}, n = {count(cell.get('n'))}"


# ---------------------------------------------------------------------------------------------- parts


def _claims(study: Mapping[str, Any]) -> Html | None:
    cards = [
        tag(
            "div",
            badge(verdict, VERDICTS.get(verdict, "plain")),
            tag("p", tag("b", claim.get("claim"))),
            tag("p", claim.get("why"), class_="soft"),
            class_="card",
        )
        for claim in map(mapping, study.get("claims") or ())
        for verdict in [str(claim.get("verdict"))]
    ]
    return section("What the paper claims", tag("div", *cards, class_="cards")) if cards else None


def _table(study: Mapping[str, Any], which: str, folder: Path) -> Html | None:
    measures = [m for m in _measures(study) if any(_cell(row, which, m) for row in _rows(study))]
    if not measures:
        return None
    head = tag(
        "tr", tag("th", "", scope="col"), *(tag("th", TITLES.get(m, m), scope="col") for m in measures)
    )
    bodies = []
    for row in _rows(study):
        theirs = mapping(row.get("paper"))
        cells = [_shown(_cell(row, which, m), theirs.get(m), percent=m in TITLES) for m in measures]
        bodies.append(tag("tr", tag("th", _label(row), _of_row(row, folder), scope="row"), *cells))
    table = tag("div", tag("table", tag("thead", head), tag("tbody", *bodies)), class_="scroll")
    return section(
        f"Results, {which} checkpoint",
        table,
        intro="Accuracies in percent of the test images: mean ± standard deviation over seeds, the paper's under it.",
    )


def _of_row(row: Mapping[str, Any], folder: Path) -> Html:
    teacher = row.get("teacher")
    links: list[object] = []
    for k, run in enumerate(row.get("runs") or ()):
        there = str(run)
        # quoted, a path has no scheme: it leads into this folder's neighbourhood or nowhere
        made = (folder / there / "report.html").is_file()
        links += [
            " ",
            tag("a", f"run {k + 1}", href=quote(f"{there}/report.html")) if made else f"run {k + 1}",
        ]
    data = row.get("data")
    said = [str(data)] * bool(data) + [f"teacher {teacher}"] * bool(teacher)
    return tag("small", " · ".join(said) + " ·" if said else "", *links)


def _shown(cell: Mapping[str, Any], theirs: object, *, percent: bool) -> Html:
    if not is_number(cell.get("mean")):
        return tag("td", "–", tag("small", f"paper {number(theirs, 2)}") if is_number(theirs) else None)
    values = cell.get("values")
    several = isinstance(values, list) and len(values) > 1
    return tag(
        "td",
        number(cell["mean"], 2),
        f" ± {number(cell.get('std'), 2)}" if several else "",
        bar(cell["mean"]) if percent else None,
        tag("small", _over(cell)),
        tag("small", f"paper {number(theirs, 2)}") if is_number(theirs) else None,
    )


def _comparisons(study: Mapping[str, Any]) -> Html | None:
    found = [mapping(one) for one in study.get("comparisons") or ()]
    if not found:
        return None
    # one scale for what has one unit
    reach: dict[str, float] = {}
    for one in found:
        bounds = [abs(one[key]) for key in ("low", "high", "difference") if is_number(one.get(key))]
        reach[_unit(one)] = max([reach.get(_unit(one), 1e-9), *bounds])
    rows = [_comparison(one, reach[_unit(one)]) for one in found]
    titles = ("", "difference", "− 0 +", "verdict", "McNemar p", "seeds, n")
    head = tag("tr", *(tag("th", title, class_="where" if "0" in title else None) for title in titles))
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="forest")
    return section(
        "Comparisons",
        tag("div", table, class_="scroll"),
        intro="The first less the second, accuracies in percentage points, with 95% intervals. A tie means that the "
        "interval holds 0: nothing is shown by it, either way.",
    )


def _unit(one: Mapping[str, Any]) -> str:
    measure = str(one.get("measure"))
    return "points" if measure in TITLES else measure


def _comparison(one: Mapping[str, Any], reach: float) -> Html:
    low, high, middle = (one.get(key) for key in ("low", "high", "difference"))
    marks = [tag("span", class_="zero", style="left:50%")]
    said = f"{middle:+.2f}".replace("-", "−") if is_number(middle) else "–"
    if is_number(low) and is_number(high):
        first, last = (50 + 50 * bound / reach for bound in (low, high))
        marks.append(tag("span", class_="band", style=f"left:{share(first)};width:{share(last - first)}"))
    if is_number(middle):
        marks.append(tag("span", class_="dot", style=f"left:{share(50 + 50 * middle / reach)}"))
    verdict, measure = str(one.get("verdict")), str(one.get("measure"))
    seeds = one.get("seeds")
    held = len(seeds) if isinstance(seeds, list) else seeds
    where = (one.get("data"), TITLES.get(measure, measure), one.get("checkpoint"))
    return tag(
        "tr",
        tag(
            "th",
            f"{one.get('a')} against {one.get('b')}",
            tag("small", ", ".join(map(str, filter(None, where)))),
            scope="row",
        ),
        tag("td", said, tag("small", f"{number(low, 2)} to {number(high, 2)}")),
        tag("td", tag("div", *marks, class_="track", aria_hidden="true"), class_="where"),
        tag("td", badge(verdict, DIFFERENCES.get(verdict, "plain"))),
        tag("td", number(one.get("mcnemar_p"), 3)),
        tag("td", f"{count(held)}, {count(one.get('n'))}"),
    )


def _relations(study: Mapping[str, Any]) -> Html | None:
    """One quantity of the rows against another, as far as rows have both."""
    drawn = [
        tag(
            "figure",
            Html(relation_svg(found)),
            tag("figcaption", tag("b", f"{found['y_title']} against {found['x_title']}. "), _few(found)),
        )
        for found in map(mapping, study.get("relations") or ())
        if found.get("points")
    ]
    intro = (
        "A point a row of the table, named by its teacher; ρ is Spearman's rank correlation, n counts rows."
    )
    return section("Relations", tag("div", *drawn, class_="figures"), intro=intro) if drawn else None


def _few(found: Mapping[str, Any]) -> str:
    """What so few points can tell."""
    parts = []
    for held in map(mapping, found.get("correlations") or ()):
        p, least = held.get("p"), held.get("least")
        if is_number(p):
            from_on = f", told from chance only from |ρ| = {number(least, 2)} on" if is_number(least) else ""
            parts.append(f"{held.get('called')}: p = {number(p, 3)}{from_on}")
    return "; ".join(parts)


def _curves(study: Mapping[str, Any], folder: Path, sections: Sections) -> Html | None:
    """Validation accuracy by epoch, the first run of each row."""
    runs: list[Run] = []
    for row in _rows(study):
        first = next(iter(row.get("runs") or ()), None)
        if first is not None and (folder / str(first) / "settings.yaml").is_file():
            try:
                runs.append(Run.read(folder / str(first), _label(row)))
            except (ValueError, OSError) as error:
                sections.broken.append(f"the run {first} cannot be shown: {error}")
    if not runs:
        return None
    shown = runs[: len(MARKS)]
    left = f" The first {len(shown)} of {len(runs)} settings." if len(shown) < len(runs) else ""
    figure = sections.figure(
        "figure3c",
        shown,
        [
            tag("b", "Figure 3, right. "),
            f"Validation PGD-10 accuracy by epoch, the first run of each setting.{left}",
        ],
    )
    return section("Curves", tag("div", figure, class_="figures")) if figure else None


def _pairs(title: str, held: object) -> Html | None:
    flat = _flat(mapping(held))
    if not flat:
        return None
    pairs = [part for name, value in flat for part in (tag("dt", name), tag("dd", value))]
    listing = tag("div", tag("dl", *pairs), class_="card")
    return section(title, tag("details", tag("summary", f"{len(flat)} entries"), listing))


def _flat(held: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in held.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{before}{name}.")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            found.append((f"{before}{name}", ", ".join(map(str, value))))
        else:
            found.append((f"{before}{name}", "–" if value is None else str(value)))
    return found
