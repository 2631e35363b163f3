"""The rows of the paper's Table 1 that introspection wraps or is compared with, and their variants."""

from dataclasses import replace

import torch

from iad_ext import reliability
from iad_ext.checks import check_flag, check_number
from iad_ext.objectives import parts
from iad_ext.objectives.core import ImageWeight, Objective, Outputs, Weights
from iad_ext.objectives.introspection import TRUST, Gamma, introspect
from iad_ext.objectives.registry import row, warmup_share
from iad_ext.types import Labels, PerImage


@row
def st(*, weights: Weights | None = None) -> Objective:
    """Standard training: CE(S(x), y). No attack."""
    return Objective(name="st", terms=(parts.label("nat", 1.0),), attack="none").with_weights(weights)


@row
def at(*, weights: Weights | None = None) -> Objective:
    """Adversarial training (Table 1; Madry et al. 2018): CE(S(x̃), y). The student is attacked in eval mode."""
    return Objective(name="at", terms=(parts.label("adv", 1.0),), attack_training=False).with_weights(weights)


@row
def trades(
    *, self_weight: float = 6.0, tau: float = 1.0, detach_target: bool = False, weights: Weights | None = None
) -> Objective:
    """TRADES (Table 1; Zhang et al. 2019): CE(S(x), y) + 6 · τ² KL(S(x) → S(x̃); τ).

    Args:
        self_weight: 1/λ of the TRADES paper, `beta` of its code.
        tau: temperature of the loss's KL (Table 10); the attack stays at 1.
        detach_target: stop the gradient through S(x) in the KL. Costs robustness; off in the source.
        weights: replaces the weights of `label` and `self`.
    """
    check_number("self_weight", self_weight, at_least=0)
    check_number("tau", tau, above=0)
    check_flag("detach_target", detach_target)
    return Objective(
        name="trades",
        terms=(
            parts.label("nat", 1.0),
            parts.introspection("self", tau, tau**2, self_weight, detach_target=detach_target),
        ),
        attack="trades",
        attack_training=False,
    ).with_weights(weights)


@row
def ard(*, tau: float = 1.0, label_weight: float = 0.0, weights: Weights | None = None) -> Objective:
    """ARD (Table 1; Goldblum et al. 2020, as the paper runs it): λ CE(S(x), y) + (1 − λ) τ² KL(T_at(x) → S(x̃); τ).

    Args:
        tau: distillation temperature τ > 0.
        label_weight: λ in [0, 1]; 0 on CIFAR, 0.1 on Tiny-ImageNet.
        weights: replaces the weights of `label` and `teacher`.
    """
    return _ard(tau, label_weight, class_mean=False).with_weights(weights)


@row
def ard_goldblum(
    *, tau: float = 30.0, label_weight: float = 0.0, weights: Weights | None = None
) -> Objective:
    """ARD as Goldblum et al. ran it: τ = 30, and the KL averaged over the classes too.

    The class mean makes the teacher's term C times weaker against weight decay than `ard`'s; it is here for
    comparison with the original, not as a recommendation.
    """
    return _ard(tau, label_weight, class_mean=True).with_weights(weights)


def _ard(tau: float, label_weight: float, *, class_mean: bool) -> Objective:
    check_number("tau", tau, above=0)
    check_number("label_weight", label_weight, at_least=0, at_most=1)
    return Objective(
        name="ard",
        terms=(
            parts.label("nat", label_weight),
            parts.distil("teacher", "teacher_nat", tau, 1 - label_weight, class_mean=class_mean),
        ),
        introspection_weight=1 - label_weight,
    )


@row
def akd2(
    *,
    tau: float = 1.0,
    label_weight: float = 0.25,
    teacher_weight: float = 0.5,
    natural_teacher_weight: float = 0.25,
    weights: Weights | None = None,
) -> Objective:
    """AKD2 (Table 1; Chen et al. 2021, as the paper runs it).

    λ₁ CE(S(x̃), y) + λ₂ τ² KL(T_at(x̃) → S(x̃); τ) + λ₃ τ² KL(T_st(x̃) → S(x̃); τ).

    Args:
        tau: distillation temperature τ > 0.
        label_weight: λ₁.
        teacher_weight: λ₂, of the adversarially trained teacher.
        natural_teacher_weight: λ₃, of the naturally trained teacher.
        weights: replaces the weights of `label`, `teacher` and `natural_teacher`.
    """
    return _akd2(tau, label_weight, teacher_weight, natural_teacher_weight).with_weights(weights)


@row
def akd2_chen(
    *,
    tau: float = 2.0,
    label_weight: float = 0.3,
    teacher_weight: float = 0.6,
    natural_teacher_weight: float = 0.1,
    weights: Weights | None = None,
) -> Objective:
    """AKD2 with the temperature and weights of Chen et al.'s released code; arguments as for `akd2`.

    Their first teacher (0.1) is the naturally trained one, their second (0.6) the adversarially trained one. Their runs
    average weights too, from the 56th epoch on: `--average.name swa --average.start 55` of 200.
    """
    return _akd2(tau, label_weight, teacher_weight, natural_teacher_weight).with_weights(weights)


