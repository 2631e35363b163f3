"""README's Python blocks run as they are, and its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- this block runs in the test suite -->\n```python\n(.*?)```", README, re.DOTALL)


def test_every_python_block_is_one_that_runs():
    assert len(BLOCKS) == README.count("```python") == 4


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number, tmp_path):
    script = f"import torch; torch.set_num_threads(1)\n{BLOCKS[number]}"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.strip()
    assert printed
    if "PGD-20" in printed:
        natural, robust = (float(share) for share in re.findall(r"([\d.]+)%", printed))
        # trained, and attacked: far above chance, and hurt by the attack
        assert natural > 60
        assert 20 < robust < natural


def test_the_art_pipeline_is_about_fifteen_lines():
    lines = [
        line for line in BLOCKS[0].splitlines() if line.strip() and not line.startswith(("import", "from"))
    ]
    assert len(lines) <= 15


def test_make_targets_and_recipes_that_it_names_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make ([a-z]+)\b", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for recipe in re.findall(r"recipes/(\w+\.py)", README):
        assert (ROOT / "recipes" / recipe).exists(), recipe
    for path in re.findall(r"`(iad_ext/[\w/.]+|docs/[\w/.]+)`", README):
        assert (ROOT / path).exists(), path
