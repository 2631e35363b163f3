"""Objectives of papers other than IAD's, each with its source's attack, and what introspection makes of them.

Where a paper and its code differ, or neither says, the docstring names the reading taken here. All reduce as
everything here does: KL summed over classes, the mean over the batch.
"""

import math
from typing import Literal

import torch

from iad_ext import terms
from iad_ext.checks import check_number, check_whole
from iad_ext.objectives import parts
from iad_ext.objectives.core import SYMBOLS, Balance, Objective, Outputs, Target, Term, Weights
from iad_ext.objectives.introspection import Gamma, introspect
from iad_ext.objectives.registry import row, warmup_share
from iad_ext.types import Labels, Logits, PerImage

# ---------------------------------------------------------------------------------------------- soft labels


@row
def rslad(*, tau: float = 1.0, adv_weight: float = 5 / 6, weights: Weights | None = None) -> Objective:
    """RSLAD (Zi et al. 2021): w τ² KL(T_at(x) → S(x̃); τ) + (1 − w) τ² KL(T_at(x) → S(x); τ).

    The attack climbs KL(T_at(x) → S(x̃)), on the student in eval mode. The released code's KL is a tenth of this one:
    averaged over CIFAR-10's classes too, summed over CIFAR-100's and divided by ten.

    Args:
        tau: distillation temperature τ > 0; 1 in the paper.
        adv_weight: w in [0, 1].
        weights: replaces the weights of `teacher` (on x̃) and `teacher_nat` (on x).
    """
    return _two_sided("teacher_nat", tau, adv_weight, attack="rslad").with_weights(weights)


@row
def adaad(*, tau: float = 1.0, adv_weight: float = 1.0, weights: Weights | None = None) -> Objective:
    """AdaAD (Huang et al. 2023): w τ² KL(T_at(x̃) → S(x̃); τ) + (1 − w) τ² KL(T_at(x) → S(x); τ), w = 1.

    The attack climbs KL(T_at(x̃) → S(x̃)) with the gradient through both networks, on the student in eval mode. The
    teacher is not trained: in the loss its predictions are numbers. The released code averages the KL over CIFAR-10's
    classes too, and sums it over CIFAR-100's, as here.

    Args:
        tau: distillation temperature τ > 0; 1 in the paper.
        adv_weight: w in [0, 1].
        weights: replaces the weights of `teacher` (on x̃) and `teacher_nat` (on x).
    """
    return _two_sided("teacher_adv", tau, adv_weight, attack="adaad").with_weights(weights)


def _two_sided(target: str, tau: float, adv_weight: float, *, attack: Literal["rslad", "adaad"]) -> Objective:
    check_number("tau", tau, above=0)
    check_number("adv_weight", adv_weight, at_least=0, at_most=1)
    natural = parts.distil("teacher_nat", "teacher_nat", tau, 1 - adv_weight, student="student_nat")
    return Objective(
        name=attack,
        terms=(parts.distil("teacher", target, tau, adv_weight), natural),
        attack=attack,
        attack_training=False,
        introspection_weight=adv_weight,
    )


@row
def mtard(
    *,
    tau: float = 1.0,
    balance_rate: float = 0.025,
    balance_power: float = 1.0,
    weights: Weights | None = None,
) -> Objective:
    """MTARD (Zhao et al. 2022): w₁ τ² KL(T_at(x̃) → S(x̃); τ) + w₂ τ² KL(T_st(x) → S(x); τ), w₁ + w₂ = 1.

    Each weight moves at each step by `balance_rate` towards its term's share of the relative losses L(t) / L(0), from
    1/2: the teacher whose term has fallen less is listened to more. As in the released code the rate falls with the
    learning rate, and the student is attacked as MART's, on cross-entropy from x + 0.001 · normal noise, in eval mode.
    Other than there, a step runs under the weights that the steps before it left, not under its own.

    Args:
        tau: distillation temperature τ > 0 of both.
        balance_rate: r_w in [0, 1) at the first learning rate; 0 keeps both weights at 1/2.
        balance_power: exponent ≥ 0 of the relative losses.
        weights: factors of `teacher` and `natural_teacher` beside the moving weights; 0 drops one and its balance.
    """
    check_number("tau", tau, above=0)
    check_number("balance_rate", balance_rate, at_least=0, at_most=0.999)
    check_number("balance_power", balance_power, at_least=0)
    return Objective(
        name="mtard",
        terms=(
            parts.distil("teacher", "teacher_adv", tau, 1.0),
            parts.distil("natural_teacher", "natural_teacher_nat", tau, 1.0, student="student_nat"),
        ),
        attack="mart",
        attack_training=False,
        introspection_weight=0.5,
        introspection_scale=tau**2,
        balance=Balance(("teacher", "natural_teacher"), rate=balance_rate, power=balance_power),
    ).with_weights(weights)


