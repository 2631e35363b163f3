"""The pages that are made of the code itself: recipes, objectives, commands, the paper's index, examples, pictures.

`conf.py` writes them to docs/generated/ before every build; the tests read them from here.
"""

import ast
import html
import importlib.util
import inspect
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import torch
import yaml

from iad_ext import cli, objectives, reliability, settings, studies
from iad_ext.plan import Plan
from iad_ext.units import show_fraction

DOCS = Path(__file__).parent
ROOT = DOCS.parent
DATA = ("cifar10", "cifar100", "tiny-imagenet", "digits")
METHODS = {
    "st": "Standard training",
    "at": "Adversarial training",
    "trades": "TRADES",
    "ard": "ARD",
    "akd2": "AKD2",
    "iad1": "IAD-I",
    "iad2": "IAD-II",
    "rslad": "RSLAD",
    "adaad": "AdaAD",
    "adaiad": "AdaIAD",
    "mtard": "MTARD",
    "mart": "MART",
    "adr": "ADR",
}
STUDENTS = {
    "resnet18": "ResNet-18, Table 2",
    "wrn34": "WideResNet-34-10, Table 3",
    "preactresnet18": "PreActResNet-18, Table 4",
}


def pages() -> Iterator[tuple[str, str]]:
    """Every generated page as (name, text)."""
    yield "three_cases.html", three_cases()
    yield "objectives.inc", objectives_table()
    yield "settings.inc", settings_tables()
    yield "commands.inc", commands()
    yield "paper.md", paper_index()
    yield "quickstart.inc", quickstart_provenance()
    yield "results.inc", results()
    yield "studies.inc", studies_table()
    for name in recipe_names():
        yield f"recipes/{name}.md", recipe_page(name)
    yield "recipes.md", recipes_table()
    for file in examples():
        yield f"gallery/{file.stem}.md", example_page(file)
    yield "gallery.inc", gallery()


