"""(k) what each method of the leader board costs: time and peak memory of its step, against IAD-I's.

The methods are the rows of recipes/studies/board.yaml, with the objective, attack, average and perturbation that their
runs have, at the last epoch; rows that differ in nothing but the course of the rate or the seed are one.
"""

from typing import Any

from harness import Bench
from memory import peak
from workloads import Method, Ours, Task, default_precision

from iad_ext import settings as settings_
from iad_ext import studies
from iad_ext.plan import Plan
from iad_ext.studies import Choices

BASE = "IAD-I"
SHARE = 0.15  # of the budget
QUICK = ("AT", BASE, "AdaAD", "Everything")


def methods(steps: int) -> dict[str, tuple[Method, int]]:
    """By the row's label its method, and its step in forward passes of an image."""
    grid = studies.expand(studies.read("board"), Choices(settings={"all": {"attack.steps": steps}}))
    cells = {cell.folder: cell for cell in grid.cells}
    # what a step does not depend on
    common = {"train.rates": "cosine", "train.seed": 0, "out": None, "teacher": None}
    found = {}
    seen = []
    for line in grid.lines:
        cell = cells[line.cells[0]]
        if (step := settings_.override(cell.settings, common)) in seen:
            continue
        seen.append(step)
        plan, settings = Plan.of(cell.settings), cell.settings
        last = settings.train.epochs - 1
        method = Method(
            build=lambda plan=plan: plan.objective,  # type: ignore[misc]
            epoch=last,
            attack=settings.attack.name,
            average=settings.average.name != "none",
            awp=settings.train.awp,
        )
        found[line.label] = (method, plan.forward_passes(last)[0])
    return found


def measure(
    bench: Bench, task: Task, name: str, method: Method, base: Method, share: float
) -> dict[str, Any]:
    """Seconds of a step against the base's, taking turns."""
    decided = default_precision(task, bench.device)
    ours = {name: Ours(task, method, bench.device, decided), BASE: Ours(task, base, bench.device, decided)}
    timings = bench.race({label: each.contender() for label, each in ours.items()}, share=share)
    return {"ratio": timings.ratio(name, BASE), **timings.plain()}


def run(bench: Bench, only: frozenset[str]) -> list[str]:
    """All of it; the table."""
    assert only == {"k"}
    if bench.quick:
        task = Task("cifar_resnet8", 4, 8, steps=2)
    elif bench.device.type == "cuda":
        task = Task("cifar_resnet18", 128)
    else:
        task = Task("cifar_resnet8", 128, steps=5)
    board = methods(task.steps)
    if bench.quick:
        board = {name: board[name] for name in QUICK}
    base = board[BASE][0]
    rows = []
    for name, (method, forwards) in board.items():
        timed = bench.case(
            f"costs: {task}: {name}",
            lambda n=name, m=method: measure(bench, task, n, m, base, SHARE / len(board)),
        )
        memory = bench.case(f"costs, memory: {task}: {name}", lambda m=method: peak(bench, task, m))
        rows.append(
            {
                "method": name,
                f"time / {BASE}'s": timed.get("ratio"),
                "passes, F": forwards,
                "peak, MiB": memory.get("peak, MiB"),
            }
        )
    note = (
        f"A step of {task}, {task.steps} attack steps, after warm-up; F is one forward pass of the network."
    )
    return [bench.report("k", "What each method of the leader board costs", rows, (note,))]
