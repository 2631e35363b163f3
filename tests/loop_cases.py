"""A small training task in float64, and the same task by hand: nothing of iad_ext but the names of its streams.

Run as a script by several processes, it trains the task in all of them and leaves what each one got in a folder.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from iad_ext import attacks, objectives, processes
from iad_ext.loop import Engine, TrainingStopped, accelerator_for
from iad_ext.precision import Precision
from iad_ext.randomness import stream

SEED, EPS, ALPHA, STEPS, CLASSES = 3, 0.1, 0.03, 3, 5
RATE, MOMENTUM, DECAY = 0.2, 0.9, 1e-2


@dataclass
class Part:
    images: torch.Tensor
    labels: torch.Tensor
    offset: int
    total: int


class Task:
    """`n` random images, in another order every epoch; the last batch is what is left."""

    def __init__(self, n, *, batch_size=8, dtype=torch.float64):
        generator = stream("loop cases")
        self.images = torch.rand(n, 3, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
        self.labels = torch.randint(CLASSES, (n,), generator=generator)
        self.batch_size = batch_size

    def __len__(self):
        return -(-len(self.images) // self.batch_size)

    def batch(self, epoch, step, *, part=0, parts=1):
        order = torch.randperm(len(self.images), generator=stream("order", epoch))
        rows = order[step * self.batch_size : (step + 1) * self.batch_size]
        first, end = len(rows) * part // parts, len(rows) * (part + 1) // parts
        return Part(self.images[rows[first:end]], self.labels[rows[first:end]], first, len(rows))


def network(seed, *, norm=False, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 4, 3), *([nn.BatchNorm2d(4)] if norm else []), nn.Tanh(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(16, CLASSES)).to(dtype)


def sgd(student):
    return torch.optim.SGD(student.parameters(), lr=123.0, momentum=MOMENTUM, weight_decay=DECAY)


def engine(
    objective, task, *, student=None, kind="fp32", accumulation=1, dtype=torch.float64, norm=False, **changed
):
    student = network(1, norm=norm, dtype=dtype) if student is None else student
    reads = objective.needs(0) | objective.needs(99)
    teacher = network(2, norm=norm, dtype=dtype)
    attack = attacks.build(
        objective.attack if objective.attack != "none" else "pgd",
        student,
        teacher=changed.get("teacher", teacher),
        eps=EPS,
        alpha=ALPHA,
        steps=STEPS,
        training=objective.attack_training,
    )
    parts = {
        "accelerator": accelerator_for(Precision(kind=kind, channels_last=False, reason="test"), cpu=True),
        "student": student,
        "optimizer": sgd(student),
        "objective": objective,
        "attack": attack if any(name.endswith("_adv") for name in reads) else None,
        "source": task,
        "seed": SEED,
        "accumulation": accumulation,
    }
    if any(name.startswith("teacher") for name in reads):
        parts["teacher"] = teacher
    if any(name.startswith("natural_teacher") for name in reads):
        parts["natural_teacher"] = network(3, norm=norm, dtype=dtype)
    return Engine(**(parts | changed))


# ------------------------------------------------------------------------------------------- by hand


def _log_softmax(row):
    return row - row.exp().sum().log()


def _cross_entropy(row, y):
    return -_log_softmax(row)[y]


def _kl(target, row):
    p, log_p, log_q = _log_softmax(target).exp(), _log_softmax(target), _log_softmax(row)
    return sum(p[k] * (log_p[k] - log_q[k]) for k in range(CLASSES))


def at_by_hand(passes, i, y, epoch):
    return _cross_entropy(passes["student_adv"][i], y)


def iad1_by_hand(passes, i, y, epoch, *, label=0.3, beta=0.1, warmup=1):
    """λ CE(S(x), y) + (1 − λ) [KL(T(x) → S(x̃)) + (1 − P_T(x̃|y)^β) KL(S(x) → S(x̃))], the last not in warm-up."""
    guided = _kl(passes["teacher_nat"][i], passes["student_adv"][i])
    if epoch >= warmup:
        trust = float(_log_softmax(passes["teacher_adv"][i]).exp()[y]) ** beta
        guided = guided + (1 - trust) * _kl(passes["student_nat"][i], passes["student_adv"][i])
    return label * _cross_entropy(passes["student_nat"][i], y) + (1 - label) * guided


IAD1 = objectives.iad1(label_weight=0.3, warmup_epochs=1)
BY_HAND = {"at": (objectives.at(), at_by_hand), "iad1": (IAD1, iad1_by_hand)}


def train_by_hand(loss_of, task, epochs, rates):
    """Attack, passes, loss image by image, SGD with momentum and weight decay. Returns weights and epochs' losses."""
    student, teacher = network(1), network(2)
    velocities, losses = [None] * len(list(student.parameters())), []
    for epoch, rate in zip(range(epochs), rates, strict=True):
        every_loss = []
        for step in range(len(task)):
            part = task.batch(epoch, step)
            x, labels = part.images, part.labels.tolist()
            noise = torch.empty(x.shape, dtype=x.dtype)
            noise.uniform_(-EPS, EPS, generator=stream(SEED, "start", epoch, step))
            adv = (x + noise).clamp(0, 1)
            for _ in range(STEPS):
                adv = adv.detach().requires_grad_(True)
                logits = student(adv)
                loss = sum(_cross_entropy(logits[i], y) for i, y in enumerate(labels))
                (gradient,) = torch.autograd.grad(loss, adv)
                adv = adv.detach() + ALPHA * gradient.sign()
                adv = torch.minimum(torch.maximum(adv, x - EPS), x + EPS).clamp(0, 1)
            with torch.no_grad():
                passes = {"teacher_nat": teacher(x), "teacher_adv": teacher(adv)}
            passes |= {"student_nat": student(x), "student_adv": student(adv)}
            images = [loss_of(passes, i, y, epoch) for i, y in enumerate(labels)]
            every_loss += [float(loss.detach()) for loss in images]
            gradients = torch.autograd.grad(sum(images) / len(images), list(student.parameters()))
            with torch.no_grad():
                for k, (weight, gradient) in enumerate(zip(student.parameters(), gradients, strict=True)):
                    decayed = gradient + DECAY * weight
                    velocities[k] = decayed if velocities[k] is None else MOMENTUM * velocities[k] + decayed
                    weight -= rate * velocities[k]
        losses.append(sum(every_loss) / len(every_loss))
    return student.state_dict(), losses