def write(folder: Path) -> None:
    """Write all pages to `folder`; those that have not changed are left alone, so that a second build is quick."""
    written = set()
    for name, text in pages():
        file = folder / name
        written.add(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
    for file in [file for file in folder.rglob("*") if file.is_file() and file not in written]:
        file.unlink()


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# ------------------------------------------------------------------------------------------- recipes


def recipe_names() -> list[str]:
    """The recipes of a method and a student, in the order of the paper's tables."""
    names = [f"{method}_{student}" for student in STUDENTS for method in METHODS]
    found = {file.stem for file in (ROOT / "recipes").glob("*_*.py")}
    return [name for name in names if name in found] + sorted(found - set(names))


def recipe(name: str) -> settings.Recipe:
    """The `RECIPE` of recipes/NAME.py, without running it."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: settings.Recipe = module.RECIPE
    return found


def said_of(file: Path) -> str:
    """A script's docstring."""
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "not set"
    if name in ("attack.eps", "attack.step", "eval.eps"):
        return show_fraction(value)
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def recipe_page(name: str) -> str:
    """One recipe: where in the paper it belongs, what it sets by data set, its objective, its command."""
    found = recipe(name)
    default = dict(settings.flat(settings.Settings()))
    by_data = {data: dict(settings.flat(found.defaults(data=data))) for data in DATA}
    rows = []
    for setting, usual in default.items():
        values = [by_data[data][setting] for data in DATA]
        if setting in ("recipe", "data.name") or all(value == usual for value in values):
            continue
        shown = [_shown(setting, value) for value in values]
        # one that is the same everywhere is said once
        cells = shown if len(set(shown)) > 1 else [shown[0], *("″" for _ in DATA[1:])]
        rows.append([f"`{settings.option(setting)}`", _shown(setting, usual), *cells])
    plan = Plan.of(found.settings)
    objective = plan.objective
    phases = [("from epoch 0", 0)]
    if objective.warmup_epochs:
        phases = [("in warm-up", 0), (f"from epoch {objective.warmup_epochs}", objective.warmup_epochs)]
    passes = [
        [when, ", ".join(f"`{p}`" for p in sorted(objective.needs(epoch))), plan.forward_passes(epoch)[1]]
        for when, epoch in phases
    ]
    own = found.settings.data.name
    return f"""# {name}

{found.title}

{said_of(ROOT / "recipes" / f"{name}.py")}

```bash
accelerate launch recipes/{name}.py
accelerate launch recipes/{name}.py --dry-run
```

Without `--data.name` it takes `{own}`. `--dry-run` prints every setting, the steps of an epoch, the passes of a step
and the number of parameters, and stops.

## Objective

On `{own}`:

> {objective.formula}

{_table(["", "passes of a step", "cost in forward passes of an image (F)"], passes)}

## Settings

What differs from the [defaults](/api/run.md) on some data set; everything else is the default. ″ is the same as on its
left.

{_table(["setting", "default", *DATA], rows)}

## The file

:::{{literalinclude}} /../recipes/{name}.py
:language: python
:::
"""


def recipes_table() -> str:
    """All recipes at a glance."""
    found = recipe_names()
    rows = []
    for method, title in METHODS.items():
        cells = [title]
        for student in STUDENTS:
            name = f"{method}_{student}"
            cells.append(f"[{name}](recipes/{name}.md)" if name in found else "")
        rows.append(cells)
    listed = "\n".join(f"recipes/{name}" for name in found)
    return f"""# Every recipe

One for each method and student of the paper's main tables. The pages are made of the recipes themselves.

{_table(["", *STUDENTS.values()], rows)}

A student finds its teacher by name: `--teacher at` (the default) is the run of the same student's AT recipe on the same
data, `--teacher trades` that of TRADES. A folder, a checkpoint or a network of the hub does as well.

```bash
accelerate launch recipes/at_resnet18.py
accelerate launch recipes/iad1_resnet18.py
accelerate launch recipes/iad1_resnet18.py --teacher trades --data.name cifar100
accelerate launch recipes/iad1_resnet18.py --data.name digits --student.name cifar_resnet8 --train.epochs 12
```

`--train.epochs E` moves learning-rate drops and warm-up in proportion, unless they are given too. `--train.schedule`
names other schedules: `released` (the second drop is lost, as in the released code), `gairat`, `sec5_1`.

```{{toctree}}
:hidden:

{listed}
```
"""


def studies_table() -> str:
    """Every study with its title, its rows and the runs that it needs at its own settings."""
    rows = []
    for name in studies.names():
        study = studies.read(name)
        grid = studies.expand(study, studies.Choices())
        rows.append([f"`{name}`", study.title, str(len(grid.lines)), str(len(grid.cells))])
    head = ["study", "", "rows", "runs, with teachers"]
    return f"## All studies\n\nAt their own seeds.\n\n{_table(head, rows)}\n"


# ------------------------------------------------------------------------------------------- objectives


def objectives_table() -> str:
    """Every registered objective with its formula and passes."""
    blocks = []
    for name, constructor in objectives.ROWS.items():
        objective = constructor()
        read = ", ".join(f"`{p}`" for p in sorted(objective.needs(objective.warmup_epochs)))
        blocks.append([f"{{py:func}}`~iad_ext.objectives.{name}`", objective.formula, read])
    return (
        _table(["objective", "loss of an image, with the default weights", "passes it reads"], blocks) + "\n"
    )


# ------------------------------------------------------------------------------------------- settings


def settings_tables() -> str:
    """Every setting of a run: its option, its default, what it does, by group."""
    source = ast.parse(Path(settings.__file__).read_text(encoding="utf-8"))
    said = {
        (group.name, before.target.id): _one_line(after.value.value)
        for group in source.body
        if isinstance(group, ast.ClassDef)
        for before, after in zip(group.body, group.body[1:], strict=False)
        if isinstance(before, ast.AnnAssign)
        and isinstance(before.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }
    groups: dict[str, list[list[str]]] = {}
    whole = settings.Settings()
    for name, value in settings.flat(whole):
        group, _, leaf = name.rpartition(".")
        kind = type(getattr(whole, group) if group else whole).__name__
        if (kind, leaf) in said:
            row = [f"`{settings.option(name)}`", _shown(name, value), said[kind, leaf]]
            groups.setdefault(kind, []).append(row)
    return "\n\n".join(
        f"### {kind}\n\n{inspect.getdoc(getattr(settings, kind))}\n\n{_table(['option', 'default', ''], rows)}"
        for kind, rows in groups.items()
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


# ------------------------------------------------------------------------------------------- commands


def commands() -> str:
    """What `iad-ext COMMAND --help` prints, for every command."""
    parts = []
    for name, command in cli.COMMANDS.items():
        first = (command.__doc__ or "").strip()
        parts.append(f"## iad-ext {name}\n\n{first}\n\n```text\n{_help(name)}\n```")
    return "\n\n".join(parts) + "\n"


def _help(command: str) -> str:
    out = io.StringIO()
    with redirect_stdout(out), suppress(SystemExit):
        cli._command([command, "--help"])
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    return "\n".join(line.rstrip() for line in plain.strip().splitlines())


# ------------------------------------------------------------------------------------------- the paper


def paper_entries() -> list[Mapping[str, Any]]:
    """docs/paper_index.yaml, read."""
    found: list[Mapping[str, Any]] = yaml.safe_load((DOCS / "paper_index.yaml").read_text(encoding="utf-8"))
    return found


def paper_index() -> str:
    """Equation, table, figure -> function, recipe, test."""
    blocks = []
    for entry in paper_entries():
        lines = [f"## {entry['place']}", "", entry["what"], ""]
        linked = [f"{{py:obj}}`{name}`" for name in entry.get("functions", ())]
        if linked:
            lines += [f"code\n: {', '.join(linked)}", ""]
        named = [f"[{name}](recipes/{name}.md)" for name in entry.get("recipes", ())]
        if named:
            lines += [f"recipes\n: {', '.join(named)}", ""]
        if entry.get("figures"):
            lines += ["in `metrics.jsonl`\n: " + ", ".join(f"`{name}`" for name in entry["figures"]), ""]
        lines += ["tests\n: " + ", ".join(f"`{test}`" for test in entry["tests"]), ""]
        if entry.get("commands"):
            lines += ["```bash", *entry["commands"], "```", ""]
        if entry.get("note"):
            lines += [entry["note"], ""]
        blocks.append("\n".join(lines))
    return f"""# The paper's index

Where each equation, table and figure of *Reliable Adversarial Distillation with Unreliable Teachers* (Zhu et al., ICLR
2022) is in this code. A test imports every function named here, finds every recipe and every test, and reads every
command line.

{chr(10).join(blocks)}"""


# ------------------------------------------------------------------------------------------- the quickstart


def quickstart_provenance() -> str:
    """When, where and with what the shown output was made."""
    found = yaml.safe_load((DOCS / "quickstart" / "provenance.json").read_text(encoding="utf-8"))
    hardware = found["hardware"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"Made on {found['time'][:10]} by `{found['command']}` at commit `{found['commit'][:12]}`, on "
        f"{hardware['cpu']} ({hardware['cores']} cores, {hardware['threads']} thread, {hardware['cpu_capability']}), "
        f"Python {found['python']}, {versions}; {found['beside']}.\n"
    )


def results() -> str:
    """docs/results/README.md without its title, its links as seen from the page that it becomes a part of."""
    _, _, text = (DOCS / "results" / "README.md").read_text(encoding="utf-8").partition("\n")
    return re.sub(r"\]\((?![a-z]+:|/|#)", "](/results/", text)


# ------------------------------------------------------------------------------------------- examples


def examples() -> list[Path]:
    """The scripts in examples/ that are shown."""
    return sorted(file for file in (ROOT / "examples").glob("*.py") if not file.name.startswith("_"))


def example_page(file: Path) -> str:
    """One example: what it says of itself, what it printed, the file."""
    said = said_of(file).strip()
    title, _, rest = said.partition("\n")
    printed = DOCS / "gallery" / f"{file.stem}.txt"
    output = ""
    if printed.exists():
        made, _, command = printed.read_text(encoding="utf-8").partition("\n")[0].rpartition(": ")
        output = (
            f"## What it prints\n\n`{command}` ({made.removeprefix('# ')}):\n\n"
            f":::{{literalinclude}} /gallery/{printed.name}\n:language: text\n:lines: 2-\n:::\n\n"
        )
    # what it says of itself stands above already
    below = ast.parse(file.read_text(encoding="utf-8")).body[0].end_lineno + 2
    return f"""# {file.name}

{title}

{rest.strip()}

{output}## The code

:::{{literalinclude}} /../examples/{file.name}
:language: python
:lines: {below}-
:::
"""


def gallery() -> str:
    """The list of examples; includes nothing where there are none."""
    found = examples()
    if not found:
        return "There are no examples yet.\n"
    rows = [
        [f"[{file.name}](/generated/gallery/{file.stem}.md)", said_of(file).partition("\n")[0]]
        for file in found
    ]
    listed = "\n".join(f"/generated/gallery/{file.stem}" for file in found)
    return f"{_table(['example', ''], rows)}\n\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"


# ------------------------------------------------------------------------------------------- the three cases

# a teacher's probabilities of four classes, of which the first is the true one; made up, to be drawn
CLASSES = ("3", "5", "8", "9")
EXAMPLES: dict[str, tuple[str, str, tuple[float, ...], tuple[float, ...]]] = {
    "reliable": (
        "right on x and on x̃",
        "follow the teacher",
        (0.90, 0.04, 0.04, 0.02),
        (0.70, 0.15, 0.10, 0.05),
    ),
    "unreliable": (
        "right on x, wrong on x̃",
        "trust it less",
        (0.80, 0.12, 0.05, 0.03),
        (0.25, 0.55, 0.12, 0.08),
    ),
    "wrong": ("wrong on x too", "listen to yourself", (0.20, 0.60, 0.12, 0.08), (0.03, 0.85, 0.08, 0.04)),
}
BETA = 0.1


def example_trust(case: str) -> float:
    """α of a case's example, by the package's own function."""
    log_p = torch.tensor(EXAMPLES[case][3]).log()[None]
    return float(reliability.trust(log_p, torch.tensor([0]), beta=BETA))


def three_cases() -> str:
    """The three cases of Section 3.2 side by side, as SVG that follows the page's colours."""
    cards = "\n".join(_card(case) for case in EXAMPLES)
    return f'<div class="cases" role="img" aria-label="{html.escape(_in_words())}">\n{cards}\n</div>\n'


def _in_words() -> str:
    said = [
        f"{case}: the teacher is {when}; it gives the true class {EXAMPLES[case][3][0]:.2f} on the adversarial image, "
        f"trust is {example_trust(case):.2f}"
        for case, (when, *_) in EXAMPLES.items()
    ]
    return "The three cases of a teacher. " + "; ".join(said) + "."


def _card(case: str) -> str:
    when, advice, natural, attacked = EXAMPLES[case]
    alpha = example_trust(case)
    width = 236
    parts = [
        *_bars("T(x)", natural, x=4, y=20, width=100),
        *_bars("T(x̃)", attacked, x=width - 100, y=20, width=100),
        f'<text x="{width / 2}" y="142" class="middle">α = {attacked[0]:.2f}'
        f'<tspan dy="-5" class="small">{BETA:g}</tspan><tspan dy="5"> = {alpha:.2f}</tspan></text>',
        f'<rect x="0" y="152" width="{width * alpha:.1f}" height="16" class="teacher"/>',
        f'<rect x="{width * alpha:.1f}" y="152" width="{width * (1 - alpha):.1f}" height="16" class="self"/>',
        '<text x="0" y="184" class="small">teacher α</text>',
        f'<text x="{width}" y="184" class="small end">self 1 − α</text>',
    ]
    return (
        f'<div class="case"><p class="case-title">{case}</p><p>{when}: {advice}</p>'
        f'<svg viewBox="0 0 {width} 190" aria-hidden="true">{"".join(parts)}</svg></div>'
    )


def _bars(title: str, probabilities: tuple[float, ...], *, x: int, y: int, width: int) -> Iterator[str]:
    """A small bar chart of a prediction; the true class stands out."""
    height, step = 78, width / len(probabilities)
    yield f'<text x="{x + width / 2 - 2}" y="{y - 6}" class="middle">{title}</text>'
    for position, (name, p) in enumerate(zip(CLASSES, probabilities, strict=True)):
        kind = "true" if position == 0 else "other"
        left, top = x + position * step, y + height * (1 - p)
        yield (
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{step - 4:.1f}" height="{height * p:.1f}" class="{kind}"/>'
            f'<text x="{left + step / 2 - 2:.1f}" y="{y + height + 14}" class="small middle">{name}</text>'
        )
    yield f'<line x1="{x - 2}" y1="{y + height}" x2="{x + width - 2}" y2="{y + height}" class="axis"/>'
