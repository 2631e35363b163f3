"""The terms that rows are put together from."""

from typing import Literal

from iad_ext import terms
from iad_ext.objectives.core import SYMBOLS, Outputs, Term
from iad_ext.types import Labels, PerImage


def label(images: Literal["nat", "adv"], weight: float) -> Term:
    """Cross-entropy of the student on natural or adversarial images."""
    student = f"student_{images}"

    def loss(outputs: Outputs, labels: Labels) -> PerImage:
        return terms.cross_entropy(outputs.get(student), labels)

    image = "x" if images == "nat" else "x̃"
    return Term(
        name="label",
        loss=loss,
        reads=frozenset({student}),
        weight=weight,
        formula=f"CE(S({image}), y)",
        cross_entropy_of=student,
    )


def distil(
    name: str,
    target: str,
    tau: float,
    weight: float,
    *,
    student: str = "student_adv",
    class_mean: bool = False,
) -> Term:
    """τ² KL(target → student; τ): a prediction of the student's drawn towards a teacher's."""

    def loss(outputs: Outputs, labels: Labels) -> PerImage:  # noqa: ARG001 (every term has this signature)
        logits = outputs.get(student)
        divergence = tau**2 * terms.kl(student=logits, target=outputs.get(target), temperature=tau)
        return divergence / logits.shape[1] if class_mean else divergence

    return Term(
        name=name,
        loss=loss,
        reads=frozenset({student, target}),
        weight=weight,
        formula=("mean over classes of " if class_mean else "")
        + kl_formula(SYMBOLS[target], tau, tau**2, student=SYMBOLS[student]),
    )


def introspection(name: str, tau: float, scale: float, weight: float, *, detach_target: bool) -> Term:
    """KL(S(x) → S(x̃)): the student's adversarial prediction drawn towards its own natural one."""

    def loss(outputs: Outputs, labels: Labels) -> PerImage:  # noqa: ARG001
        target = outputs.get("student_nat")
        target = target.detach() if detach_target else target
        divergence = terms.kl(student=outputs.get("student_adv"), target=target, temperature=tau)
        return scale * divergence if scale != 1 else divergence

    return Term(
        name=name,
        loss=loss,
        reads=frozenset({"student_nat", "student_adv"}),
        weight=weight,
        formula=kl_formula("S(x)", tau, scale),
    )


def kl_formula(target: str, tau: float, scale: float, *, student: str = "S(x̃)") -> str:
    """Scale · KL(target → student; τ), without what is 1."""
    at = f"; τ={tau:g}" if tau != 1 else ""
    return (f"{scale:g} · " if scale != 1 else "") + f"KL({target} → {student}{at})"
