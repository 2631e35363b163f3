"""A study's page: many runs beside each other and beside the paper's, what differs, and which claims hold."""

import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from iad_ext.evaluation import TITLES
from iad_ext.plots import MARKS, Run, relation_svg
from iad_ext.report import pictures
from iad_ext.report.html import Html, badge, count, is_number, notes, number, page, section, share, tag
from iad_ext.report.reading import COSTS, Sections, bar, is_known, mapping, read

VERDICTS = {"holds": "good", "fails": "bad", "cannot be told": "plain"}
DIFFERENCES = {"higher": "good", "lower": "bad", "tie": "plain"}
LESS_IS_BETTER = {"higher": "bad", "lower": "good", "tie": "plain"}
PICTURES = 3  # of each group of a row; its run's own page has them all
UNFOLDED = 6  # rows whose figures are shown without being asked for
UNFOLDED_DIFFERENCES = 24
LEAST_P = 0.001  # below it no p-value is told: three decimals would be 0.000


@dataclass(frozen=True)
class First:
    """The first run of a row, which the page's figures and images are of.

    Attributes:
        row: of `study.json`.
        place: the run's folder, from the study's.
        run: what it holds.
    """

    row: Mapping[str, Any]
    place: str
    run: Run


def html_of(folder: Path) -> str:
    """The page of a study's folder.

    Raises:
        ValueError: its `study.json` cannot be read at all.
    """
    study, sections = read(folder, "study.json"), Sections()
    firsts = sections.make("the runs", lambda: _first_runs(study, folder, sections)) or []
    made = [
        sections.make("the claims", lambda: _claims(study)),
        *(
            sections.make(f"the results of {which}", functools.partial(_table, study, which, folder))
            for which in ("best", "last")
        ),
        sections.make("the comparisons", lambda: _comparisons(study)),
        sections.make("the relations", lambda: _relations(study)),
        sections.make("the figures", lambda: _figures(study, firsts, sections)),
        sections.make("the curves", lambda: _curves(study, firsts, sections)),
        sections.make("the trust", lambda: _trust(firsts, sections)),
        sections.make("the images", lambda: _images(firsts, folder, sections)),
        sections.make("the settings", lambda: _pairs("Settings", study.get("settings"))),
        sections.make("the provenance", lambda: _pairs("Provenance", study.get("provenance"))),
    ]
    title = str(study.get("title") or study.get("name") or "Study")
    head = sections.make("the headline", lambda: _header(study, title))
    doubts = sections.make("the warnings", lambda: notes(_doubts(study)))
    broken = notes(("bad", line) for line in sections.broken)
    header = tag("header", head, broken, doubts)
    return page(title, header, *made, made_of="the files in this folder and in those of its runs")


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
        yield (
            "plain",
            f"by the measure with the fewest images, a difference of about {number(points)} points would be told from "
            "chance if 15 of 100 images are apart; of rows that differ on fewer, smaller ones are",
        )


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
    return [
        f"{began}. The highest mean accuracy under {_title(measure)} is that of ",
        tag("strong", f"{_label(row)}: {value:.1f}%"),
        f" (best checkpoint, {_over(_cell(row, 'best', measure))}). "
        "Whether it is more than chance, the comparisons say.",
    ]


def _cell(row: Mapping[str, Any], which: str, measure: str | None) -> Mapping[str, Any]:
    return mapping(mapping(mapping(row.get("checkpoints")).get(which)).get(str(measure)))


def _first_runs(study: Mapping[str, Any], folder: Path, sections: Sections) -> list[First]:
    """The first run of each row that has begun one."""
    found = []
    for row in _rows(study):
        place = str(next(iter(row.get("runs") or ()), ""))
        if place and (folder / place / "settings.yaml").is_file():
            try:
                found.append(First(row, place, Run.read(folder / place, _label(row))))
            except (ValueError, OSError) as error:
                sections.broken.append(f"the run {place} cannot be shown: {error}")
    return found


