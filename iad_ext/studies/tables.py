"""A study's results as tables: Markdown, LaTeX, CSV. All of it from what `study.json` holds."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from iad_ext.report.reading import COSTS, is_known
from iad_ext.studies import relations
from iad_ext.studies.results import NAMES, described

Content = Mapping[str, Any]

CAPTIONS = {"best": "Best checkpoint", "last": "Last checkpoint"}
_TEX = {letter: f"\\{letter}" for letter in "&%#_{}$"} | {
    letter: f"$\\{name}$"
    for letter, name in zip("αβγτλ±", ("alpha", "beta", "gamma", "tau", "lambda", "pm"), strict=True)
}
_TEX |= {"∞": r"$_\infty$", "−": "$-$", "–": "--"}


def markdown(study: Content) -> str:
    """The table beside the paper's, the differences with their intervals, and what becomes of the claims."""
    lines = [f"# {study['title']}", ""]
    if study["note"]:
        lines += [study["note"], ""]
    lines += [*_remarks(study), ""]
    for data in study["settings"]["data"]:
        several = len(study["settings"]["data"]) > 1
        for which in _checkpoints(study):
            caption = CAPTIONS[which] if _has_accuracies(study) else "Measured"
            lines += [f"## {caption}{f', {data}' if several else ''}", ""]
            head, rows = _results(study, data, which, "**{}**".format, heading="*{}*".format)
            lines += [_in_markdown(head, rows), ""]
    if study["comparisons"]:
        lines += ["## Differences", "", *_about_differences(study), ""]
        lines += [_in_markdown(*_differences(study, "**{}**".format)), ""]
    for relation in study["relations"]:
        several = len(study["settings"]["data"]) > 1
        about = (
            f"{relation['y_title']} against {relation['x_title']}{', ' + relation['data'] if several else ''}"
        )
        lines += [f"## {about[0].upper()}{about[1:]}", ""]
        if relation["points"]:
            lines += [_in_markdown(*_relation(relation)), ""]
        lines += [*(f"- {relations.described(found)}." for found in relation["correlations"]), ""]
    if study["claims"]:
        lines += ["## Claims", ""]
        lines += [_in_markdown(["claim", "", "why"], list(_claims(study)), rest="---"), ""]
    lines += [*_doubts(study), *_origin(study)]
    return "\n".join(lines).rstrip() + "\n"


def latex(study: Content) -> str:
    """The same tables for LaTeX; they need the package booktabs."""
    parts = [f"% {study['title']}", "% \\usepackage{booktabs}", ""]
    for data in study["settings"]["data"]:
        for which in _checkpoints(study):
            head, rows = _results(
                study, data, which, r"\textbf{{{}}}".format, heading=r"\textit{{{}}}".format, escape=_tex
            )
            parts += [f"% {CAPTIONS[which]}, {data}", _in_latex(head, rows), ""]
    if study["comparisons"]:
        head, rows = _differences(study, r"\textbf{{{}}}".format, escape=_tex)
        parts += ["% Differences with 95% intervals", _in_latex(head, rows), ""]
    for relation in study["relations"]:
        head, rows = _relation(relation, escape=_tex)
        parts += [f"% {relation['name']}, {relation['data']}", _in_latex(head, rows), ""]
    return "\n".join(parts).rstrip() + "\n"


def comma_separated(study: Content) -> str:
    """A line a row, checkpoint and measure, with the difference from the row it is compared with."""
    out = io.StringIO()
    columns = [
        "study",
        "data",
        "label",
        "group",
        "teacher",
        "method",
        "checkpoint",
        "measure",
        "mean",
        "std",
        "seeds",
        "n",
        "paper",
        "against",
        "difference",
        "low",
        "high",
        "mcnemar_p",
        "verdict",
    ]
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for row in study["rows"]:
        for which, measured in row["checkpoints"].items():
            for measure, found in measured.items():
                made = _comparison(study, row["label"], row["against"], measure, which) or {}
                writer.writerow(
                    {key: row[key] for key in ("data", "label", "group", "teacher", "method", "against")}
                    | {"study": study["name"], "checkpoint": which, "measure": measure}
                    | {"mean": f"{found['mean']:.4f}", "std": _number(found["std"], "{:.4f}")}
                    | {"seeds": len(found["values"]), "n": found["n"], "paper": row["paper"].get(measure)}
                    | {key: _number(made.get(key), "{:.4f}") for key in ("difference", "low", "high")}
                    | {"mcnemar_p": _number(made.get("mcnemar_p"), "{:.3g}"), "verdict": made.get("verdict")}
                )
    return out.getvalue()


