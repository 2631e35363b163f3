"""Beyond one threat: networks under each other's attacks, unseen threats and corruptions, and their calibration."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from iad_ext.attacks import EPS
from iad_ext.evaluation.calibration import evaluate_calibration, evaluate_trust
from iad_ext.evaluation.corruptions import CORRUPTIONS, SEVERITIES
from iad_ext.evaluation.measures import BATCH_SIZE
from iad_ext.evaluation.samples import Array
from iad_ext.evaluation.subject import Subject
from iad_ext.evaluation.tables import hardware
from iad_ext.evaluation.transfer import Transfer, evaluate_transfer
from iad_ext.evaluation.unseen import L2_EPS, under_corruptions, under_threats
from iad_ext.names import known_arguments, unknown
from iad_ext.provenance import versions
from iad_ext.reliability import predicts
from iad_ext.types import Flags

THREAT_PARTS = ("transfer", "calibration", "unseen", "corruptions")


@known_arguments
def evaluate_threats(
    networks: Mapping[str, nn.Module],
    images: Array,
    labels: Array,
    *,
    measured: Sequence[str] | None = None,
    teachers: Mapping[str, str] | None = None,
    betas: Mapping[str, float] | None = None,
    parts: Sequence[str] = THREAT_PARTS,
    eps: float = EPS,
    linf_eps: float | None = None,
    l2_eps: float = L2_EPS,
    corruptions: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Measure networks beyond the one threat that they were trained for, all on the same images.

    PGD-20 images are made once on each network; transfer and calibration both read what the networks answer to them.

    Args:
        networks: by name, all on one device; each returns logits (N, C).
        images: as for `evaluate`, (N, 3, H, W).
        labels: (N,) integers.
        measured: names of those that are measured; all when not given. Others only answer as teachers.
        teachers: by a student's name, that of its teacher among `networks`.
        betas: by a student's name, the β of its trust α = P_T(x̃|y)^β, which is then looked at beside β = 1.
        parts: any of `transfer`, `calibration`, `unseen`, `corruptions`.
        eps: L∞ radius in pixels of [0, 1] of the PGD-20 behind `transfer` and `calibration`.
        linf_eps: radius of the unseen L∞ attack; twice `eps` when not given, and less than 1.
        l2_eps: radius of the unseen L2 attack.
        corruptions: any of `iad_ext.evaluation.corruptions.CORRUPTIONS`.
        severities: any of 1 … 5.
        seed: of random starts, noise and bootstrap.
        batch_size: images a pass.
        progress: show bars; None on a terminal only.

    Returns:
        A dictionary of

        * `networks` (names, in order), `teachers`, `n`,
        * each part that was asked for: `transfer` as `Transfer.result`; `calibration`, by student, what
          `evaluate_calibration` says of it on x and on its own x̃ and of its teacher on the same, and `evaluate_trust`
          of the trust in that; `unseen`, by network, as `under_threats`; `corruptions` as `under_corruptions`,
        * `flags`: what casts doubt on the numbers,
        * `right`: per-image verdicts by `transfer/SOURCE>TARGET`, `natural/NETWORK`, `linf/NETWORK` and `l2/NETWORK`,
          (N,) bool; everything else is plain data for JSON,
        * `protocol`: radii, seed, batch size, versions and hardware.

    Raises:
        TypeError: as `evaluate`.
        ValueError: as `evaluate`; an unknown part, or none; no network to measure; what `evaluate_transfer`,
            `under_threats` and `under_corruptions` refuse.
    """
    for part in parts:
        if part not in THREAT_PARTS:
            raise ValueError(unknown("part", part, THREAT_PARTS))
    if not parts:
        raise ValueError(f"parts: expected some of {', '.join(THREAT_PARTS)}; got none")
    names = list(networks) if measured is None else list(dict.fromkeys(measured))
    for name in names:
        if name not in networks:
            raise ValueError(unknown("network", name, networks))
    if not names:
        raise ValueError(
            "expected at least one network to measure, got none; leave `measured` out for all of them"
        )
    linf_eps = min(2 * eps, 0.99) if linf_eps is None else linf_eps
    common: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "progress": progress}
    result: dict[str, Any] = {
        "networks": names,
        "teachers": {student: teacher for student, teacher in (teachers or {}).items() if student in names},
        "n": len(labels),
        "flags": [],
    }
    right: dict[str, Flags] = {}
    if {"transfer", "calibration"} & set(parts):
        answers = evaluate_transfer(
            networks, images, labels, measured=names, teachers=result["teachers"], eps=eps, **common
        )
        result["flags"] += answers.flags
        right |= {
            f"transfer/{source}>{target}": flags
            for source, of_source in answers.right.items()
            for target, flags in of_source.items()
        }
        right |= {f"natural/{name}": predicts(answers.natural[name], answers.labels) for name in names}
        if "transfer" in parts:
            result["transfer"] = answers.result()
        if "calibration" in parts:
            result["calibration"] = {
                name: _calibration(
                    answers, name, result["teachers"].get(name), (betas or {}).get(name), seed=seed
                )
                for name in names
            }
    if "unseen" in parts:
        result["unseen"] = {}
        for name in names:
            found = under_threats(networks[name], images, labels, linf_eps=linf_eps, l2_eps=l2_eps, **common)
            right |= {f"{threat}/{name}": flags for threat, flags in found.pop("right").items()}
            result["unseen"][name] = found
    if "corruptions" in parts:
        result["corruptions"] = under_corruptions(
            {name: networks[name] for name in names},
            images,
            labels,
            corruptions=corruptions,
            severities=severities,
            **common,
        )
    device = Subject(networks[names[0]]).device
    return result | {
        "right": right,
        "protocol": {
            "eps": eps,
            "linf_eps": linf_eps,
            "l2_eps": l2_eps,
            "n": len(labels),
            "seed": seed,
            "batch_size": batch_size,
            "device": str(device),
            "hardware": hardware(device),
            "versions": versions(),
        },
    }


def _calibration(
    answers: Transfer, student: str, teacher: str | None, beta: float | None, *, seed: int
) -> dict[str, Any]:
    """A student on x and x̃, and its teacher on the same."""
    labels, adversarial = answers.labels, answers.adversarial[student]
    found: dict[str, Any] = {
        "student_nat": evaluate_calibration(answers.natural[student], labels, seed=seed),
        "student_adv": evaluate_calibration(adversarial[student], labels, seed=seed),
    }
    if teacher is not None:
        betas = dict.fromkeys([1.0, *([float(beta)] if beta is not None else [])])
        found |= {
            "teacher": teacher,
            "teacher_nat": evaluate_calibration(answers.natural[teacher], labels, seed=seed),
            "teacher_adv": evaluate_calibration(adversarial[teacher], labels, seed=seed),
            "trust": [evaluate_trust(adversarial[teacher], labels, beta=value, seed=seed) for value in betas],
        }
    return found
