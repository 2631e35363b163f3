"""One process of a weak-scaling measurement: prints the seconds of its steps. `worker.py DEVICE TASK`."""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from workloads import RATE, Task

from iad_ext import attacks, objectives, precision, processes
from iad_ext.batches import Batches
from iad_ext.loop import Engine, accelerator_for
from iad_ext.precision import wait_for


def main() -> None:
    """Train for a few steps with the others."""
    device_type, asked = sys.argv[1:]
    network, batch, size, steps, kind, repeats = json.loads(asked)
    task = Task(network, batch, size, steps=steps)
    decided = precision.asked(kind, reason="asked for")
    accelerator = accelerator_for(decided, cpu=device_type == "cpu")
    device = accelerator.device
    student, teacher = (task.build(seed, device).to(memory_format=torch.channels_last) for seed in (1, 2))
    engine = Engine(
        accelerator=accelerator,
        student=student,
        optimizer=torch.optim.SGD(student.parameters(), lr=RATE, momentum=0.9),
        objective=objectives.iad1(),
        source=Batches(
            task.images(device), batch_size=batch, seed=0, padding=4, flip=True, channels_last=True
        ),
        seed=0,
        attack=attacks.PGD(student.train(), steps=steps, training=True),
        teacher=teacher,
        diagnostics="off",
    )
    seconds = []
    for repeat in range(repeats + 1):
        accelerator.wait_for_everyone()
        began = time.perf_counter()
        engine._update(199, 0)
        wait_for(device)
        if repeat:
            seconds.append(time.perf_counter() - began)
    print(json.dumps(seconds))
    processes.leave()


if __name__ == "__main__":
    main()
