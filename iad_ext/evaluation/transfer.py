"""Networks under each other's attacks: adversarial images made on one, shown to all.

An attack that works on several networks points at what they have in common; a network that falls to another's attack
sooner than to its own hides its gradients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from iad_ext.attacks import EPS
from iad_ext.evaluation import masking
from iad_ext.evaluation.masking import Flag
from iad_ext.evaluation.measures import (
    BATCH_SIZE,
    GRADIENT_ATTACKS,
    ProgressBar,
    adversarial_batches,
    check_numbers,
)
from iad_ext.evaluation.samples import Array, Sample, sample
from iad_ext.evaluation.subject import Subject, all_under_evaluation, probe, refuse_non_finite
from iad_ext.evaluation.tables import interval, percent
from iad_ext.names import known_arguments, unknown
from iad_ext.reliability import predicts
from iad_ext.types import Flags, Labels, Logits

ATTACK = "pgd20"


@dataclass(frozen=True, eq=False)
class Transfer:
    """What networks answer to each other's adversarial images; everything lies on the CPU.

    Attributes:
        natural: by network, its logits on the natural images, (N, C).
        right: by the network attacked and the network asked, (N,) bool, whether the answer on x̃ is right.
        adversarial: by the network attacked and the network asked, logits on x̃, (N, C): of the network attacked itself
            and of its teacher.
        labels: (N,), true classes.
        protocol: the attack's settings.
        flags: what casts doubt on the numbers.
    """

    natural: Mapping[str, Logits]
    right: Mapping[str, Mapping[str, Flags]]
    adversarial: Mapping[str, Mapping[str, Logits]]
    labels: Labels
    protocol: Mapping[str, Any]
    flags: Sequence[Flag]

    def result(self) -> dict[str, Any]:
        """Percentages with their 95% Wilson intervals, as plain data.

        Returns:
            `natural` by network; `accuracy` by the network attacked and the network asked; `interval` with the same two
            inside; `n`; `protocol`.
        """
        n = len(self.labels)
        natural = {
            name: predicts(logits, self.labels) for name, logits in self.natural.items() if name in self.right
        }
        return {
            "n": n,
            "natural": {name: percent(flags) for name, flags in natural.items()},
            "accuracy": {
                source: {target: percent(flags) for target, flags in answers.items()}
                for source, answers in self.right.items()
            },
            "interval": {
                "natural": {name: interval(int(flags.sum()), n) for name, flags in natural.items()},
                "accuracy": {
                    source: {target: interval(int(flags.sum()), n) for target, flags in answers.items()}
                    for source, answers in self.right.items()
                },
            },
            "protocol": dict(self.protocol),
        }


@known_arguments
def evaluate_transfer(
    networks: Mapping[str, nn.Module],
    images: Array,
    labels: Array,
    *,
    measured: Sequence[str] | None = None,
    teachers: Mapping[str, str] | None = None,
    eps: float = EPS,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
) -> Transfer:
    """Make PGD-20 images on each network, once, and ask every network what they show.

    The attack is that of `evaluate`, from the same random starts: a network's accuracy under its own attack is its
    `pgd20` there. Networks run in eval mode, in their own precision, and are left as they were.

    Args:
        networks: by name, all on one device; each returns logits (N, C).
        images: as for `evaluate`, (N, C, H, W).
        labels: (N,) integers.
        measured: names of those that are attacked and asked; all when not given.
        teachers: by a measured network's name, the name of its teacher among `networks`, which then answers to the
            attacks on its student, measured or not.
        eps: L∞ radius in pixels of [0, 1].
        seed: of the random starts.
        batch_size: images a pass.
        progress: show a bar; None on a terminal only.

    Raises:
        TypeError: as `evaluate`.
        ValueError: as `evaluate`; networks on several devices; a name that is none of the networks'.
    """
    check_numbers(eps=eps, seed=seed, batch_size=batch_size)
    names, of_teacher = _names(networks, measured, teachers)
    with all_under_evaluation(networks) as subjects:
        data = {
            name: sample(images, labels, device=subject.device, dtype=subject.pixels)
            for name, subject in subjects.items()
        }
        natural = {
            name: _natural(name, subject, data[name], batch_size=batch_size)
            for name, subject in subjects.items()
        }
        right: dict[str, dict[str, Flags]] = {}
        adversarial: dict[str, dict[str, Logits]] = {}
        flags: list[Flag] = []
        for source in names:
            kept = dict.fromkeys([source, *of_teacher.get(source, ())])
            answers = _answers(
                subjects,
                data[source],
                source,
                dict.fromkeys([*names, *kept]),
                eps,
                seed,
                batch_size,
                progress,
            )
            adversarial[source] = {name: answers[name] for name in kept}
            truth = data[source].labels.cpu()
            finite = {name: logits.isfinite().all(dim=1) for name, logits in answers.items()}
            right[source] = {name: predicts(answers[name], truth) & finite[name] for name in names}
            for flag in masking.non_finite(ATTACK, int((~finite[source]).sum())):
                flags.append({**flag, "detail": f"{source}: {flag['detail']}"})
    flags += masking.from_transfer(right)
    protocol = GRADIENT_ATTACKS[ATTACK].protocol(eps) | {
        "norm": "Linf",
        "seed": seed,
        "batch_size": batch_size,
    }
    return Transfer(natural, right, adversarial, data[names[0]].labels.cpu(), protocol, flags)


def _names(
    networks: Mapping[str, nn.Module], measured: Sequence[str] | None, teachers: Mapping[str, str] | None
) -> tuple[list[str], dict[str, tuple[str]]]:
    """Return whom to measure, and of those that have a teacher its name."""
    names = list(networks) if measured is None else list(dict.fromkeys(measured))
    teachers = dict(teachers or {})
    for name in (*names, *teachers, *teachers.values()):
        if name not in networks:
            raise ValueError(unknown("network", name, networks))
    if not names:
        raise ValueError("measured: expected at least one network; got none")
    return names, {student: (teacher,) for student, teacher in teachers.items()}


def _natural(name: str, subject: Subject, data: Sample, *, batch_size: int) -> Logits:
    """Logits on the images as they are, all finite; the first batch is looked at before the rest is run."""
    first, _ = data.batch(slice(0, batch_size))
    parts = [probe(subject, first, highest=int(data.labels.max()))]
    for start in range(batch_size, len(data), batch_size):
        parts.append(subject(data.batch(slice(start, start + batch_size))[0]))
    logits = torch.cat(parts).cpu()
    refuse_non_finite(logits.isfinite().all(dim=1), network=name)
    return logits


def _answers(
    subjects: Mapping[str, Subject],
    data: Sample,
    source: str,
    asked: Sequence[str] | Mapping[str, None],
    eps: float,
    seed: int,
    batch_size: int,
    progress: bool | None,
) -> dict[str, Logits]:
    """Attack `source` and return what each network that is asked says of its images."""
    parts: dict[str, list[Logits]] = {name: [] for name in asked}
    batches = adversarial_batches(
        subjects[source],
        data,
        GRADIENT_ATTACKS[ATTACK],
        ATTACK,
        eps=eps,
        seed=seed,
        batch_size=batch_size,
    )
    stands = 0
    with ProgressBar(f"PGD-20 on {source}", len(data), progress) as bar:
        done = 0
        for images, labels in batches:
            for name, held in parts.items():
                held.append(subjects[name](images).cpu())
            done += len(labels)
            stands += int(predicts(parts[source][-1], labels.cpu()).sum())
            bar.advance(len(labels), 100 * stands / done)
    return {name: torch.cat(held) for name, held in parts.items()}