# ---------------------------------------------------------------------------------------------- without a teacher


@row
def mart(*, self_weight: float = 5.0, weights: Weights | None = None) -> Objective:
    """MART (Wang et al. 2020): BCE(S(x̃), y) + λ (1 − S(x)_y) KL(S(x) → S(x̃)).

    BCE(z, y) = −log p_y − log(1 − max_{k≠y} p_k). As in the released code the gradient flows through 1 − S(x)_y too,
    and the attack on cross-entropy starts at x + 0.001 · normal noise, on the student in eval mode.

    Args:
        self_weight: λ; 5 for ResNet-18, 6 for WideResNet in the released code.
        weights: replaces the weights of `label` and `self`.
    """
    check_number("self_weight", self_weight, at_least=0)

    def boosted(outputs: Outputs, labels: Labels) -> PerImage:
        return terms.boosted_cross_entropy(outputs.get("student_adv"), labels)

    def own(outputs: Outputs, labels: Labels) -> PerImage:
        natural = outputs.get("student_nat")
        doubt = 1 - natural.softmax(dim=1).gather(1, labels[:, None])[:, 0]
        return doubt * terms.kl(student=outputs.get("student_adv"), target=natural)

    return Objective(
        name="mart",
        terms=(
            Term(name="label", loss=boosted, reads=frozenset({"student_adv"}), formula="BCE(S(x̃), y)"),
            Term(
                name="self",
                loss=own,
                reads=frozenset({"student_nat", "student_adv"}),
                weight=self_weight,
                formula="(1 − S(x)_y) · KL(S(x) → S(x̃))",
            ),
        ),
        attack="mart",
        attack_training=False,
    ).with_weights(weights)


@row
def adr(
    *,
    rectification: tuple[float, float] = (0.7, 0.95),
    temperatures: tuple[float, float] = (2.5, 2.0),
    average_decay: float = 0.995,
    ramp_epochs: int = 200,
    weights: Weights | None = None,
) -> Objective:
    """ADR (Wu et al. 2024): cross-entropy of S(x̃) with λ_i softmax(Ŝ(x) / τ) + (1 − λ_i) · one-hot(y).

    Ŝ is the moving average of the student's own weights: no teacher. λ_i = clip(λ − (max_k P_k − P_y), 0, 1) with
    P = softmax(Ŝ(x) / τ), so that the true class keeps the highest probability; λ rises and τ falls along half a
    cosine. As in the released code the attack climbs the same cross-entropy with the rectified label, on the student in
    train mode, and Ŝ is asked in eval mode, with running statistics averaged as its weights are. Other than there,
    λ and τ move once an epoch, to their values at its middle, and not at every step.

    Args:
        rectification: λ at the beginning and at the end of the run, in [0, 1]; 0.5 and 0.9 on Tiny-ImageNet.
        temperatures: τ likewise, > 0; 1.5 and 1 on CIFAR-100, 2 and 1.5 on Tiny-ImageNet.
        average_decay: share of the average that stays at each step, in [0, 1).
        ramp_epochs: epochs from beginning to end, > 0; the run's.
        weights: replaces the weight of `label`.
    """
    _check_pair("rectification", rectification, at_least=0, at_most=1)
    _check_pair("temperatures", temperatures, above=0)
    check_number("average_decay", average_decay, at_least=0, below=1)
    check_whole("ramp_epochs", ramp_epochs, at_least=1)

    def at(ends: tuple[float, float], epoch: int) -> float:
        passed = min((epoch + 0.5) / ramp_epochs, 1.0)
        return ends[1] + (ends[0] - ends[1]) * (1 + math.cos(math.pi * passed)) / 2

    def rectified(logits: Logits, labels: Labels, epoch: int) -> Logits:
        p = (logits.detach() / at(temperatures, epoch)).softmax(dim=1)
        true = p.gather(1, labels[:, None])
        share = (at(rectification, epoch) - (p.amax(dim=1, keepdim=True) - true)).clamp(0, 1)
        mixed = (share * p).scatter_add(1, labels[:, None], 1 - share)
        return mixed.clamp(min=torch.finfo(mixed.dtype).tiny).log()

    def loss(outputs: Outputs, labels: Labels) -> PerImage:  # noqa: ARG001 (every term has this signature)
        return terms.soft_cross_entropy(student=outputs.get("student_adv"), target=outputs.get("average_nat"))

    return Objective(
        name="adr",
        terms=(
            Term(
                name="label",
                loss=loss,
                reads=frozenset({"student_adv", "average_nat"}),
                formula=f"CE(S(x̃), λ_i {SYMBOLS['average_nat']} + (1 − λ_i) y)",
            ),
        ),
        attack="adr",
        targets=(Target(frozenset({"average_nat"}), rectified, "Ŝ at temperature τ"),),
        average_decay=average_decay,
    ).with_weights(weights)


