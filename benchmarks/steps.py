"""(a) floor / our step, (b) the released step / ours, (e) how much of the processor's arithmetic a step uses."""

import dataclasses
import time
from typing import Any

import torch
from equivalence import compared, our_update, small, start_of, updated
from harness import Bench, Contender
from released import FORWARDS, Released
from torch.profiler import ProfilerActivity, profile
from workloads import (
    OBJECTIVES,
    Floor,
    Ours,
    Task,
    default_precision,
    flops_of_forward,
    passes_in_forwards,
    same_passes,
)

from iad_ext.precision import wait_for

SMALL = "cifar_resnet8"  # where the overhead of a step shows
# dense bf16, TFLOP/s, by what a name begins with (NVIDIA's data sheets)
STATED_PEAK = {"NVIDIA H100 80GB": 989.4, "NVIDIA H200": 989.4, "NVIDIA A100": 312.0}


def tasks(bench: Bench) -> list[tuple[Task, tuple[str, ...], float]]:
    """Networks with the objectives to time on them and each one's share of the time."""
    every = tuple(name for name in OBJECTIVES if name != "IAD-II in warm-up")
    if bench.quick:
        return [(Task(SMALL, 4, 8, steps=2), ("TRADES", "IAD-I", "IAD-II"), 0.0)]
    if bench.device.type == "cuda":
        return [
            (Task("cifar_resnet18", 128), every, 0.02),
            (Task("cifar_resnet18", 512), ("AT", "IAD-I", "IAD-II"), 0.025),
            (Task("cifar_wrn34_10", 128), ("IAD-I", "IAD-II"), 0.035),
            (Task("cifar_preact_resnet18", 128, size=64), ("IAD-I",), 0.03),
            (Task(SMALL, 128), every, 0.01),
        ]
    return [
        (Task("cifar_resnet18", 128), every, 0.045),
        (Task(SMALL, 128), ("AT", "IAD-I"), 0.005),
        (Task("cifar_preact_resnet18", 8, size=64), ("IAD-I",), 0.02),
        (Task("cifar_wrn34_10", 8), ("IAD-I",), 0.06),
    ]


RELEASED_TAKES_MORE = 2.5  # a turn with the released step takes so many times as long


def with_released(task: Task, objective: str) -> bool:
    """Where the released step runs beside ours."""
    return task.network in ("cifar_resnet18", SMALL) and objective in ("IAD-I", "IAD-II")


def measure(bench: Bench, task: Task, objective: str, share: float, only: frozenset[str]) -> dict[str, Any]:
    """One objective on one network: floor, ours, and the released step where there is one."""
    decided = default_precision(task, bench.device)
    ours = Ours(task, objective, bench.device, decided)
    contenders: dict[str, Contender] = {"ours": ours.contender()}
    found: dict[str, Any] = {}
    if "a" in only:
        contenders["floor"] = Floor(task, objective, bench.device, decided).contender()
        found["passes"] = same_passes(task, objective, bench.device)
    if "b" in only and with_released(task, objective):
        found["equivalence"] = released_is_ours(task, objective, bench.device)
        contenders["released"] = Released(task, objective, bench.device).contender()
        share *= RELEASED_TAKES_MORE
    timings = bench.race(contenders, share=share)
    found["seconds"] = timings.plain()
    found["precision"] = f"{decided.kind}{' channels_last' if decided.channels_last else ''}"
    found["compile"] = dataclasses.asdict(ours.compilation)
    found["forwards"] = passes_in_forwards(ours.objective, ours.epoch, task.steps)
    if "floor" in contenders:
        found["floor / ours"] = timings.ratio("floor", "ours")
    if "released" in contenders:
        found["released / ours"] = timings.ratio("released", "ours")
        found["forwards as released"] = FORWARDS[objective](task.steps)
    return found


def released_is_ours(task: Task, objective: str, device: torch.device) -> dict[str, Any]:
    """The two updates, after one attack step in fp32 and two in fp64; BatchNorm's buffers in the released order."""
    found = {}
    for said, few in (
        ("fp32", small(task, batch=32, steps=1)),
        ("fp64", small(task, steps=2, dtype=torch.float64)),
    ):
        start = start_of(few, device)
        theirs = Released(few, objective, device)
        theirs.start = start
        loss = theirs.loss(theirs.images, theirs.labels)
        loss.backward()
        other = updated(theirs.student, float(loss.detach()), theirs.adversarial)
        ours = our_update(few, objective, device, start=start, bn_order="faithful")
        found |= {f"{said} {name}": value for name, value in compared(ours, other).items()}
    return found


# ---------------------------------------------------------------------------------------------- (e)


def utilisation(bench: Bench) -> dict[str, Any]:
    """Arithmetic of the passes a second, over the fastest matrix product here and over the stated peak."""
    found: dict[str, Any] = {}
    peaks = {kind: best_product(bench, dtype) for kind, dtype in TYPES.items()}
    found["matrix product, TFLOP/s"] = {kind: float(f"{peak / 1e12:.3g}") for kind, peak in peaks.items()}
    stated = None
    if bench.device.type == "cuda":
        name = torch.cuda.get_device_name(bench.device)
        stated = next((peak for begins, peak in STATED_PEAK.items() if name.startswith(begins)), None)
    rows = []
    for task, names, _ in tasks(bench):
        case = bench.found.get(f"step: {task}: IAD-I")
        if "IAD-I" not in names or case is None or "seconds" not in case:
            continue
        seconds = case["seconds"]["ours"]["median"]
        rate = flops_of_forward(task) * case["forwards"] * task.batch / seconds
        kind = case["precision"].split()[0]
        rows.append(
            {
                "network": str(task),
                "images a second": float(f"{task.batch / seconds:.4g}"),
                "TFLOP/s of the passes": float(f"{rate / 1e12:.3g}"),
                "of a matrix product here": f"{100 * rate / peaks[kind]:.0f}%",
                "of the stated peak": f"{100 * rate / 1e12 / stated:.0f}%" if stated else None,
            }
        )
    return found | {"rows": rows}


