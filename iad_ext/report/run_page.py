"""A run's page: what was trained, what it reached on how many images, and what casts doubt on it."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iad_ext.checkpoint import read_lines
from iad_ext.evaluation import TITLES, images
from iad_ext.plots import Run
from iad_ext.report import pictures
from iad_ext.report.beside import PapersRow, papers_row
from iad_ext.report.html import Html, count, is_number, notes, number, page, section, share, tag
from iad_ext.report.reading import DATA, OBJECTIVES, Sections, mapping, read
from iad_ext.units import parse_fraction, show_fraction

FEW = 1000  # images below which an interval is wider than most differences of the paper


@dataclass(frozen=True)
class Facts:
    """What the page is made of."""

    folder: Path
    run: Run
    environment: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]

    @functools.cached_property
    def paper(self) -> PapersRow | None:
        """The paper's row that the run stands beside; every table is looked through for it."""
        return papers_row(self.run.settings)

    @property
    def results(self) -> Mapping[str, Any]:
        """`results.json`."""
        return self.run.results

    def setting(self, group: str, name: str) -> Any:
        """A setting by its group and name; None where it is not known."""
        return mapping(self.run.settings.get(group)).get(name)

    @property
    def measured(self) -> dict[str, Mapping[str, Any]]:
        """The results of `best` and `last`, as far as they were measured."""
        return {which: found for which in ("best", "last") if (found := mapping(self.results.get(which)))}


def html_of(folder: Path) -> str:
    """The page of a run folder.

    Raises:
        ValueError: its settings, metrics or results cannot be read at all.
    """
    sections = Sections()
    beside: dict[str, Any] = {"environment": {}, "history": []}
    for name in beside:
        try:
            beside[name] = (
                read(folder, "environment.json")
                if name == "environment"
                else _lines(folder / "history.jsonl")
            )
        except (ValueError, OSError) as error:
            sections.broken.append(f"{name} cannot be shown: {error}")
    facts = Facts(folder, Run.read(folder), **beside)
    made = [
        sections.make("the results", lambda: _results(facts)),
        sections.make("the curves", lambda: _training(facts, sections)),
        sections.make("the teacher's figures", lambda: _teacher(facts, sections)),
        sections.make("the images", lambda: _images(facts)),
        sections.make("the settings", lambda: _settings(facts)),
        sections.make("the provenance", lambda: _provenance(facts)),
    ]
    head = sections.make("the headline", lambda: _header(facts))
    doubts = sections.make("the warnings", lambda: notes(_doubts(facts)))
    broken = notes(("bad", line) for line in sections.broken)
    return page(_title(facts), tag("header", head, broken, doubts), *made)


def _lines(path: Path) -> list[dict[str, Any]]:
    return read_lines(path) if path.is_file() else []


def _method(facts: Facts) -> str:
    name = str(facts.run.objective("name"))
    return OBJECTIVES.get(name, name)


def _title(facts: Facts) -> str:
    data = str(facts.setting("data", "name"))
    return f"{_method(facts)} on {DATA.get(data, data)}"


# ---------------------------------------------------------------------------------------------- headline


def _header(facts: Facts) -> Html:
    which = next(iter(facts.measured), None)
    reached = _tiles(facts, facts.measured[which]) if which else None
    return tag(
        "div",
        tag("p", f"Run · {facts.run.settings.get('recipe')}", class_="kicker"),
        tag("h1", _title(facts)),
        tag("p", _sentence(facts, which), class_="lead"),
        _chips(facts),
        reached,
    )


def _sentence(facts: Facts, which: str | None) -> list[object]:
    student, teacher = facts.setting("student", "name"), facts.run.settings.get("teacher")
    taught = f", taught by {teacher}," if teacher else ""
    epochs = len(facts.run.records)
    asked = facts.setting("train", "epochs")
    so_far = f" of {asked}" if is_number(asked) and epochs != asked else ""
    began: list[object] = [
        f"{student}{taught} trained for {epochs}{so_far} epoch{'' if epochs == 1 and not so_far else 's'}"
    ]
    if which is None:
        return [*began, ". It has not been measured yet."]
    result = facts.measured[which]
    shown = [name for name in ("natural", "aa", "pgd20", "pgd10") if is_number(result.get(name))][:2]
    parts: list[object] = []
    for name in shown:
        title = "natural images" if name == "natural" else f"images under {TITLES[name]}"
        parts += [
            " and " if parts else "",
            tag("strong", f"{number(result[name])}%"),
            f" of {count(images(result, name))} {title}",
        ]
    epoch = mapping(facts.results.get("epochs")).get(which)
    at = f", at epoch {epoch + 1} ({which})" if is_number(epoch) else ""
    return [*began, *([": it is right on ", *parts] if parts else []), at, "."]


