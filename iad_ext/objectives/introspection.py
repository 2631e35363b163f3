"""Introspection: what makes IAD of a base objective (the paper's Eq. 3)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

from iad_ext import reliability
from iad_ext.checks import check_flag, check_number
from iad_ext.names import known_arguments
from iad_ext.objectives import parts
from iad_ext.objectives.core import (
    EQ_4,
    Factor,
    ImageWeight,
    Objective,
    Outputs,
    Weights,
    check_epoch,
)
from iad_ext.types import Labels, PerImage

Gamma = float | Literal["1-alpha"] | Mapping[int, float] | Callable[[int], float]


def _alpha(trust: PerImage | None, epoch: int) -> PerImage:  # noqa: ARG001
    assert trust is not None  # the objective computes trust whenever a factor reads it
    return trust


def _one_minus_alpha(trust: PerImage | None, epoch: int) -> PerImage:
    return 1 - _alpha(trust, epoch)


TRUST = Factor(_alpha, reads_trust=True, formula="α")
_DISTRUST = Factor(_one_minus_alpha, reads_trust=True, formula="(1 − α)")


def alpha(beta: float) -> ImageWeight:
    """α = P_T(x̃ | y)^β (Eq. 4)."""

    def value(outputs: Outputs, labels: Labels) -> PerImage:
        return reliability.trust(outputs.get("teacher_adv"), labels, beta=beta)

    return ImageWeight(value, frozenset({"teacher_adv"}), EQ_4, beta)


def _gamma_factor(gamma: Gamma) -> Factor:
    """Turn γ into the factor of the introspection term: 1 − α, a constant, or a schedule by epoch."""
    if isinstance(gamma, str):
        if gamma != "1-alpha":
            raise ValueError(
                f'gamma is "1-alpha", a number ≥ 0 or a schedule {{first epoch: value}}, got {gamma!r}'
            )
        return _DISTRUST
    if isinstance(gamma, Mapping):
        return _scheduled_gamma(gamma)
    if callable(gamma):
        return _computed_gamma(gamma)
    check_number("gamma", gamma, at_least=0)
    return Factor(lambda _, __: float(gamma), reads_trust=False, formula=f"{gamma:g}")


def _computed_gamma(gamma: Callable[[int], float]) -> Factor:
    def value_at(trust: PerImage | None, epoch: int) -> float:  # noqa: ARG001
        value = float(gamma(epoch))
        check_number(f"gamma at epoch {epoch}", value, at_least=0)
        return value

    return Factor(value_at, reads_trust=False, formula="γ(epoch)")


def _scheduled_gamma(schedule: Mapping[int, float]) -> Factor:
    if 0 not in schedule:
        raise ValueError(
            f"a gamma schedule says its value from epoch 0 on, got {dict(schedule)!r}; add 0: value"
        )
    for start, value in schedule.items():
        check_epoch(start)
        check_number(f"gamma from epoch {start}", value, at_least=0)
    starts = sorted(schedule, reverse=True)

    def value_at(trust: PerImage | None, epoch: int) -> float:  # noqa: ARG001
        return float(schedule[next(start for start in starts if start <= epoch)])

    return Factor(value_at, reads_trust=False, formula="γ(epoch)")


@known_arguments
def introspect(
    base: Objective,
    *,
    beta: float = 0.1,
    gamma: Gamma = "1-alpha",
    introspection_tau: float = 1.0,
    gate_teacher: bool = False,
    warmup_epochs: int = 0,
    detach_target: bool = False,
    weights: Weights | None = None,
) -> Objective:
    """Make the introspective form of `base`: the base, gated by trust or not, + γ KL(S(x) → S(x̃)) (Eq. 3).

    Args:
        base: any objective. The introspection term takes the base's `introspection_weight` and
            `introspection_scale`, so that it stands where the paper has it: (1 − λ) beside ARD's teacher
            term, λ₂ τ² beside AKD2's.
        beta: β ≥ 0 of the trust α = P_T(x̃ | y)^β (Eq. 4).
        gamma: weight of introspection: `"1-alpha"`, a constant ≥ 0, or a schedule (Appendix A.3), either
            `{first epoch: value}` or a function of the epoch.
        introspection_tau: temperature of the introspection term alone (Appendix A.4).
        gate_teacher: multiply the base's `teacher` term by α (IAD-II, IAD-I-Down) or not (IAD-I, footnote 1).
        warmup_epochs: while `epoch` is below it the objective is exactly `base`, passes included.
        detach_target: stop the gradient through S(x) in the introspection term; off in the paper.
        weights: replaces weights of the base's terms and of `self`.
    """
    if not isinstance(base, Objective):
        raise TypeError(f"base must be an Objective, such as objectives.ard(); got {base!r}")
    check_number("beta", beta, at_least=0)
    check_number("introspection_tau", introspection_tau, above=0)
    check_flag("gate_teacher", gate_teacher)
    check_flag("detach_target", detach_target)
    if isinstance(warmup_epochs, bool) or not isinstance(warmup_epochs, int) or warmup_epochs < 0:
        raise ValueError(f"warmup_epochs must be an integer ≥ 0, got {warmup_epochs!r}")
    if base.warmup is not None or base.trust_of is not None:
        raise ValueError(f"{base.name} is weighed by trust already; wrap its base instead")
    names = {term.name for term in base.terms}
    if gate_teacher and "teacher" not in names:
        raise ValueError(
            f"gate_teacher weighs the term 'teacher', which {base.name} lacks; it has {sorted(names)}"
        )

    gated = tuple(replace(t, factor=TRUST) if gate_teacher and t.name == "teacher" else t for t in base.terms)
    # a base that regularises towards itself already (TRADES) keeps the name for its own term
    name = "introspection" if "self" in names else "self"
    own = parts.introspection(
        name,
        introspection_tau,
        base.introspection_scale,
        base.introspection_weight,
        detach_target=detach_target,
    )
    own = replace(own, factor=_gamma_factor(gamma))
    return replace(
        base,
        name=f"introspect({base.name})",
        terms=(*gated, own),
        trust_of=alpha(beta),
        warmup=base,
        warmup_epochs=warmup_epochs,
        introspection=name,
        attack="pgd" if base.attack == "none" else base.attack,
        settings={
            "base": base,
            "beta": beta,
            "gamma": gamma,
            "introspection_tau": introspection_tau,
            "gate_teacher": gate_teacher,
            "warmup_epochs": warmup_epochs,
            "detach_target": detach_target,
            **({"weights": weights} if weights else {}),
        },
    ).with_weights(weights)