def _by_data(study: Mapping[str, Any], firsts: Sequence[First]) -> dict[str, list[First]]:
    """Data sets are no race: each has figures of its own, whether or not it has runs. The only one has no name here."""
    declared = mapping(study.get("settings")).get("data")
    found: dict[str, list[First]] = {str(name): [] for name in declared} if isinstance(declared, list) else {}
    for first in firsts:
        found.setdefault(str(first.row.get("data") or ""), []).append(first)
    return found if len(found) > 1 else {"": list(firsts)}


def _over(cell: Mapping[str, Any]) -> str:
    values = cell.get("values")
    seeds = len(values) if isinstance(values, list) else 0
    n = f", n = {count(cell['n'])}" if is_number(cell.get("n")) else ""
    return f"{seeds} seed{'' if seeds == 1 else 's'}{n}"


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
    return section("Claims", tag("div", *cards, class_="cards")) if cards else None


def _table(study: Mapping[str, Any], which: str, folder: Path) -> Html | None:
    measures = [m for m in _measures(study) if any(_cell(row, which, m) for row in _rows(study))]
    accuracies = any(m in TITLES for m in _measures(study))
    if not measures or (which == "best" and not accuracies):  # costs are of no checkpoint
        return None
    head = tag("tr", tag("th", "", scope="col"), *(tag("th", _title(m), scope="col") for m in measures))
    bodies = []
    for group, rows in itertools.groupby(_rows(study), key=lambda row: row.get("group")):
        lines = []
        if group is not None:
            heading = tag("th", str(group), scope="rowgroup", colspan=str(len(measures) + 1))
            lines.append(tag("tr", heading, class_="group"))
        for row in rows:
            theirs = mapping(row.get("paper"))
            cells = [_shown(_cell(row, which, m), theirs.get(m), percent=m in TITLES) for m in measures]
            lines.append(tag("tr", tag("th", _label(row), _of_row(row, folder), scope="row"), *cells))
        bodies.append(tag("tbody", *lines))
    table = tag("div", tag("table", tag("thead", head), *bodies), class_="scroll")
    what = "Accuracies in percent of the test images: mean" if accuracies else "Mean"
    printed = any(mapping(row.get("paper")) for row in _rows(study))
    return section(
        f"Results, {which} checkpoint" if accuracies else "Results",
        table,
        intro=f"{what} ± standard deviation over seeds{', the paper’s under it' if printed else ''}.",
    )


def _title(measure: str) -> str:
    return TITLES.get(measure) or COSTS.get(measure, measure)


def _of_row(row: Mapping[str, Any], folder: Path) -> Html:
    teacher = row.get("teacher")
    runs = enumerate(row.get("runs") or (), start=1)
    links = [[" ", _link(folder, str(run), f"run {k}")] for k, run in runs]
    data = row.get("data")
    said = [str(data)] * bool(data) + [f"teacher {teacher}"] * bool(teacher)
    return tag("small", " · ".join(said) + " ·" if said else "", *links)


def _link(folder: Path, place: str, words: str) -> object:
    """To a run's page, where it has one."""
    # quoted, a path has no scheme: it leads into this folder's neighbourhood or nowhere
    made = (folder / place / "report.html").is_file()
    return tag("a", words, href=quote(f"{place}/report.html")) if made else words


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
    """A table a measure and checkpoint; of many, the strongest attack's best checkpoint is unfolded."""
    found = [mapping(one) for one in study.get("comparisons") or ()]
    if not found:
        return None
    # one scale for what has one unit
    reach: dict[str, float] = {}
    for one in found:
        bounds = [abs(one[key]) for key in ("low", "high", "difference") if is_number(one.get(key))]
        reach[_unit(one)] = max([reach.get(_unit(one), 1e-9), *bounds])
    order = [*reversed(_measures(study)), *(str(one.get("measure")) for one in found)]
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in sorted(found, key=lambda one: order.index(str(one.get("measure")))):
        kinds.setdefault((str(one.get("measure")), str(one.get("checkpoint"))), []).append(one)
    tables = [
        tag(
            "details",
            tag("summary", _title(measure), f", {which} checkpoint" if measure in TITLES else ""),
            tag("div", _differences(of, reach), class_="scroll"),
            open="" if k == 0 or len(found) <= UNFOLDED_DIFFERENCES else None,
        )
        for k, ((measure, which), of) in enumerate(kinds.items())
    ]
    return section("Comparisons", *tables, intro=_about_differences(study, found))


