"""(d) stock torchattacks.PGD / our training attack: the same start, mode, precision and network."""

import dataclasses
from typing import Any

import torch
import torchattacks
from harness import Bench, Contender
from workloads import FP32, Task, autocast_of, default_precision

from iad_ext import attacks, compiling
from iad_ext.precision import Precision

SMALL = "cifar_resnet8"


def tasks(bench: Bench) -> list[tuple[Task, bool, float]]:
    """Networks, whether at fp32 too, and each one's share of the time."""
    if bench.quick:
        return [(Task(SMALL, 4, 8, steps=2), True, 0.0)]
    if bench.device.type == "cuda":
        big = [Task("cifar_resnet18", batch) for batch in (128, 512)]
        return [
            *((task, True, 0.012) for task in big),
            (Task("cifar_wrn34_10", 128), False, 0.02),
            (Task(SMALL, 128), True, 0.005),
        ]
    return [(Task("cifar_resnet18", 128), True, 0.04), (Task(SMALL, 128), True, 0.003)]


def compiled_tasks(bench: Bench) -> list[Task]:
    """On a CPU fewer images and steps: each of these compiles for a minute."""
    if bench.quick:
        return [Task(SMALL, 4, 8, steps=2)]
    if bench.device.type == "cuda":
        return [Task("cifar_resnet18", 128), Task(SMALL, 128)]
    return [Task("cifar_resnet18", 32, steps=3), Task(SMALL, 128, steps=3)]


def measure(bench: Bench, task: Task, decided: Precision, share: float) -> dict[str, Any]:
    """Both attacks on the same network in train mode, as the paper's recipes attack."""
    memory_format = torch.channels_last if decided.channels_last else torch.contiguous_format
    network = task.build(1, bench.device).to(memory_format=memory_format).train()
    data = task.images(bench.device)
    images = task.pixels(bench.device).contiguous(memory_format=memory_format)
    autocast = autocast_of(decided, bench.device)
    ours = attacks.PGD(network, steps=task.steps, training=True)
    stock = torchattacks.PGD(network, eps=attacks.EPS, alpha=attacks.STEP, steps=task.steps)
    stock.set_model_training_mode(model_training=True, batchnorm_training=True)

    def attack(with_: Any) -> None:
        with autocast():
            with_(images, data.labels)

    def warm(with_: Any) -> None:
        """With one step; a graph is captured with all of them."""
        with_.steps = 1 if bench.device.type == "cpu" else task.steps
        attack(with_)
        with_.steps = task.steps

    few, labels = images[:8], data.labels[:8]
    torch.manual_seed(0)
    noise = torch.empty_like(few).uniform_(-ours.eps, ours.eps)
    torch.manual_seed(0)
    equal = torch.equal(ours(few, labels, noise), stock(few, labels))
    if not equal:
        raise RuntimeError("the two attacks do not return the same images, to the last bit")
    compilation = compiling.decide("auto", ours, images, classes=task.classes, autocast=autocast)
    run = compiling.compiled(ours, compilation)
    timings = bench.race(
        {
            "ours": Contender(
                run=lambda: attack(run), warm=lambda: warm(ours) if run is ours else attack(run)
            ),
            "stock": Contender(run=lambda: attack(stock), warm=lambda: warm(stock)),
        },
        share=share,
    )
    return {
        "stock / ours": timings.ratio("stock", "ours"),
        "seconds": timings.plain(),
        "compile": dataclasses.asdict(compilation),
        "equivalence": "x̃ equal to the last bit",
    }


def ways(bench: Bench, task: Task, decided: Precision) -> dict[str, Any]:
    """The training attack eagerly, by a compiled step and, on a GPU, as a graph; compilation apart."""
    memory_format = torch.channels_last if decided.channels_last else torch.contiguous_format
    data = task.images(bench.device)
    images = task.pixels(bench.device).contiguous(memory_format=memory_format)
    autocast = autocast_of(decided, bench.device)

    def attack(kind: compiling.Kind) -> Contender:
        network = task.build(1, bench.device).to(memory_format=memory_format).train()
        eager = attacks.PGD(network, steps=task.steps, training=True)
        if kind == "step":
            backend = "aot_eager" if bench.quick else "inductor"
            eager.stepper = compiling.CompiledStep(eager, backend=backend)
        run = compiling.compiled(eager, compiling.Compilation(kind, "benchmark"))

        def once() -> None:
            with autocast():
                run(images, data.labels)

        return Contender(run=once)

    kinds: list[compiling.Kind] = ["off", "step", *(["graphs"] if bench.device.type == "cuda" else [])]
    timings = bench.race({kind: attack(kind) for kind in kinds}, share=0.01, turns=10, least=3)
    ratios = {f"eager / {kind}": timings.ratio("off", kind) for kind in kinds[1:]}
    return {**ratios, "compilation, s": timings.warm_up["step"], "seconds": timings.plain()}


def run(bench: Bench, only: frozenset[str]) -> list[str]:
    """All of it; the table."""
    rows = []
    for task, fp32_too, share in tasks(bench):
        decided = default_precision(task, bench.device)
        kinds = [decided, *([FP32] if fp32_too and decided.kind != "fp32" else [])]
        for kind in kinds:
            said = f"{kind.kind}{' channels_last' if kind.channels_last else ''}"
            found = bench.case(
                f"attack: {task}: {said}", lambda t=task, k=kind, s=share: measure(bench, t, k, s)
            )
            rows.append(
                {
                    "network": str(task),
                    "precision": said,
                    "stock / ours": found.get("stock / ours", found.get("failed")),
                    "target": 1.8 if bench.device.type == "cuda" else 1.0,
                    "ours, s": found["seconds"]["ours"]["median"] if "seconds" in found else None,
                    "compile": found.get("compile", {}).get("kind"),
                    "check": found.get("equivalence"),
                }
            )
    for task in compiled_tasks(bench):
        decided = default_precision(task, bench.device)
        found = bench.case(f"compile: {task}, PGD-{task.steps}", lambda t=task, d=decided: ways(bench, t, d))
        rows.append(
            {
                "network": f"{task}, PGD-{task.steps}",
                "precision": f"{decided.kind}{' channels_last' if decided.channels_last else ''}",
                "eager / compiled step": found.get("eager / step", found.get("failed")),
                "eager / graphs": found.get("eager / graphs"),
                "compilation, s": found.get("compilation, s"),
            }
        )
    assert only == {"d"}
    notes = (
        "PGD with the student in train mode, both under the same autocast; ours as `--compile auto` decides here.",
        "Below, our attack eagerly over the same by a compiled step, and over a CUDA graph; compilation is apart.",
    )
    return [bench.report("d", "torchattacks.PGD / our training attack", rows, notes)]
