"""(i) start-up: import time, and the time from the command to the first update."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import Bench, Contender

HERE = Path(__file__).resolve().parent


def _python(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip()[-400:]}")


def measure(bench: Bench) -> dict[str, Any]:
    """Each in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        contenders = {
            "import torch": Contender(run=lambda: _python("-c", "import torch")),
            "import iad_ext": Contender(run=lambda: _python("-c", "import iad_ext")),
            "iad-ext --help": Contender(run=lambda: _python("-m", "iad_ext", "--help")),
            "first step": Contender(
                run=lambda: _python(str(HERE / "first_step.py"), folder, bench.device.type)
            ),
        }
        timings = bench.race(contenders, share=0.03, turns=5, least=3)
    return {
        **{
            f"{name} / import torch": timings.ratio(name, "import torch")
            for name in contenders
            if name != "import torch"
        },
        "seconds": timings.plain(),
    }


def run(bench: Bench, only: frozenset[str]) -> list[str]:
    """All of it; the table."""
    assert only == {"i"}
    found = bench.case("start-up", lambda: measure(bench))
    rows = [
        {
            "what": name,
            "seconds": seconds,
            "/ import torch": found.get(f"{name} / import torch"),
        }
        for name, seconds in found.get("seconds", {}).items()
    ]
    note = (
        "`first step`: from the start of `recipes/at_resnet18.py` on handwritten digits (ResNet-8, batch 32) to the "
        "end of its first update, imports, data and the measurement of precisions included."
    )
    return [bench.report("i", "Start-up", rows, (note,))]