def _chips(facts: Facts) -> Html:
    train, data = mapping(facts.run.settings.get("train")), mapping(facts.results.get("data"))
    eps = facts.setting("eval", "eps")
    found = {
        "seed": train.get("seed"),
        "batch": train.get("batch_size"),
        "training images": count(mapping(data.get("n")).get("train")) if data else None,
        "ε": show_fraction(eps) if is_number(eps) else None,
        "β": facts.run.beta,
        "warm-up": facts.run.objective("warmup_epochs"),
        "chosen on": facts.results.get("selected_on"),
        "precision": mapping(facts.results.get("precision")).get("kind"),
    }
    shown = [tag("li", tag("b", f"{name} "), value) for name, value in found.items() if value is not None]
    return tag("ul", *shown, class_="chips")


def _tiles(facts: Facts, result: Mapping[str, Any]) -> Html:
    theirs = facts.paper
    numbers = theirs.numbers if theirs and not theirs.another else {}
    tiles = [
        _tile(name, title, result, numbers.get(name))
        for name, title in TITLES.items()
        if is_number(result.get(name))
    ]
    return tag("div", *tiles, class_="tiles")


def _tile(name: str, title: str, result: Mapping[str, Any], paper: float | None) -> Html:
    value, n = float(result[name]), images(result, name)
    low, high = (float(bound) for bound in mapping(result.get("interval"))[name])
    marks = [
        tag("span", class_="band", style=f"left:{share(low)};width:{share(high - low)}"),
        tag("span", class_="dot", style=f"left:{share(value)}"),
    ]
    said = [f"95%: {low:.1f} to {high:.1f}", tag("br"), f"n = {count(n)}"]
    if paper is not None:
        marks.append(tag("span", class_="paper", style=f"left:{share(paper)}"))
        said += [f" · paper {paper:.1f} ┊"]
    return tag(
        "div",
        tag("h3", title),
        tag("div", number(value), tag("small", "%"), class_="big"),
        tag("div", *marks, class_="track", aria_hidden="true"),
        tag("p", *said),
        class_="tile",
    )


def _doubts(facts: Facts) -> Iterator[tuple[str, object]]:
    """What a reader must know before believing the numbers."""
    results, measured = facts.results, facts.measured
    flagged = False
    for which, result in measured.items():
        for flag in result.get("flags", ()):
            flagged = True
            where = TITLES.get(flag["attack"], "all attacks")
            yield "warn", [tag("b", f"{flag['flag']} ({which}, {where}): "), flag["detail"]]
    for change in results.get("changed", ()):
        yield (
            "warn",
            f"continued with another {change['setting']} from epoch {change['epoch'] + 1} on: "
            f"{change['before']} before, {change['now']} then",
        )
    skipped = sum(r["train/skipped_steps"] for r in facts.run.records if r.get("train/skipped_steps"))
    if skipped:
        yield "warn", f"{skipped} steps were skipped, their loss or gradient not being finite"
    if any(r.get("attack/zero_gradient") for r in facts.run.records):
        yield "warn", "gradients underflowed in fp16 in training: its attack was weaker than it looks"
    if results.get("selection") == "test":
        yield "warn", "the checkpoint was chosen on the test images, as in the paper: its numbers flatter it"
    note = mapping(results.get("data")).get("encoding_note")
    if note:
        yield "warn", f"images: {note}"
    counts = {images(result, n) for result in measured.values() for n in TITLES if n in result}
    if counts and min(counts) < FEW:
        few = " and ".join(count(n) for n in sorted(n for n in counts if n < FEW))
        yield "plain", f"measured on {few} images: the intervals are wide"
    if measured:
        yield "plain", "one run, one seed: its intervals are over test images, not over runs"
    if measured and not flagged:
        yield "good", "no sign of masked gradients in this evaluation"


# ---------------------------------------------------------------------------------------------- results


