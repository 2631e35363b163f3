"""The docs: every code block runs or is read by the program that it is for, and every name in them exists."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
import zlib

import doc_pages
import pytest
import torch
import yaml
from doc_pages import DOCS, PAGES, ROOT, blocks, generate
from recipe_files import ENVIRONMENT

from iad_ext import cli, evaluation, objectives, settings
from iad_ext.reliability import three_cases
from iad_ext.units import show_fraction

sys.path.insert(0, str(DOCS / "inventories"))
import inventories

DATA = {"yaml", "toml", "json"}
DIRECTIVES = {"{toctree}", "{include}", "{literalinclude}", "{image}", "{raw}", "{eval-rst}", "{list-table}"}
LANGUAGES = {"python", "bash", "text", *DATA, *DIRECTIVES}
RUN = [page for page in PAGES if doc_pages.python_blocks(page)]
COMMANDS = sorted(
    {
        tuple(words)
        for text in PAGES.values()
        for block in blocks(text)
        if block.language == "bash"
        for words in doc_pages.commands(block.text)
    }
)


def test_the_pages_are_there():
    written = {
        "index install quickstart from-art gallery released evaluate command-line scale performance reliability "
        "results design changelog extend/objective extend/attack extend/network extend/data-set api/index"
    }
    for name in " ".join(written).split():
        assert f"{name}.md" in PAGES, name
    assert {"generated/recipes.md", "generated/paper.md", "generated/recipes/iad1_resnet18.md"} <= set(PAGES)


def test_every_block_is_of_a_language_that_is_checked():
    for page, text in PAGES.items():
        for block in blocks(text):
            assert block.language in LANGUAGES, f"{page}: {block.language!r}"
        # nothing is fenced in a way that `blocks` does not see
        assert len(re.findall(r"^\s*`{3,}", text, re.MULTILINE)) == 2 * sum(
            "`" in fence for fence in re.findall(r"^(`{3,}|:{3,})[^\n`]*\n.*?^\1[ ]*$", text, re.M | re.S)
        ), page


def test_code_fits_beside_the_menu():
    for page in PAGES:
        for block in blocks(PAGES[page]):
            if block.language in ("python", "bash") and not page.startswith(("generated/", "results/")):
                assert max(map(len, block.text.splitlines())) <= 92, f"{page}: {block.text}"


def test_there_is_python_where_it_should_be():
    assert {"from-art.md", "evaluate.md", "reliability.md"} <= set(RUN)
    assert {f"extend/{what}.md" for what in ("objective", "attack", "network", "data-set")} <= set(RUN)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_the_python_of_a_page_runs_and_prints_what_it_says(page, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", doc_pages.program(page)],
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = re.split(r"<end of block \d+>", done.stdout)
    for block, said in zip(doc_pages.python_blocks(page), printed, strict=False):
        if block.printed is not None:
            assert said.strip() == block.printed.strip()


def test_the_worked_pages_say_what_they_print():
    for page in RUN:
        if page.startswith("extend/"):
            assert any(block.printed for block in doc_pages.python_blocks(page)), page


def test_there_are_commands():
    assert len(COMMANDS) > 60


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_is_understood_by_its_program(words):
    doc_pages.check_command(list(words))


@pytest.mark.parametrize(
    "words",
    [
        "iad-ext evalute x",
        "iad-ext evaluate x --atacks aa",
        "accelerate launch recipes/iad9.py",
        "accelerate launch recipes/iad1_resnet18.py --objective.betta 1",
        "accelerate launch --multi_gpus recipes/iad1_resnet18.py",
        "python recipes/quickstart.py --epoch 3",
        "make no-such-target",
        "pip install '.[nothing]'",
        "sbatch docs/launch/none.sbatch recipes/iad1_resnet18.py",
        "rm -rf runs",
    ],
)
def test_a_wrong_command_would_be_noticed(words):
    ((*read,),) = doc_pages.commands(words)
    with pytest.raises((AssertionError, SystemExit, cli.WrongInputError)):
        doc_pages.check_command(read)


def test_blocks_of_data_can_be_read():
    for text in PAGES.values():
        for block in blocks(text):
            if block.language in DATA:
                doc_pages.check_data(block)


@pytest.mark.parametrize("page", sorted(PAGES))
def test_files_that_a_page_names_exist(page):
    named = re.findall(r"`((?:iad_ext|docs|tests|recipes|examples)/[\w./-]+\.\w+)`", PAGES[page])
    for path in named:
        assert (ROOT / path).exists(), path


# --------------------------------------------------------------------------------------------------- generated pages


def test_every_recipe_has_a_page_with_everything_that_it_sets():
    default = dict(settings.flat(settings.Settings()))
    names = generate.recipe_names()
    assert len(names) == len(list((ROOT / "recipes").glob("*_*.py"))) == 27
    for name in names:
        page, recipe = generate.recipe_page(name), generate.recipe(name)
        assert recipe.title in page
        for data in generate.DATA:
            for setting, value in settings.flat(recipe.defaults(data=data)):
                if value != default[setting] and setting not in ("recipe", "data.name"):
                    (line,) = re.findall(rf"^\| `{settings.option(setting)}` \|.*$", page, re.MULTILINE)
                    shown = show_fraction(value) if setting.endswith(("eps", ".step")) else value
                    shown = " ".join(map(str, shown)) if isinstance(shown, tuple) else shown
                    assert f"{shown:g}" if isinstance(shown, float) else str(shown) in line
        assert name in generate.recipes_table()


def test_warm_up_by_data_set_stands_on_the_page():
    page = generate.recipe_page("iad1_resnet18")
    (line,) = re.findall(r"^\| `--objective.warmup-epochs` \|.*$", page, re.MULTILINE)
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["not set", "60", "80", "60", "60"]


def test_every_objective_and_setting_and_command_is_listed():
    table = generate.objectives_table()
    assert all(f"iad_ext.objectives.{name}`" in table for name in objectives.ROWS)
    listed = generate.settings_tables()
    for name, _ in settings.flat(settings.Settings()):
        if name != "recipe":
            assert f"| `{settings.option(name)}` |" in listed, name
    for name in ("doctor", "evaluate", "export", "objectives", "recipes", "completion"):
        assert f"## iad-ext {name}" in generate.commands()
    assert "--aa-limit" in generate.commands()


def test_every_entry_of_the_paper_s_index_exists():
    entries = generate.paper_entries()
    places = " ".join(entry["place"] for entry in entries)
    for place in [f"Table {n}" for n in range(1, 15)] + [f"Figure {n}" for n in range(1, 5)]:
        assert re.search(rf"{place}\b", places), place
    for place in [f"Equation {n}" for n in range(3, 7)]:
        assert place in places
    for entry in entries:
        assert entry["tests"], entry["place"]
        for name in entry.get("functions", ()):
            module, _, attribute = name.rpartition(".")
            assert getattr(importlib.import_module(module), attribute), name
        assert set(entry.get("recipes", ())) <= set(generate.recipe_names()), entry["place"]
        for test in entry["tests"]:
            file, _, function = test.partition("::")
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test
        assert set(entry) <= {"place", "what", "functions", "recipes", "commands", "figures", "tests", "note"}


def test_figures_of_the_index_are_those_of_metrics():
    source = "".join((ROOT / "iad_ext" / f"{name}.py").read_text() for name in ("diagnostics", "loop"))
    for entry in generate.paper_entries():
        for figure in entry.get("figures", ()):
            assert f'"{figure}"' in source, figure


def test_examples_have_a_page_each():
    for file in generate.examples():
        page = generate.example_page(file)
        assert f"/../examples/{file.name}" in page
        assert re.search(rf"^`python examples/{file.name}` \(20.*torch.*\):$", page, re.MULTILINE)
        # the code that is shown begins below what the page says already
        shown = file.read_text().splitlines()[int(re.search(r"^:lines: (\d+)-\n:::\n\Z", page, re.M)[1]) - 1]
        assert shown.startswith("import ")
        assert file.stem in generate.gallery()


@pytest.mark.parametrize("case", generate.EXAMPLES)
def test_the_picture_s_examples_are_of_their_cases(case):
    _, _, natural, attacked = generate.EXAMPLES[case]
    assert sum(natural) == pytest.approx(1)
    assert sum(attacked) == pytest.approx(1)
    logits = [torch.tensor([p]).log() for p in (natural, attacked)]
    cases = three_cases(*logits, torch.tensor([0]))
    assert {name for name, flags in cases.items() if flags.item()} == {case}
    assert generate.example_trust(case) == pytest.approx(attacked[0] ** 0.1)
    assert f"{generate.example_trust(case):.2f}" in generate.three_cases()


# --------------------------------------------------------------------------------------------------- pages by hand


def test_every_masking_flag_is_explained():
    source = "".join(path.read_text() for path in (ROOT / "iad_ext" / "evaluation").glob("*.py"))
    flags = set(re.findall(r'flag="(\w+)"', source))
    assert len(flags) > 8
    assert (
        set(re.findall(r"^\| `(\w+)` \| ", PAGES["evaluate.md"].partition("## Masking flags")[2], re.M))
        == flags
    )


def test_every_attack_is_explained():
    table = PAGES["evaluate.md"].partition("## Protocol")[2].partition("## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == evaluation.ATTACKS


def test_the_art_pipeline_is_about_fifteen_lines():
    code = "".join(block.text for block in doc_pages.python_blocks("from-art.md")[:2])
    statements = [
        line
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.stmt) and not isinstance(node, ast.Import | ast.ImportFrom)
        for line in [node.lineno]
    ]
    assert len(set(statements)) <= 15


def test_the_quickstart_s_shown_output_is_of_the_quickstart_of_today(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    quickstart = importlib.import_module("quickstart")
    measures = ("natural", "fgsm", "pgd20", "cw_inf", "aa")
    result = dict.fromkeys(measures, 50.0) | {"n": 359, "n_aa": 64, "flags": []}
    result |= {"interval": dict.fromkeys(measures, (40.0, 60.0))}
    monkeypatch.setattr(quickstart, "run", lambda _: {"best": result})
    monkeypatch.setattr(quickstart, "_examples", lambda _: [])
    monkeypatch.setattr(quickstart.torch, "set_num_threads", lambda _: None)
    (tmp_path / "quickstart").mkdir()
    quickstart.main(quickstart.Quickstart(out=tmp_path / "quickstart"))
    now, shown = capsys.readouterr().out, (DOCS / "quickstart" / "output.txt").read_text(encoding="utf-8")
    assert _rows_and_columns(shown) == _rows_and_columns(now)
    assert re.findall(r"^=== .* ===$", shown, re.M) == re.findall(r"^=== .* ===$", now, re.M)


def _rows_and_columns(output):
    """The names in the last table: its columns, what stands under them, its rows."""
    _, _, table = output.partition("Accuracy in percent")
    columns, images, *rows = [line.split() for line in table.strip().splitlines()[2:] if line.strip()]
    return columns, images, [row[0] for row in rows if len(row) == len(columns) + 1]


def test_the_quickstart_s_provenance_is_whole_and_names_no_host():
    found = yaml.safe_load((DOCS / "quickstart" / "provenance.json").read_text())
    assert set(found) == {"time", "commit", "python", "versions", "hardware", "command", "beside"}
    assert re.fullmatch(r"[0-9a-f]{40}", found["commit"])
    shown = generate.quickstart_provenance()
    assert found["commit"][:12] in shown
    assert found["versions"]["torch"] in shown
    assert (DOCS / "quickstart" / "picture.png").stat().st_size < 200_000


def test_results_are_those_of_the_folder():
    folders = {path.parent.name for path in (DOCS / "results").glob("*/README.md")}
    listed = (DOCS / "results" / "README.md").read_text(encoding="utf-8")
    assert folders
    for folder in folders:
        assert f"{folder}/README.md" in listed, folder


def test_the_changelog_knows_this_version():
    from iad_ext import __version__

    assert re.search(rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


# --------------------------------------------------------------------------------------------------- inventories


@pytest.mark.parametrize("project", inventories.ADDRESSES)
def test_an_inventory_is_the_project_s_own_or_says_that_it_is_not(project):
    content = (DOCS / "inventories" / f"{project}.inv").read_bytes()
    assert content.startswith(b"# Sphinx inventory version 2\n# Project: ")
    if inventories.is_by_hand(content):
        # zlib's bytes differ between its versions, what is in them does not
        assert _unpacked(content) == _unpacked(inventories.by_hand(project))


def _unpacked(content):
    *head, packed = content.split(b"\n", 4)
    return head, zlib.decompress(packed)


def test_fetching_keeps_what_is_there_when_nothing_comes(monkeypatch, tmp_path, capsys):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(inventories, "HERE", tmp_path)
    monkeypatch.setattr(inventories.urllib.request, "urlopen", offline)
    inventories.write()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert inventories.fetch() == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert "no network" in capsys.readouterr().err
    (tmp_path / "torch.inv").write_bytes(b"# Sphinx inventory version 2\n# Project: PyTorch\n")
    inventories.write()  # a fetched one stays
    assert b"PyTorch" in (tmp_path / "torch.inv").read_bytes()