def _about_differences(study: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> str:
    tie = "A tie means that the interval holds 0: nothing is shown by it, either way."
    if not any(measure in TITLES for measure in _measures(study)):
        return f"The first less the second, with 95% intervals over epochs, which n counts. {tie}"
    said = f"The first less the second, accuracies in percentage points, with 95% intervals. {tie}"
    if all(map(is_known, found)):
        return said
    return (
        f"{said} Where every row has one seed, the intervals speak of these very networks only: nothing is said of "
        "the methods."
    )


def _differences(found: Sequence[Mapping[str, Any]], reach: Mapping[str, float]) -> Html:
    titles = ("", "difference", "− 0 +", "verdict", "McNemar p", "seeds, n")
    head = tag("tr", *(tag("th", title, class_="where" if "0" in title else None) for title in titles))
    rows = [_comparison(one, reach[_unit(one)]) for one in found]
    return tag("table", tag("thead", head), tag("tbody", *rows), class_="forest")


def _p_value(p: object) -> str:
    return f"<{LEAST_P}" if is_number(p) and p < LEAST_P else number(p, 3)


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
    seeds = one.get("seeds")
    held = len(seeds) if isinstance(seeds, list) else seeds
    return tag(
        "tr",
        tag(
            "th",
            f"{one.get('a')} against {one.get('b')}",
            tag("small", one.get("data")),
            scope="row",
        ),
        tag("td", said, tag("small", f"{number(low, 2)} to {number(high, 2)}")),
        tag("td", tag("div", *marks, class_="track", aria_hidden="true"), class_="where"),
        tag("td", _verdict(one)),
        tag("td", _p_value(one.get("mcnemar_p"))),
        tag("td", f"{count(held)}, {count(one.get('n'))}"),
    )


def _verdict(one: Mapping[str, Any]) -> Html:
    if not is_known(one):
        return badge("these networks only", "plain")
    verdict = str(one.get("verdict"))
    kinds = LESS_IS_BETTER if one.get("measure") in COSTS else DIFFERENCES
    return badge(verdict, kinds.get(verdict, "plain"))


def _relations(study: Mapping[str, Any]) -> Html | None:
    """One quantity of the rows against another, as far as rows have both."""
    drawn = [
        tag(
            "figure",
            Html(relation_svg(found, mark=str(k))),
            tag(
                "figcaption",
                tag("b", f"{found['y_title']} against {found['x_title']}. "),
                "Named are the rows that no other exceeds in both. " if found.get("by") == "group" else "",
                _few(found),
            ),
        )
        for k, found in enumerate(map(mapping, study.get("relations") or ()))
        if found.get("points")
    ]
    intro = "A point a row of the table; ρ is Spearman's rank correlation, n counts rows."
    return section("Relations", tag("div", *drawn, class_="figures"), intro=intro) if drawn else None


def _few(found: Mapping[str, Any]) -> str:
    """What so few points can tell."""
    parts = []
    for held in map(mapping, found.get("correlations") or ()):
        p, least = held.get("p"), held.get("least")
        if is_number(p):
            from_on = f", told from chance only from |ρ| = {number(least, 2)} on" if is_number(least) else ""
            parts.append(f"{held.get('called')}: p {'' if p < LEAST_P else '= '}{_p_value(p)}{from_on}")
    return "; ".join(parts)


def _figures(study: Mapping[str, Any], firsts: Sequence[First], sections: Sections) -> Html | None:
    """What the study declares as its figures, of each data set."""
    declared = mapping(study.get("figures"))
    if not declared:
        return None
    drawn: list[Html] = []
    missing: list[str] = []
    for data, own in _by_data(study, firsts).items():
        # with several data sets, a row's label has its own at the end
        runs = {_label(first.row).removesuffix(f", {data}"): first.run for first in own}
        for name, labels in declared.items():
            of = [runs[label] for label in labels if label in runs]
            mark = f"-{len(drawn)}"
            whose = f"{', '.join(run.label for run in of)}."
            made = sections.figure(name, of, whose, mark=mark) if of and len(of) == len(labels) else None
            if made is None:
                missing.append(f"{name} ({data})" if data else name)
            else:
                drawn.append(made)
    left = tag(
        "p", f"Not drawn yet, for want of runs or of their numbers: {', '.join(missing)}.", class_="soft"
    )
    return section(
        "Figures",
        tag("div", *drawn, class_="figures") if drawn else None,
        left if missing else None,
        intro="Of the first run of each row that is named.",
    )


def _curves(study: Mapping[str, Any], firsts: Sequence[First], sections: Sections) -> Html | None:
    """All rows by epoch and by radius, as many in a figure as can be told apart."""
    drawn = [
        sections.figure(name, [first.run for first in some], _scope(some), mark=f"-rows{k}")
        for name in ("figure3c", "radius")
        for k, some in enumerate(
            part
            for own in _by_data(study, firsts).values()
            for _, group in itertools.groupby(own, key=lambda first: first.row.get("group"))
            for part in _parts(list(group))
        )
    ]
    figures = [figure for figure in drawn if figure is not None]
    intro = "The first run of each row; by radius, its best checkpoint."
    return section("Curves", tag("div", *figures, class_="figures"), intro=intro) if figures else None


def _parts(firsts: Sequence[First]) -> Iterator[Sequence[First]]:
    """Even parts of no more runs than there are marks."""
    parts = math.ceil(len(firsts) / len(MARKS))
    for k in range(parts):
        yield firsts[k * len(firsts) // parts : (k + 1) * len(firsts) // parts]


def _scope(some: Sequence[First]) -> str:
    ends = dict.fromkeys(_label(first.row) for first in (some[0], some[-1]))
    return f"{' to '.join(ends)}."


def _trust(firsts: Sequence[First], sections: Sections) -> Html | None:
    """The histogram of P_T(x̃|y)^β of each row that has a teacher."""
    drawn = [
        sections.figure("trust", [first.run], caption=tag("b", _label(first.row)), mark=f"-row{k}")
        for k, first in enumerate(firsts)
    ]
    figures = [figure for figure in drawn if figure is not None]
    if not figures:
        return None
    shown = tag("div", *figures, class_="figures")
    return section(
        "Trust in the teacher",
        shown if len(figures) <= UNFOLDED else tag("details", tag("summary", f"{len(figures)} rows"), shown),
        intro="The histogram of P_T(x̃|y)^β over the training images, first epoch and last, of each row's first run. "
        "It is that of α where the axis says so; 0.1 stands for β in runs that have none.",
    )


def _images(firsts: Sequence[First], folder: Path, sections: Sections) -> Html | None:
    """The first of each row's kept images; a row alone is unfolded."""
    held = [
        (first, *found)
        for first in firsts
        if (path := folder / first.place / "gallery.safetensors").is_file()
        and (
            found := sections.make(
                f"the images of {_label(first.row)}", lambda: pictures.cards(path, PICTURES)
            )
        )
    ]
    if not held:
        return None
    rows = [
        tag(
            "details",
            tag("summary", _label(first.row)),
            tag("p", pictures.said(about), class_="soft"),
            *(
                [tag("h3", pictures.GROUPS[group][0]), tag("div", *made, class_="gallery")]
                for group, made in groups.items()
            ),
            tag("p", "All of them: ", _link(folder, first.place, "the run's page"), "."),
            open="" if len(held) == 1 else None,
        )
        for first, about, groups in held
    ]
    groups = [f"{title}: {words[0].lower()}{words[1:]}" for title, words in pictures.GROUPS.values()]
    intro = f"The first {PICTURES} of each row's first run. {' '.join(groups)}"
    return section("Images", *rows, intro=intro)


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
