"""(h) images a second that the data pipeline could deliver / images a second that the step needs."""

from typing import Any

import torch
from harness import Bench, Contender
from workloads import Ours, Task, default_precision

from iad_ext.batches import Batches


def measure(bench: Bench, task: Task, share: float) -> dict[str, Any]:
    """A batch of the pipeline (order, crop, flip, to floats) against the step that eats it."""
    decided = default_precision(task, bench.device)
    ours = Ours(task, "IAD-I", bench.device, decided)
    source = Batches(
        task.images(bench.device, 2 if bench.quick else 16),
        batch_size=task.batch,
        seed=0,
        padding=4,
        flip=True,
        channels_last=decided.channels_last,
    )

    def epoch() -> None:
        """Order and augmentation of an epoch are planned anew in each."""
        epoch.number += 1  # type: ignore[attr-defined]
        for step in range(len(source)):
            source.batch(epoch.number, step)  # type: ignore[attr-defined]

    epoch.number = 0  # type: ignore[attr-defined]
    timings = bench.race(
        {"data": Contender(run=epoch), "step": ours.contender()}, share=share, turns=10, least=3
    )
    per_batch = len(source)
    ratios = timings.ratio("step", "data")
    scaled = {k: v if k == "n" else float(f"{v * per_batch:.4g}") for k, v in ratios.items()}
    seconds = timings.plain()
    return {
        "delivered / needed": scaled,
        "images a second delivered": float(f"{task.batch * per_batch / seconds['data']['median']:.4g}"),
        "images a second needed": float(f"{task.batch / seconds['step']['median']:.4g}"),
        "seconds": seconds,
    }


def run(bench: Bench, only: frozenset[str]) -> list[str]:
    """All of it; the table."""
    assert only == {"h"}
    tasks = [Task("cifar_resnet8", 128), Task("cifar_resnet18", 128 if bench.device.type == "cuda" else 16)]
    if bench.quick:
        tasks = [Task("cifar_resnet8", 4, 8, steps=2)]
    rows = []
    for task in tasks:
        found = bench.case(f"data: {task}", lambda t=task: measure(bench, t, 0.005))
        rows.append(
            {
                "network": str(task),
                "delivered / needed": found.get("delivered / needed", found.get("failed")),
                "images a second delivered": found.get("images a second delivered"),
                "images a second needed": found.get("images a second needed"),
            }
        )
    note = f"Images are uint8 on the {torch.device(bench.device).type}; order, crop, flip and floats are made there."
    return [
        bench.report("h", "What the data pipeline could deliver / what IAD-I's step needs", rows, (note,))
    ]
