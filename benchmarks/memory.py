"""(g) peak memory of a step, against our TRADES and AT steps."""

from typing import Any

import torch
from harness import Bench
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from workloads import OBJECTIVES, Method, Ours, Task, default_precision

MIB = 2**20
TARGET = 1.10


def peak(bench: Bench, task: Task, objective: str | Method) -> dict[str, Any]:
    """MiB at the step's highest point: weights, optimizer, data, and what the step allocates on top.

    On a GPU what torch's allocator says; on a CPU the allocations that torch reports to its profiler.
    """
    decided = default_precision(task, bench.device)
    ours = Ours(task, objective, bench.device, decided)
    ours.step()  # the optimizer's state, the kernels' plans
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
        ours.step()
        return {"peak, MiB": round(torch.cuda.max_memory_allocated(bench.device) / MIB, 1)}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as seen:
        ours.step()
    held = highest = 0
    events = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    if not highest:
        raise RuntimeError("torch's profiler reports no memory here")
    return {"peak, MiB": round((resident(ours) + highest) / MIB, 1)}


def resident(ours: Ours) -> int:
    """Bytes of networks, optimizer and images that lie there before a step."""
    engine = ours.engine
    networks = [n for n in (ours.student, engine.teacher, engine.natural_teacher) if isinstance(n, nn.Module)]
    tensors: list[Tensor] = [t for n in networks for t in (*n.parameters(), *n.buffers())]
    tensors += [
        v for state in engine.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)
    ]
    tensors.append(engine.source.data.images)  # type: ignore[attr-defined]
    return sum(t.numel() * t.element_size() for t in tensors)


def run(bench: Bench, only: frozenset[str]) -> list[str]:
    """All of it; the table."""
    assert only == {"g"}
    gpu = bench.device.type == "cuda"
    # two attack steps: their memory is given back step by step, so that the peak does not depend on their number
    if bench.quick:
        tasks = [Task("cifar_resnet8", 4, 8, steps=2)]
    elif gpu:
        tasks = [Task("cifar_resnet18", 128, steps=2), Task("cifar_wrn34_10", 128, steps=2)]
    else:
        tasks = [Task("cifar_resnet18", 128, steps=2)]
    rows = []
    for task in tasks:
        found = {
            name: bench.case(f"memory: {task}: {name}", lambda t=task, n=name: peak(bench, t, n))
            for name in (("AT", "TRADES", "IAD-I") if bench.quick else OBJECTIVES)
        }
        peaks = {name: case.get("peak, MiB") for name, case in found.items()}
        for name, mib in peaks.items():
            row: dict[str, Any] = {"network": str(task), "objective": name, "peak, MiB": mib}
            for base in ("TRADES", "AT"):
                if mib and peaks[base]:
                    row[f"/ {base}"] = round(mib / peaks[base], 3)
            row["target, / TRADES"] = TARGET if name == "IAD-I" else None
            rows.append(row)
    note = (
        "Weights, gradients, momentum, teachers, images and everything that the step allocates, at its highest point; "
        "the TRADES step holds two student graphs as IAD's do, the AT step one. The paper's (GPU, Table 14): ARD 3253, "
        "IAD-I 3977, AKD2 2397, IAD-II 3249 MiB."
    )
    return [bench.report("g", "Peak memory of a step", rows, (note,))]