# ------------------------------------------------------------------------------------------- several processes

# name -> (objective, images, parts a process): 20 steps and tails that two processes share unevenly, or not at all
SHARED = {
    "at": (objectives.at(), 160, 1),
    "iad1": (IAD1, 155, 1),
    "iad2": (objectives.iad2(warmup_epochs=1), 156, 2),
    "trades": (objectives.trades(), 157, 1),
    "mtard": (objectives.mtard(balance_rate=0.3), 156, 2),
    "adr with awp": (objectives.adr(), 157, 1),
}
CHANGED = {"adr with awp": {"awp": 0.02, "awp_start": 1}}


def run_shared(name):
    """Two epochs of a case; returns weights and the epochs' figures."""
    objective, n, accumulation = SHARED[name]
    one = engine(objective, Task(n), accumulation=accumulation, **CHANGED.get(name, {}))
    records = [one.epoch(epoch, rate=0.05) for epoch in range(2)]
    return one.student.state_dict(), records


def figures_of(records):
    """The figures that training makes, by (epoch, name), without those of time and memory; a histogram by its bins."""
    found = {}
    for epoch, record in enumerate(records):
        for name, value in record.items():
            if isinstance(value, list):
                found |= {f"{epoch}/{name}/{k}": count for k, count in enumerate(value)}
            elif not name.startswith(("time/", "memory/")):
                found[f"{epoch}/{name}"] = value
    return found


class Drawing(nn.Module):
    """A student whose layers draw, and which remembers what."""

    def __init__(self):
        super().__init__()
        self.network, self.drawn = network(1), []

    def forward(self, x):
        self.drawn.append(torch.rand((), dtype=torch.float64))
        return self.network(x)


class _NaNFor(Task):
    """Not a number for one process alone."""

    def __init__(self, part):
        super().__init__(32)
        self.part = part

    def batch(self, epoch, step, *, part=0, parts=1):
        found = super().batch(epoch, step, part=part, parts=parts)
        if (part, step) == (self.part, 2):
            found.images = found.images * float("nan")
        return found


def main(folder):
    """What every process does."""
    torch.set_num_threads(1)
    rank = accelerator_for(Precision(kind="fp32", channels_last=False, reason="test"), cpu=True).process_index
    results = {}
    for name in SHARED:
        weights, records = run_shared(name)
        results |= {f"{name}/weights/{key}": value for key, value in weights.items()}
        for key, value in figures_of(records).items():
            if value is not None:
                results[f"{name}/figures/{key}"] = torch.tensor(value, dtype=torch.float64)
    normed = engine(objectives.at(), Task(32), norm=True)
    normed.epoch(0, rate=0.05)
    results |= {f"norm/{key}": value for key, value in normed.student.state_dict().items()}
    drawing = Drawing()
    engine(objectives.st(), Task(32), student=drawing).epoch(0, rate=0.05)
    results["drawn"] = torch.stack(drawing.drawn)
    save_file({key: value.clone() for key, value in results.items()}, folder / f"{rank}.safetensors")
    try:
        engine(objectives.at(), _NaNFor(part=1)).epoch(0, rate=0.05)
    except TrainingStopped as stopped:
        (folder / f"{rank}.stopped").write_text(str(stopped))
    skipping = engine(objectives.at(), _NaNFor(part=1), non_finite="skip", norm=True)
    record = skipping.epoch(0, rate=0.05)
    tensors, numbers = skipping.state(within_epoch=True)
    kept = {f"{group}/{key}": value.clone() for group, held in tensors.items() for key, value in held.items()}
    save_file(kept, folder / f"{rank}.skipped.safetensors")
    (folder / f"{rank}.skipped.json").write_text(
        json.dumps([record["train/skipped_steps"], numbers["skipped"]])
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    processes.leave()