def where_time_goes(bench: Bench) -> dict[str, Any]:
    """The operators of IAD-I's step by their own time: what bounds it where a target is not reached."""
    task = Task("cifar_resnet18", 128 if bench.device.type == "cuda" else 32, steps=2)
    if bench.quick:
        task = Task(SMALL, 4, 8, steps=2)
    decided = default_precision(task, bench.device)
    # a graph's kernels have no operators
    ours = Ours(task, "IAD-I", bench.device, decided, compile="off")
    ours.step()
    gpu = bench.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities, acc_events=False) as seen:
        ours.step()
        wait_for(bench.device)
    spent = {
        event.key: event.self_device_time_total if gpu else event.self_cpu_time_total
        for event in seen.key_averages()
        if event.key.startswith("aten::") or gpu
    }
    total = sum(spent.values())
    most = sorted(spent, key=spent.__getitem__, reverse=True)[:8]
    return {"task": str(task), "shares": {name: f"{100 * spent[name] / total:.1f}%" for name in most}}


TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def best_product(bench: Bench, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product, the best of a few."""
    n = 256 if bench.quick else 8192 if bench.device.type == "cuda" else 2048
    one, other = (torch.randn(n, n, device=bench.device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(2 if bench.quick else 8):
        wait_for(bench.device)
        began = time.perf_counter()
        one @ other
        wait_for(bench.device)
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


# ---------------------------------------------------------------------------------------------- groups

RATIO = {"a": "floor / ours", "b": "released / ours"}
TITLE = {
    "a": "Floor / our step",
    "b": "The released step / ours",
    "e": "Arithmetic of IAD-I's step as a share of the processor's",
}
NOTES = {
    "a": (
        "The floor runs the step's passes and an SGD step in the precision that `--precision auto` finds fastest, on a "
        "GPU with cuDNN's kernel search where that is faster, without attack arithmetic, loss, data or figures.",
    ),
    "b": (
        "The released step is re-stated in `benchmarks/released.py`, fp32 NCHW as released. Equivalence: one update "
        "from the same weights and start, after one attack step in fp32 and after two in fp64, ours in the faithful "
        "BatchNorm order.",
    ),
    "e": (
        "Counted are the passes' multiplications and additions (a multiply-add is two), not those of BatchNorm, attack "
        "and loss.",
    ),
}
TARGET = {("a", "cpu"): 0.95, ("a", "cuda"): 0.96, ("b", "cpu"): 3.0, ("b", "cuda"): 3.5}


def run(bench: Bench, only: frozenset[str]) -> list[str]:
    """All of it; the tables."""
    timed = only & {"a", "b"} or ({"a"} if "e" in only else frozenset())
    for task, names, share in tasks(bench) if timed else ():
        for objective in names:
            if timed == {"b"} and not with_released(task, objective):
                continue
            bench.case(
                f"step: {task}: {objective}",
                lambda t=task, o=objective, s=share: measure(bench, t, o, s, frozenset(timed)),
            )
    tables = []
    for group in sorted(only & RATIO.keys()):
        rows = []
        for task, names, _ in tasks(bench):
            for objective in names:
                found = bench.found.get(f"step: {task}: {objective}", {})
                if "failed" in found or RATIO[group] in found:
                    rows.append(_row(bench, group, task, objective, found))
        tables.append(bench.report(group, TITLE[group], rows, NOTES[group]))
    if "e" in only:
        found = bench.case("utilisation", lambda: utilisation(bench))
        product = f"A matrix product reaches {found.get('matrix product, TFLOP/s')} TFLOP/s here."
        profiled = bench.case("profile", lambda: where_time_goes(bench))
        shares = ", ".join(f"`{name}` {share}" for name, share in profiled.get("shares", {}).items())
        where = f"Where IAD-I's step spends its time ({profiled.get('task')}): {shares}."
        tables.append(bench.report("e", TITLE["e"], found.get("rows", []), (product, where, *NOTES["e"])))
    return tables


def _row(bench: Bench, group: str, task: Task, objective: str, found: dict[str, Any]) -> dict[str, Any]:
    if "failed" in found:
        return {"network": str(task), "objective": objective, RATIO[group]: found["failed"]}
    seconds = found["seconds"]
    row = {
        "network": str(task),
        "objective": objective,
        RATIO[group]: found[RATIO[group]],
        "target": TARGET.get((group, bench.device.type)),
        "ours, s": seconds["ours"]["median"],
        "ours": f"{found['precision']}, compile {found['compile']['kind']}, {found['forwards']} F",
    }
    if group == "a":
        row["check"] = f"the same passes, counted: {found['passes']}"
    else:
        row["released"] = f"{found['forwards as released']} F"
        row["check"] = ", ".join(f"{key} {value}" for key, value in found["equivalence"].items())
    return row
