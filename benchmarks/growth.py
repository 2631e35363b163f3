"""(j) how the step's cost grows: with the batch, the attack's steps, the classes, the image's size, the processes."""

import json
import os
import socket
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from harness import Bench, spread
from workloads import Ours, Task, default_precision

HERE = Path(__file__).resolve().parent


def axes(bench: Bench) -> dict[str, tuple[list[Task], str]]:
    """Tasks along each axis, the first is the base; and what a step is divided by to be compared with it."""
    if bench.quick:
        base = Task("cifar_resnet8", 2, 8, steps=1)
        return {"batch": ([base, Task("cifar_resnet8", 4, 8, steps=1)], "image")}
    gpu = bench.device.type == "cuda"
    net, batch, steps = "cifar_resnet18", 128 if gpu else 16, 2
    batches = (32, 64, 128, 256, 512, 1024) if gpu else (4, 8, 16, 32, 64)
    return {
        "batch": ([Task(net, b, steps=steps) for b in batches], "image"),
        "steps": ([Task(net, batch, steps=s) for s in (1, 2, 5, 10, 20)], "F"),
        "classes": ([Task(net, batch, classes=c, steps=steps) for c in (10, 100, 1000)], "image"),
        "size": ([Task(net, batch // 2, size=s, steps=steps) for s in (32, 48, 64, 96)], "pixel"),
    }


def along(bench: Bench, axis: str, share: float) -> dict[str, Any]:
    """Race IAD-I's step of every task of an axis; each one's cost per unit over the first's."""
    tasks, unit = axes(bench)[axis]
    names = [f"{task}, PGD-{task.steps}" for task in tasks]
    contenders = {
        name: Ours(task, "IAD-I", bench.device, default_precision(_plain(task), bench.device)).contender()
        for name, task in zip(names, tasks, strict=True)
    }
    timings = bench.race(contenders, share=share)
    rows = []
    for name, task in zip(names, tasks, strict=True):
        units = {
            "image": task.batch,
            "pixel": task.batch * task.size**2,
            "F": 2 * task.steps + 8,  # IAD-I after warm-up, in forward passes
        }
        base = {
            "image": tasks[0].batch,
            "pixel": tasks[0].batch * tasks[0].size ** 2,
            "F": 2 * tasks[0].steps + 8,
        }
        ratio = timings.ratio(name, names[0])
        factor = base[unit] / units[unit]
        rows.append(
            {
                "axis": axis,
                "step": name,
                "seconds": timings.plain()[name]["median"],
                f"cost / {unit} against the first": {
                    k: v if k == "n" else float(f"{v * factor:.4g}") for k, v in ratio.items()
                },
            }
        )
    return {"rows": rows}


def _plain(task: Task) -> Task:
    """The precision is decided once a network and size."""
    return Task(task.network, min(task.batch, 16), task.size)


# ---------------------------------------------------------------------------------------------- processes


def weak_scaling(bench: Bench) -> dict[str, Any]:
    """The same share of images a process on one and on two; one thread each on a CPU. 1 is perfect."""
    task = Task("cifar_resnet8", 2, 8, steps=1) if bench.quick else Task("cifar_resnet18", 16, steps=2)
    if bench.device.type == "cuda":
        if torch.cuda.device_count() < 2:
            return {"skipped": "one GPU only: two processes on it would share its time"}
        task = Task("cifar_resnet18", 128)
    decided = default_precision(task, bench.device)
    ratios, seconds = [], {}
    for _ in range(1 if bench.quick else 2):
        for processes in (1, 2):
            seconds[processes] = _median_step(task, bench.device, decided.kind, processes, quick=bench.quick)
        ratios.append(seconds[1] / seconds[2])
    return {"one process / two": spread(ratios), "seconds": seconds, "task": str(task)}


def _median_step(task: Task, device: torch.device, kind: str, processes: int, *, quick: bool) -> float:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = json.dumps([task.network, task.batch * processes, task.size, task.steps, kind, 2 if quick else 8])
    workers = [
        subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), device.type, asked],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                **({"ACCELERATE_USE_CPU": "true"} if device.type == "cpu" else {}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    results = [worker.communicate(timeout=300) for worker in workers]
    for worker, (_, errors) in zip(workers, results, strict=True):
        if worker.returncode:
            raise RuntimeError(f"a process of {processes} failed: {errors.strip()[-400:]}")
    return statistics.median(json.loads(results[0][0].splitlines()[-1]))


# ---------------------------------------------------------------------------------------------- the group


def run(bench: Bench, only: frozenset[str]) -> list[str]:
    """All of it; the table."""
    assert only == {"j"}
    rows = []
    for axis in axes(bench):
        found = bench.case(f"growth: {axis}", lambda a=axis: along(bench, a, 0.01))
        rows += found.get("rows", [{"axis": axis, "step": found.get("failed")}])
    found = bench.case("growth: processes", lambda: weak_scaling(bench))
    rows.append(
        {
            "axis": "processes",
            "step": f"1 and 2 processes, {found.get('task', '')} a process",
            "time on one / on two": found.get("one process / two", found.get("skipped", found.get("failed"))),
        }
    )
    note = (
        "IAD-I after warm-up. Cost is that of a whole step divided by its images, its images' pixels, or its passes "
        "(F), over the same of the axis' first row: 1 is proportional, below 1 is better. Weak scaling: each process "
        "has the same number of images; on a CPU each has one thread, and 1 would be perfect."
    )
    return [bench.report("j", "How the step's cost grows", rows, (note,))]