@row
def akd2_down(
    *,
    beta: float = 0.1,
    tau: float = 1.0,
    label_weight: float = 0.25,
    teacher_weight: float = 0.5,
    natural_teacher_weight: float = 0.25,
    weights: Weights | None = None,
) -> Objective:
    """AKD2 with its teacher term weighted by α where the teacher is wrong on x̃, by 1 elsewhere (Table 7).

    The paper gives no weight; α = P_T(x̃ | y)^β is our reading.
    """
    check_number("beta", beta, at_least=0)

    def trust_where_wrong(outputs: Outputs, labels: Labels) -> PerImage:
        teacher_adv = outputs.get("teacher_adv")
        alpha = reliability.trust(teacher_adv, labels, beta=beta)
        return torch.where(reliability.predicts(teacher_adv, labels), torch.ones_like(alpha), alpha)

    base = _akd2(tau, label_weight, teacher_weight, natural_teacher_weight)
    gated = tuple(replace(t, factor=TRUST) if t.name == "teacher" else t for t in base.terms)
    weighs = ImageWeight(
        trust_where_wrong, frozenset({"teacher_adv"}), "P_T(x̃|y)^β where T_at(x̃) is wrong, else 1"
    )
    return replace(base, terms=gated, trust_of=weighs).with_weights(weights)


def _akd2(tau: float, label_weight: float, teacher_weight: float, natural_teacher_weight: float) -> Objective:
    check_number("tau", tau, above=0)
    for name, value in (
        ("label_weight", label_weight),
        ("teacher_weight", teacher_weight),
        ("natural_teacher_weight", natural_teacher_weight),
    ):
        check_number(name, value, at_least=0)
    return Objective(
        name="akd2",
        terms=(
            parts.label("adv", label_weight),
            parts.distil("teacher", "teacher_adv", tau, teacher_weight),
            parts.distil("natural_teacher", "natural_teacher_adv", tau, natural_teacher_weight),
        ),
        introspection_weight=teacher_weight,
        introspection_scale=tau**2,
    )


@row
@warmup_share(0.3)
def iad1(
    *,
    beta: float = 0.1,
    gamma: Gamma = "1-alpha",
    tau: float = 1.0,
    introspection_tau: float = 1.0,
    label_weight: float = 0.0,
    gate_teacher: bool = False,
    warmup_epochs: int = 60,
    detach_target: bool = False,
    weights: Weights | None = None,
) -> Objective:
    """IAD-I = introspect(ARD) (Table 1; Eq. 5): λ CE(S(x), y) + (1 − λ) [τ² KL(T_at(x) → S(x̃); τ) + γ KL(S(x) → S(x̃))].

    Source: Eq. 5 with footnote 1 and the released code: the teacher term is not weighed by α, and τ² stands
    before the teacher term only. Arguments as for `ard` and `introspect`; the default warm-up is CIFAR-10's,
    for 200 epochs.
    """
    return introspect(
        ard(tau=tau, label_weight=label_weight),
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
def iad1_down(
    *,
    beta: float = 0.1,
    gamma: Gamma = "1-alpha",
    tau: float = 1.0,
    introspection_tau: float = 1.0,
    label_weight: float = 0.0,
    warmup_epochs: int = 60,
    detach_target: bool = False,
    weights: Weights | None = None,
) -> Objective:
    """IAD-I-Down (Table 8): IAD-I with its teacher term weighed by α."""
    return iad1(
        beta=beta,
        gamma=gamma,
        tau=tau,
        introspection_tau=introspection_tau,
        label_weight=label_weight,
        gate_teacher=True,
        warmup_epochs=warmup_epochs,
        detach_target=detach_target,
        weights=weights,
    )


@row
@warmup_share(0.2)
def iad2(
    *,
    beta: float = 0.1,
    gamma: Gamma = "1-alpha",
    tau: float = 1.0,
    introspection_tau: float = 1.0,
    label_weight: float = 0.25,
    teacher_weight: float = 0.5,
    natural_teacher_weight: float = 0.25,
    gate_teacher: bool = True,
    warmup_epochs: int = 40,
    detach_target: bool = False,
    weights: Weights | None = None,
) -> Objective:
    """IAD-II = introspect(AKD2), its adversarial teacher weighed by α (Table 1; Eq. 6).

    λ₁ CE(S(x̃), y) + λ₂ τ² [α KL(T_at(x̃) → S(x̃); τ) + γ KL(S(x) → S(x̃))] + λ₃ τ² KL(T_st(x̃) → S(x̃); τ).
    Arguments as for `akd2` and `introspect`; the default warm-up is CIFAR-10's, for 200 epochs.
    """
    return introspect(
        akd2(
            tau=tau,
            label_weight=label_weight,
            teacher_weight=teacher_weight,
            natural_teacher_weight=natural_teacher_weight,
        ),
        beta=beta,
        gamma=gamma,
        introspection_tau=introspection_tau,
        gate_teacher=gate_teacher,
        warmup_epochs=warmup_epochs,
        detach_target=detach_target,
        weights=weights,
    )
