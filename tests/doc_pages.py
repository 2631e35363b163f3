"""The pages of the docs as blocks of code, and what it means to check one of each language."""

import json
import re
import shlex
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

import recipe_files
import tyro
import yaml
from accelerate.commands.launch import launch_command_parser

from iad_ext import cli, settings
from iad_ext.spelling import with_file

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

import generate  # noqa: E402 (docs/generate.py)

WRITTEN = sorted(
    path for path in DOCS.rglob("*.md") if not {"_build", "generated"} & set(path.relative_to(DOCS).parts)
)
GENERATED = [(f"generated/{name}", text) for name, text in generate.pages() if not name.endswith(".html")]
PAGES = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in WRITTEN} | dict(GENERATED)

# words that stand for something of the reader's
PLACEHOLDERS = {"DIR", "DIR2", "FILE", "FOLDER", "COMMIT", "OWNER/NAME", "RECIPE"}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: what stands behind the fence; `{name}` for a directive.
        text: what stands in it.
        printed: of a Python block, the text block right under it, which says what it prints.
    """

    language: str
    text: str
    printed: str | None = None


def blocks(text):
    """The fenced blocks of a page, in order."""
    fence = re.compile(
        r"^(?P<fence>`{3,}|:{3,})(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=fence)[ ]*$", re.M | re.S
    )
    found = []
    for match in fence.finditer(text):
        language = match["language"].split()[0] if match["language"].strip() else ""
        below = fence.match(text, match.end() + 2)
        printed = None
        if language == "python" and below and below["language"].strip() == "text":
            printed = below["text"]
        found.append(Block(language, match["text"], printed))
    return found


def program(page):
    """All Python blocks of a page as one program that shows where each one's output ends."""
    parts = ["import torch; torch.set_num_threads(1)"]
    for number, block in enumerate(python_blocks(page)):
        parts += [block.text, f"print('\\n<end of block {number}>')"]
    return "\n".join(parts)


def python_blocks(page):
    return [block for block in blocks(PAGES[page]) if block.language == "python"]


# --------------------------------------------------------------------------------------------------- commands


def commands(text):
    """The commands of a bash block, a list of words each: variables put in, comments and their assignments left out."""
    variables, waiting = {}, ""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        waiting += line
        try:
            words = shlex.split(waiting, comments=True)
        except ValueError:  # a quote that ends on a later line
            waiting += " "
            continue
        waiting = ""
        while words and (found := re.fullmatch(r"([A-Z_]+)=(.*)", words[0])):
            variables[found[1]] = found[2]
            words = words[1:]
        words = [part for word in words for part in (_value(word, variables) if word[:1] == "$" else [word])]
        if words:
            yield words
    assert not waiting, f"a quote without end: {waiting}"


def _value(word, variables):
    return variables[word[1:]].split() if word[1:] in variables else [word]


def check_command(words):
    """Read a command as the program that it calls would, without running it."""
    program, *args = words
    check = CHECKS.get(program)
    assert check is not None, f"no check for {' '.join(words)}"
    check(args)


def _iad_ext(args):
    assert args, "a subcommand"
    cli._command(args)


def _accelerate(args):
    assert args[0] == "launch", args
    read = launch_command_parser().parse_args(args[1:])
    if read.config_file is not None:
        assert (ROOT / read.config_file).is_file(), read.config_file
    if read.module:
        assert read.training_script == "iad_ext", args
        _iad_ext(read.training_script_args)
    else:
        _recipe([read.training_script, *read.training_script_args])


def _recipe(args):
    script, *rest = args
    path = ROOT / script
    assert path.is_file(), script
    if path.parent.name == "recipes" and path.stem == "quickstart":
        tyro.cli(_quickstart(), args=rest)
    elif path.parent.name == "recipes":
        recipe = recipe_files.load(path.stem)
        with tempfile.TemporaryDirectory() as folder:
            words = with_file(recipe, [_shown_file(word, folder) for word in rest])
        settings.check(settings.from_command_line(recipe, words))


def _shown_file(word, folder):
    """A YAML file that a page shows under its name, written to `folder`; a run's own settings are the recipe's here."""
    if not word.endswith(".yaml"):
        return word
    content = "{}"
    if not word.endswith("/settings.yaml"):
        shown = [
            re.search(rf"```yaml\n# {re.escape(word)}\n(.*?)```", page, re.DOTALL) for page in PAGES.values()
        ]
        (content,) = (found[1] for found in shown if found)
    file = Path(folder) / "shown.yaml"
    file.write_text(content)
    return str(file)


def _quickstart():
    sys.path.insert(0, str(ROOT / "recipes"))
    import quickstart

    return quickstart.Quickstart


def _make(args):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for arg in args:
        name, equals, _ = arg.partition("=")
        if equals:
            assert f"$({name})" in makefile or f"{name} ?=" in makefile, arg
        else:
            assert re.search(rf"^{re.escape(arg)}:", makefile, re.MULTILINE), arg


def _pip(args):
    assert args[0] == "install", args
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for arg in args[1:]:
        named = re.search(r"\[(.*)\]", arg)
        for extra in named[1].split(",") if named else ():
            assert extra in extras, arg
        if arg.endswith((".txt", ".toml")):
            assert (ROOT / arg).is_file(), arg


def _sbatch(args):
    script, *rest = [arg for arg in args if not arg.startswith("-")] if args[0].startswith("-") else args
    assert (ROOT / script).is_file(), script
    _recipe(rest)


def _source(args):
    assert args == [".venv/bin/activate"], args


def _eval(args):
    inside = re.fullmatch(r"\$\((.*)\)", args[0])
    assert inside, args
    assert inside[1].split()[:2] == ["iad-ext", "completion"], args
    assert inside[1].split()[2] in cli.SHELLS


CHECKS = {
    "iad-ext": _iad_ext,
    "accelerate": _accelerate,
    "python": _recipe,
    "make": _make,
    "pip": _pip,
    "sbatch": _sbatch,
    "source": _source,
    "eval": _eval,
}


def check_data(block):
    """Parse a block of data."""
    {"yaml": yaml.safe_load, "toml": tomllib.loads, "json": json.loads}[block.language](block.text)