# ------------------------------------------------------------------------------------------- contents


def _checkpoints(study: Content) -> list[str]:
    """Both, but only one of costs, which belong to no checkpoint."""
    return ["best", "last"] if _has_accuracies(study) else ["last"]


def _has_accuracies(study: Content) -> bool:
    return any(measure not in COSTS for measure in study["measures"])


def _results(
    study: Content, data: str, which: str, bold: Any, heading: Any, escape: Any = str
) -> tuple[list[str], list[list[str]]]:
    """A row of the study a line: each measure beside the paper's, where the paper has it. A group has a line above."""
    rows = [row for row in study["rows"] if row["data"] == data]
    printed = {measure for row in rows for measure in row["paper"]}
    head = ["row"]
    for measure in study["measures"]:
        head += [NAMES[measure], *(["paper"] if measure in printed else [])]
    lines: list[list[str]] = []
    group = None
    for row in rows:
        if row["group"] != group and (group := row["group"]) is not None:
            lines.append([heading(escape(group)), *("" for _ in head[1:])])
        cells = [escape(row["label"])]
        for measure in study["measures"]:
            found = row["checkpoints"][which].get(measure)
            said = escape(_mean(found)) if found else escape("–")
            made = _comparison(study, row["label"], row["against"], measure, which)
            better = "lower" if measure in COSTS else "higher"
            cells.append(bold(said) if made and made["verdict"] == better and is_known(made) else said)
            if measure in printed:
                cells.append(_number(row["paper"].get(measure), "{:.2f}"))
        lines.append(cells)
    return [escape(name) for name in head], lines


def _mean(found: Content) -> str:
    return f"{found['mean']:.2f}" + (f" ± {found['std']:.2f}" if found["std"] is not None else "")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _comparison(study: Content, a: str, b: str | None, measure: str, which: str) -> Mapping[str, Any] | None:
    wanted = (a, b, measure, which)
    return next(
        (c for c in study["comparisons"] if (c["a"], c["b"], c["measure"], c["checkpoint"]) == wanted), None
    )


def _differences(study: Content, bold: Any, escape: Any = str) -> tuple[list[str], list[list[str]]]:
    measures = study["measures"]
    head = ["difference", "checkpoint", *(NAMES[measure] for measure in measures)]
    lines = []
    for a, b in dict.fromkeys((c["a"], c["b"]) for c in study["comparisons"]):
        for which in _checkpoints(study):
            cells = [escape(f"{a} − {b}"), which]
            for measure in measures:
                made = _comparison(study, a, b, measure, which)
                said = escape("–")
                if made is not None:
                    said = escape(f"{made['difference']:+.2f} [{made['low']:+.2f}, {made['high']:+.2f}]")
                    if made["verdict"] != "tie" and is_known(made):
                        said = bold(said)
                cells.append(said)
            lines.append(cells)
    return [escape(name) for name in head], lines


def _relation(relation: Content, escape: Any = str) -> tuple[list[str], list[list[str]]]:
    head = ["row", "teacher", relation["x_title"], relation["y_title"], "seeds"]
    rows = [
        [
            escape(str(point["label"])),
            escape(str(point["teacher"] or "–")),
            f"{point['x']:.2f}",
            f"{point['y']:.2f}",
            str(point["seeds"]),
        ]
        for point in relation["points"]
    ]
    return [escape(name) for name in head], rows