def _results(facts: Facts) -> Html | None:
    measured = facts.measured
    if not measured:
        return None
    teachers = {
        role: of for role in ("teacher", "natural_teacher") if (of := mapping(facts.results.get(role)))
    }
    names = [name for name in TITLES if any(name in result for result in measured.values())]
    rows = []
    for which, result in measured.items():
        epoch = mapping(facts.results.get("epochs")).get(which)
        at = tag("small", f"epoch {epoch + 1}") if is_number(epoch) else None
        rows.append(tag("tr", tag("th", which, at, scope="row"), *(_cell(result, n) for n in names)))
    theirs = facts.paper
    if theirs:
        called = "paper, nearest" if theirs.another else "paper"
        cells = (tag("td", number(theirs.numbers.get(name), 2)) for name in names)
        rows.append(
            tag("tr", tag("th", called, tag("small", theirs.where), scope="row"), *cells, class_="paper")
        )
    rows += [
        tag(
            "tr",
            tag("th", role.replace("_", " "), tag("small", _of_teacher(of, names)), scope="row"),
            *(tag("td", number(of.get(name), 2)) for name in names),
        )
        for role, of in teachers.items()
    ]
    head = tag("tr", tag("th", "", scope="col"), *(tag("th", TITLES[n], scope="col") for n in names))
    table = tag("div", tag("table", tag("thead", head), tag("tbody", *rows)), class_="scroll")
    return section(
        "Results",
        table,
        *(_curve(which, result) for which, result in measured.items()),
        intro=[
            "Percent right, with the 95% interval over test images",
            "; teachers on held-out images" if facts.results.get("teacher") else "",
            ". ",
            _difference_from_paper(facts, theirs) if theirs else "",
        ],
    )


def _of_teacher(of: Mapping[str, Any], names: Sequence[str]) -> str:
    """Its images, and its PGD-10 accuracy where the table has no column for it."""
    there = "pgd10" in names or not is_number(of.get("pgd10"))
    return ("" if there else f"PGD-10 {number(of['pgd10'], 2)}, ") + f"n = {count(of.get('n'))}"


def _cell(result: Mapping[str, Any], name: str) -> Html:
    if not is_number(result.get(name)):
        return tag("td", "–")
    low, high = (float(bound) for bound in mapping(result.get("interval"))[name])
    return tag(
        "td",
        number(result[name], 2),
        tag("small", f"{low:.1f} to {high:.1f}"),
        tag("small", f"n = {count(images(result, name))}"),
    )


def _curve(which: str, result: Mapping[str, Any]) -> Html | None:
    """Accuracy by radius, where it was measured."""
    curve = mapping(result.get("curve"))
    points = sorted((parse_fraction(str(eps)), value) for eps, value in curve.items() if is_number(value))
    if not points:
        return None
    head = tag("tr", tag("th", "ε"), *(tag("th", show_fraction(eps)) for eps, _ in points))
    row = tag("tr", tag("th", which), *(tag("td", number(value)) for _, value in points))
    n = f", n = {count(result['curve_n'])}" if "curve_n" in result else ""
    table = tag("div", tag("table", head, row), class_="scroll")
    return tag("details", tag("summary", f"Accuracy by radius ({which}{n})"), table)


def _difference_from_paper(facts: Facts, theirs: PapersRow) -> str:
    """Why this run's numbers are not to be compared with the paper's as they stand."""
    apart = list(theirs.apart)
    limit = facts.setting("data", "limit_train")
    if limit is not None:
        apart.append(f"{count(limit)} training images")
    if facts.setting("data", "selection") == "holdout":
        apart.append("a checkpoint chosen on held-out images, where the paper takes the test set")
    counts = {images(result, n) for result in facts.measured.values() for n in TITLES if n in result}
    if counts and min(counts) < 10_000:
        apart.append(f"{count(min(counts))} test images at the least")
    if theirs.another:
        return f"The paper has no run with this loss: the nearest differs by {'; '.join(apart)}."
    return f"It differs from the paper's by {'; '.join(apart)}." if apart else ""


# ---------------------------------------------------------------------------------------------- figures


def _figures(*found: Html | None) -> Html | None:
    drawn = [figure for figure in found if figure is not None]
    return tag("div", *drawn, class_="figures") if drawn else None


def _training(facts: Facts, sections: Sections) -> Html | None:
    runs = [facts.run]
    figures = _figures(
        sections.figure("learning", runs),
        sections.figure("losses", runs, _of_introspection(facts)),
        sections.figure("radius", runs),
    )
    return section("Training", figures) if figures else None


def _of_introspection(facts: Facts) -> str:
    shares = facts.run.series("introspection/share")[1]
    return f"Introspection was {shares[-1]:.1f}% of it in the last epoch." if shares else ""


