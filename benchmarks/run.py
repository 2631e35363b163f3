"""Run the benchmarks: `python benchmarks/run.py [--only a,b] [--device cpu|cuda] [--quick] [--budget S] [--out DIR]`.

What each letter measures is in docs/performance.md. Results lie in runs/benchmarks/MACHINE unless `--out` says
otherwise; the same command goes on where it was interrupted.
"""

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

os.environ.setdefault("HF_HUB_OFFLINE", "1")

GROUPS = "abcdefghijk"
CPU_BUDGET, GPU_BUDGET = 1380.0, 540.0  # seconds


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(GROUPS), help="letters of the groups, such as a,b")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one")
    parser.add_argument(
        "--budget", type=float, help=f"seconds; {CPU_BUDGET:.0f} on a CPU, {GPU_BUDGET:.0f} on a GPU"
    )
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: shows that the code runs, measures nothing"
    )
    asked = parser.parse_args(arguments)
    only = frozenset(letter.strip() for letter in asked.only.split(",") if letter.strip())
    if not only or not only <= set(GROUPS):
        parser.error(f"--only takes letters among {', '.join(GROUPS)}; got {asked.only!r}")
    tables = measured(only, asked.device, asked.budget, asked.out, quick=asked.quick)
    print("\n" + "\n".join(tables))


def measured(
    only: frozenset[str], device_name: str | None, budget: float | None, out: Path | None, *, quick: bool
) -> list[str]:
    """Run the groups; their tables."""
    import torch

    device = torch.device(device_name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: --device cuda, but torch finds no CUDA device here; iad-ext doctor says why")

    import art_trainers
    import attack
    import costs
    import data
    import evaluation
    import growth
    import memory
    import startup
    import steps
    from harness import Bench, machine_kind

    from iad_ext import files

    out = out or HERE.parent / "runs" / "benchmarks" / (machine_kind(device) + ("-quick" if quick else ""))
    out.mkdir(parents=True, exist_ok=True)
    budget = budget or (GPU_BUDGET if device.type == "cuda" else CPU_BUDGET)
    bench = Bench(device=device, budget=budget, out=out, quick=quick)
    tables = []
    for letters, module in (
        ({"a", "b", "e"}, steps),
        ({"c"}, art_trainers),
        ({"d"}, attack),
        ({"f"}, evaluation),
        ({"g"}, memory),
        ({"h"}, data),
        ({"i"}, startup),
        ({"j"}, growth),
        ({"k"}, costs),
    ):
        if only & letters:
            tables += module.run(bench, frozenset(only & letters))
    whole = [
        (out / f"{letter}.md").read_text(encoding="utf-8")
        for letter in GROUPS
        if (out / f"{letter}.md").exists()
    ]
    files.write_text(
        out / "README.md", "\n".join(["# Benchmarks\n", *(text.replace("# ", "## ", 1) for text in whole)])
    )
    print(f"results in {out}")
    return tables


if __name__ == "__main__":
    main()