def _claims(study: Content) -> Iterator[list[str]]:
    for claim in study["claims"]:
        where = f" ({claim['data']})" if len(study["settings"]["data"]) > 1 else ""
        yield [claim["claim"] + where, f"**{claim['verdict']}**", claim["why"]]


def _remarks(study: Content) -> Iterator[str]:
    settings, found = study["settings"], study["provenance"]
    scale = (settings["epochs_fraction"], settings["images_fraction"])
    said = []
    if scale != (1, 1):
        said.append(f"{scale[0]:g} of the epochs and {scale[1]:g} of the training images")
    for where, by_role in settings["overrides"].items():
        for role, words in by_role.items():
            whose = "" if role == "all" else f" ({role})"
            said.append(f"`{' '.join(words)}`{whose} {'in the study' if where == 'study' else 'as asked'}")
    if said:
        yield f"Not the paper's settings: {'; '.join(said)}. The paper's numbers stand beside for orientation."
        yield ""
    several = len(study["settings"]["data"]) > 1
    for data in study["settings"]["data"]:
        measured: dict[str, set[int]] = {}
        for row in study["rows"]:
            for of in row["checkpoints"].values() if row["data"] == data else ():
                for measure, found_ in of.items():
                    if found_["n"] is not None:
                        measured.setdefault(NAMES[measure], set()).add(found_["n"])
        if measured:
            counts = ", ".join(f"{name} {' or '.join(map(str, sorted(n)))}" for name, n in measured.items())
            yield f"Images{f' of {data}' if several else ''}: {counts}."
    yield f"Finished runs: {found['runs']} of {found['runs_wanted']}. Mean ± standard deviation over seeds, percent."
    if left_out := found.get("measured_otherwise"):
        yield ""
        yield (
            f"Left out: {left_out} measured with other `--eval` settings than the study's; the study without --report "
            "measures anew."
        )


def _about_differences(study: Content) -> Iterator[str]:
    """What the intervals are; bold is what exceeds the spread."""
    if _has_accuracies(study):
        yield (
            "In points, with 95% intervals over images and over seeds, both paired: runs of the same seeds are "
            "compared, and where those are fewer than three, with the spread of all pairs of rows. Bold: the interval "
            "leaves out 0."
        )
        if any(not is_known(one) for one in study["comparisons"]):
            yield (
                "Where every row has one seed, the intervals speak of these very networks only: nothing is bold, and "
                "nothing is said of the methods."
            )
    else:
        yield "With 95% intervals over epochs. Bold: the interval leaves out 0."


def _doubts(study: Content) -> Iterator[str]:
    """Signs of masked gradients: a robustness that may not be one."""
    doubted = [row for row in study["rows"] if row["masking"]]
    if doubted:
        yield "Signs of masked gradients:"
        yield ""
        yield from (f"- {row['label']}: {', '.join(row['masking'])}" for row in doubted)
        yield ""


def _origin(study: Content) -> Iterator[str]:
    found = study["provenance"]
    measured = (
        f"Measured on {', '.join(found['hardware'])}, {', '.join(found['precision'])}; commit "
        f"{', '.join(found['commits'])}; the best checkpoint is chosen on {' and '.join(found['selection'])}. "
    )
    yield (
        f"{measured if found['hardware'] else 'No run is finished yet. '}Paper: {study['paper']['source']}"
        + (f", {study['paper']['table'].replace('table', 'Table ')}." if study["paper"]["table"] else ".")
    )
    for note in found["data_notes"]:
        yield f"Images: {note}."


# ------------------------------------------------------------------------------------------- forms


def _in_markdown(head: Sequence[str], rows: Sequence[Sequence[str]], *, rest: str = "---:") -> str:
    table = [head, ["---", *(rest for _ in head[1:])], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table)


def _in_latex(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        "\\toprule",
        " & ".join(head) + r" \\",
        "\\midrule",
    ]
    lines += [" & ".join(row) + r" \\" for row in rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)


__all__ = ["comma_separated", "described", "latex", "markdown"]