def _teacher(facts: Facts, sections: Sections) -> Html | None:
    names = ("figure1a", "figure2b", "figure3", "trust", "figure4")
    figures = _figures(*(sections.figure(name, [facts.run]) for name in names))
    if figures is None:
        return None
    half = facts.run.settings.get("diagnostics") == "half"
    intro = (
        "Counted on training images while the student trains"
        + ("; passes that the objective does not read run on every second batch." if half else ".")
        + _entropy(facts)
    )
    return section("The teacher", figures, intro=intro)


def _entropy(facts: Facts) -> str:
    values = facts.run.series("teacher/entropy_on_student_adv")[1]
    if not values:
        return ""
    return f" On the student's adversarial images its entropy went from {values[0]:.2f} to {values[-1]:.2f} nats."


def _images(facts: Facts) -> Html | None:
    path = facts.folder / "gallery.safetensors"
    if not path.is_file():
        return None
    about, groups = pictures.cards(path)
    parts = [
        [
            tag("h3", pictures.GROUPS[group][0]),
            tag("p", pictures.GROUPS[group][1], class_="intro"),
            tag("div", *made, class_="gallery"),
        ]
        for group, made in groups.items()
    ]
    return section("Images", *parts, intro=pictures.said(about))


# ---------------------------------------------------------------------------------------------- settings, provenance


def _settings(facts: Facts) -> Html:
    groups: dict[str, dict[str, Any]] = {"run": {}}
    for name, value in facts.run.settings.items():
        if isinstance(value, Mapping):
            groups[str(name)] = dict(value)
        else:
            groups["run"][str(name)] = value
    cards = [
        tag("div", tag("h3", name), _list({key: _shown(key, v) for key, v in held.items()}), class_="card")
        for name, held in groups.items()
    ]
    return tag(
        "section",
        tag("h2", "Settings"),
        tag(
            "details", tag("summary", "Every setting, as it was resolved"), tag("div", *cards, class_="cards")
        ),
    )


def _shown(name: str, value: Any) -> object:
    if value is None or value == "":
        return "–"
    if name in ("eps", "step") and is_number(value):
        return show_fraction(float(value))
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _list(items: Mapping[str, object]) -> Html:
    return tag("dl", *(pair for name, value in items.items() for pair in (tag("dt", name), tag("dd", value))))


def _provenance(facts: Facts) -> Html:
    environment, results = facts.environment, facts.results
    hardware, data = mapping(environment.get("hardware")), mapping(results.get("data"))
    what = {
        "commit": environment.get("commit"),
        "processor": hardware.get("cpu"),
        "GPUs": ", ".join(map(str, hardware.get("gpus") or ())) or None,
        "threads": hardware.get("threads"),
        "processes": environment.get("processes"),
        "precision": mapping(environment.get("precision")).get("reason"),
    }
    images_ = {
        "name": data.get("name"),
        "source": data.get("id") or data.get("source"),
        "revision": data.get("revision"),
        "encoding": data.get("encoding"),
        **{f"{split} digest": digest for split, digest in mapping(data.get("digest")).items()},
        **{f"{split} images": count(n) for split, n in mapping(data.get("n")).items()},
    }
    teachers = {
        f"{role.replace('_', ' ')}": f"{of.get('source')}: natural {number(of.get('natural'))}%, "
        f"PGD-10 {number(of.get('pgd10'))}% of {count(of.get('n'))} held-out images"
        for role in ("teacher", "natural_teacher")
        if (of := mapping(results.get(role)))
    }
    cards = [
        tag("div", tag("h3", title), _list({k: v for k, v in held.items() if v is not None}), class_="card")
        for title, held in (
            ("Code and machine", what),
            ("Images", images_),
            ("Teachers", teachers),
            ("Versions", mapping(environment.get("versions"))),
        )
        if any(v is not None for v in held.values())
    ]
    return section("Provenance", tag("div", *cards, class_="cards"), _history(facts))


def _history(facts: Facts) -> Html | None:
    rows = [
        tag(
            "tr",
            tag("td", line.get("time")),
            tag("td", line.get("event"), style="text-align:left"),
            tag("td", _place(line), style="text-align:left"),
        )
        for line in facts.history
    ]
    if not rows:
        return None
    table = tag("table", tag("tbody", *rows))
    return tag("details", tag("summary", f"History, {len(rows)} events"), tag("div", table, class_="scroll"))


def _place(line: Mapping[str, Any]) -> str:
    if not is_number(line.get("epoch")):
        return ""
    return f"epoch {line['epoch'] + 1}, step {line.get('step')}"