def _check_pair(name: str, pair: tuple[float, float], **limits: float) -> None:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"{name} must be two numbers, of the run's beginning and its end; got {pair!r}")
    for end, value in zip(("first", "last"), pair, strict=True):
        check_number(f"{name}, {end}", value, **limits)


# ---------------------------------------------------------------------------------------------- introspective


@row
@warmup_share(0.3)
def adaiad(
    *,
    beta: float = 0.1,
    gamma: Gamma = "1-alpha",
    tau: float = 1.0,
    introspection_tau: float = 1.0,
    adv_weight: float = 1.0,
    gate_teacher: bool = False,
    warmup_epochs: int = 60,
    detach_target: bool = False,
    weights: Weights | None = None,
) -> Objective:
    """AdaIAD = introspect(AdaAD) (Huang et al. 2023): w τ² KL(T_at(x̃) → S(x̃); τ) + w γ KL(S(x) → S(x̃)), w = 1.

    Arguments as for `adaad` and `introspect`; the teacher term is not weighed by α unless asked, as in the released
    code, whose warm-up of 60 epochs this is. That code runs it at τ = 30, as the recipe does.
    """
    return introspect(
        adaad(tau=tau, adv_weight=adv_weight),
        beta=beta,
        gamma=gamma,
        introspection_tau=introspection_tau,
        gate_teacher=gate_teacher,
        warmup_epochs=warmup_epochs,
        detach_target=detach_target,
        weights=weights,
    )


@row
@warmup_share(0.3)
def iad_rslad(
    *,
    beta: float = 0.1,
    gamma: Gamma = "1-alpha",
    tau: float = 1.0,
    introspection_tau: float = 1.0,
    adv_weight: float = 5 / 6,
    gate_teacher: bool = False,
    warmup_epochs: int = 90,
    detach_target: bool = False,
    weights: Weights | None = None,
) -> Objective:
    """introspect(RSLAD): w [τ² KL(T_at(x) → S(x̃); τ) + γ KL(S(x) → S(x̃))] + (1 − w) τ² KL(T_at(x) → S(x); τ).

    Arguments as for `rslad` and `introspect`. Not of a paper: introspection takes the weight of the adversarial term,
    as it does beside ARD's; the warm-up is IAD-I's share of RSLAD's 300 epochs.
    """
    return introspect(
        rslad(tau=tau, adv_weight=adv_weight),
        beta=beta,
        gamma=gamma,
        introspection_tau=introspection_tau,
        gate_teacher=gate_teacher,
        warmup_epochs=warmup_epochs,
        detach_target=detach_target,
        weights=weights,
    )


@row
@warmup_share(0.3)
def iad_mtard(
    *,
    beta: float = 0.1,
    gamma: Gamma = "1-alpha",
    tau: float = 1.0,
    introspection_tau: float = 1.0,
    balance_rate: float = 0.025,
    balance_power: float = 1.0,
    gate_teacher: bool = True,
    warmup_epochs: int = 90,
    detach_target: bool = False,
    weights: Weights | None = None,
) -> Objective:
    """introspect(MTARD): w₁ τ² α KL(T_at(x̃) → S(x̃); τ) + w₂ τ² KL(T_st(x) → S(x); τ) + ½ τ² γ KL(S(x) → S(x̃)).

    Arguments as for `mtard` and `introspect`. Not of a paper: introspection takes the weight that both teachers start
    with, and α weighs the adversarial teacher as in IAD-II. w₁ and w₂ follow the losses before α.
    """
    return introspect(
        mtard(tau=tau, balance_rate=balance_rate, balance_power=balance_power),
        beta=beta,
        gamma=gamma,
        introspection_tau=introspection_tau,
        gate_teacher=gate_teacher,
        warmup_epochs=warmup_epochs,
        detach_target=detach_target,
        weights=weights,
    )
