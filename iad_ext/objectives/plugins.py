"""What any objective can be given: a regulariser, other targets, a weight an image, another trust.

Each is a small function from an objective to an objective, and they compose: `igdm(sample_weight(rslad(), "entropy"),
20.0)`. By name they are arguments beside the row's own: `build("rslad", sample_weight="entropy", igdm=20.0)`; they
are then applied in the order of this file. All reach the warm-up's objective too.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from iad_ext import reliability, terms
from iad_ext.checks import check_name, check_number, check_whole
from iad_ext.names import unknown
from iad_ext.objectives.core import Factor, ImageWeight, Objective, Outputs, Target, Term
from iad_ext.objectives.introspection import Gamma
from iad_ext.objectives.introspection import introspect as _introspect
from iad_ext.objectives.registry import instead_of, plugin
from iad_ext.types import Labels, Logits, PerImage

OF_TEACHERS = frozenset({"teacher_nat", "teacher_adv", "natural_teacher_nat", "natural_teacher_adv"})


def _throughout(objective: Objective, change: Callable[[Objective], Objective]) -> Objective:
    """Change an objective and what stands in for it during warm-up."""
    warmup = _throughout(objective.warmup, change) if objective.warmup is not None else None
    return replace(change(objective), warmup=warmup)


def _noted(objective: Objective, **settings: object) -> Objective:
    return replace(objective, settings={**objective.settings, **settings})


def _chosen(kind: str, name: object, known: Mapping[str, ImageWeight]) -> ImageWeight:
    check_name(kind, name)
    if name not in known:
        raise ValueError(unknown(kind.replace("_", " "), str(name), known))
    return known[str(name)]


# ---------------------------------------------------------------------------------------------- introspection


@plugin
def introspect(
    objective: Objective,
    on: bool,
    /,
    *,
    beta: float = 0.1,
    gamma: Gamma = "1-alpha",
    introspection_tau: float = 1.0,
    gate_teacher: bool = False,
    warmup_epochs: int = 0,
    detach_target: bool = False,
) -> Objective:
    """`introspect` by name: `build("rslad", introspect=True, beta=0.1)`."""
    if on is not True:
        raise TypeError(f"introspect must be True or False, got {on!r}")
    return _introspect(
        objective,
        beta=beta,
        gamma=gamma,
        introspection_tau=introspection_tau,
        gate_teacher=gate_teacher,
        warmup_epochs=warmup_epochs,
        detach_target=detach_target,
    )


# ---------------------------------------------------------------------------------------------- trust


def _three_cases(outputs: Outputs, labels: Labels) -> PerImage:
    teacher_adv = outputs.get("teacher_adv")
    cases = reliability.three_cases(outputs.get("teacher_nat"), teacher_adv, labels)
    return cases["reliable"].to(teacher_adv)


def _margin(outputs: Outputs, labels: Labels) -> PerImage:
    return reliability.margin_trust(outputs.get("teacher_adv"), labels)


def _entropy(outputs: Outputs, labels: Labels) -> PerImage:  # noqa: ARG001
    return terms.entropy(outputs.get("teacher_adv"))


def _right(outputs: Outputs, labels: Labels) -> PerImage:
    teacher_nat = outputs.get("teacher_nat")
    return reliability.predicts(teacher_nat, labels).to(teacher_nat)


def _share_of_entropy_where_right(outputs: Outputs, labels: Labels) -> PerImage:
    teacher_adv = outputs.get("teacher_adv")
    largest = math.log(teacher_adv.shape[1])
    right = reliability.predicts(teacher_adv, labels).to(teacher_adv)
    return right * (terms.entropy(teacher_adv) / largest).clamp(0, 1)


_ADV, _NAT = frozenset({"teacher_adv"}), frozenset({"teacher_nat"})

TRUSTS: dict[str, ImageWeight] = {
    "three_cases": ImageWeight(_three_cases, _ADV | _NAT, "1 where T_at is right on x and x̃, else 0"),
    "margin": ImageWeight(_margin, _ADV, "clip(1 − (max_k P_T(x̃|k) − P_T(x̃|y)), 0, 1)"),
    "entropy_correct": ImageWeight(
        _share_of_entropy_where_right, _ADV, "H(T_at(x̃)) / log C where T_at(x̃) is right, else 0"
    ),
}
"""Trust other than Eq. 4's, by name; all in [0, 1]."""


@plugin
@instead_of("beta")
def trust(objective: Objective, name: str, /) -> Objective:
    """Replace α by another trust in the teacher, wherever the objective reads α; none of them has a β.

    Args:
        objective: one that is weighed by trust.
        name: `three_cases` (Section 3.2: 1 where the teacher is right on x and on x̃, else 0), `margin` (ADR's clip of
            how far the true class is behind, with λ = 1) or `entropy_correct` (its entropy on x̃ as a share of the
            largest, 0 where it is wrong there).

    Raises:
        ValueError: there is no trust of that name, or nothing is weighed by trust.
    """
    chosen = _chosen("trust", name, TRUSTS)
    if not objective.reads_trust:
        raise ValueError(f"{objective.name} weighs nothing by trust; introspect it first (introspect=True)")
    return _noted(replace(objective, trust_of=chosen), trust=name)


# ---------------------------------------------------------------------------------------------- regularisers


@plugin
def igdm(objective: Objective, weight: float, /, *, ramp_epochs: int = 200) -> Objective:
    """Add IGDM's matching of input gradients (Lee et al. 2023), a(epoch) · KL(T(x̃) − T(x̄) → S(x̃) − S(x̄)).

    x̄ = 2x − x̃ is the adversarial image mirrored in the natural one, not clipped to [0, 1]; a difference of logits
    across it stands for the gradient along the attack's direction, and softmax is taken of the difference.
    a = weight · min(1, (epoch + 1) / ramp_epochs). Source: the released code, epochs counted from 0. The teacher is
    read as it was run: logits that `target` or `class_temperature` changed differ by that, and not by its gradient.

    Args:
        objective: any; one without a teacher needs one then.
        weight: a from the ramp's end on, > 0; 20 on CIFAR-100 in the code, 1 on CIFAR-10 in that of SAAD's authors.
        ramp_epochs: the run's epochs, > 0.
    """
    check_number("igdm", weight, above=0)
    check_whole("ramp_epochs", ramp_epochs, at_least=1)

    def loss(outputs: Outputs, labels: Labels) -> PerImage:  # noqa: ARG001 (every term has this signature)
        return terms.kl(
            student=outputs.get("student_adv") - outputs.get("student_mirror"),
            target=outputs.get("teacher_adv") - outputs.get("teacher_mirror"),
        )

    growing = Factor(
        lambda _, epoch: min(1.0, (epoch + 1) / ramp_epochs),
        reads_trust=False,
        formula=f"min(1, (epoch+1)/{ramp_epochs})",
    )
    term = Term(
        name="igdm",
        loss=loss,
        reads=frozenset({"student_adv", "student_mirror", "teacher_adv", "teacher_mirror"}),
        weight=weight,
        factor=growing,
        as_run=True,
        formula="KL(T_at(x̃) − T_at(x̄) → S(x̃) − S(x̄))",
    )
    attack = "pgd" if objective.attack == "none" else objective.attack
    added = _throughout(objective, lambda o: replace(o, terms=(*o.terms, term), attack=attack))
    return _noted(added, igdm=weight, ramp_epochs=ramp_epochs)


@plugin
def label_smoothing(objective: Objective, smoothing: float, /) -> Objective:
    """Spread a share of every label evenly over the classes.

    Args:
        objective: one with a plain cross-entropy with the labels; MART's is another, ADR smooths its own.
        smoothing: the share, in (0, 1).

    Raises:
        ValueError: no term of a weight above 0 is one.
    """
    check_number("label_smoothing", smoothing, above=0, at_most=0.999)
    if not any(term.cross_entropy_of and term.weight for term in objective.terms):
        raise ValueError(
            f"label_smoothing changes a plain cross-entropy with the labels; {objective.name} is {objective.formula}"
        )

    def smoothed(term: Term) -> Term:
        student = term.cross_entropy_of
        if student is None:
            return term

        def loss(outputs: Outputs, labels: Labels) -> PerImage:
            return terms.cross_entropy(outputs.get(student), labels, smoothing=smoothing)

        return replace(
            term, loss=loss, formula=term.formula.replace(", y)", f", y smoothed by {smoothing:g})")
        )

    changed = _throughout(objective, lambda o: replace(o, terms=tuple(smoothed(t) for t in o.terms)))
    return _noted(changed, label_smoothing=smoothing)


# ---------------------------------------------------------------------------------------------- targets


def _swapped(logits: Logits, labels: Labels, epoch: int) -> Logits:  # noqa: ARG001
    """The true class's logit and the largest one change places; nothing happens where they are the same."""
    true, best = labels[:, None], logits.argmax(dim=1, keepdim=True)
    swapped = logits.scatter(1, best, logits.gather(1, true))
    return swapped.scatter(1, true, logits.gather(1, best))


TARGETS: dict[str, Target] = {
    "swap": Target(OF_TEACHERS, _swapped, "T's largest and true class swapped where T is wrong"),
}
"""Changes to what teachers say, by name."""


def _with_target(objective: Objective, change: Target, plug: str) -> Objective:
    """Add a target; a ValueError where no term would notice."""
    if not any(term.weight and not term.as_run and term.reads & change.passes for term in objective.terms):
        raise ValueError(
            f"{plug} changes what teachers say, and no term of {objective.name} is drawn towards that: "
            f"{objective.formula}"
        )
    return _throughout(objective, lambda o: replace(o, targets=(*o.targets, change)))


@plugin
def target(objective: Objective, name: str, /) -> Objective:
    """Change what the teachers say before the student is drawn towards it.

    Args:
        objective: one with a term that draws the student towards a teacher.
        name: `swap` (Park & Min 2024, DGAD: the logits of the true class and of the largest one change places, so that
            a teacher that is wrong is right, as sure as it was). Trust, sample weights, attacks and IGDM still see
            what the teacher said.
    """
    check_name("target", name)
    if name not in TARGETS:
        raise ValueError(unknown("target", name, TARGETS))
    return _noted(_with_target(objective, TARGETS[name], "target"), target=name)


@plugin
def class_temperature(objective: Objective, temperatures: Mapping[int, float], /) -> Objective:
    """Divide what the teachers say of an image by a temperature of its true class.

    Args:
        objective: one with a term that draws the student towards a teacher.
        temperatures: class -> τ > 0; 1 for a class that is not named. The student's own temperature stays.
    """
    if not isinstance(temperatures, Mapping) or not temperatures:
        raise TypeError(
            f"class_temperature must be a mapping from classes, such as {{3: 2.0}}; got {temperatures!r}"
        )
    for k, tau in temperatures.items():
        check_whole("a class in class_temperature", k, at_least=0)
        check_number(f"class_temperature[{k}]", tau, above=0)
    if set(temperatures.values()) == {1}:
        raise ValueError("class_temperature changes nothing: every temperature is 1; leave it out")

    def softened(logits: Logits, labels: Labels, epoch: int) -> Logits:  # noqa: ARG001
        if max(temperatures) >= logits.shape[1]:
            raise ValueError(
                f"class_temperature names class {max(temperatures)}; the networks have {logits.shape[1]}, from 0 on"
            )
        by_class = logits.new_ones(logits.shape[1])
        for k, tau in temperatures.items():
            by_class[k] = tau
        return logits / by_class[labels][:, None]

    shown = ", ".join(f"{k}: {tau:g}" for k, tau in temperatures.items())
    change = Target(OF_TEACHERS, softened, f"T at a temperature of the class ({shown})")
    added = _with_target(objective, change, "class_temperature")
    return _noted(added, class_temperature=dict(temperatures))


# ---------------------------------------------------------------------------------------------- sample weights

SAMPLE_WEIGHTS: dict[str, ImageWeight] = {
    "entropy": ImageWeight(_entropy, _ADV, "H(T_at(x̃))"),
    "correct": ImageWeight(_right, _NAT, "[T_at(x) right]"),
    "entropy_correct": ImageWeight(
        lambda outputs, labels: _entropy(outputs, labels) * _right(outputs, labels),
        _ADV | _NAT,
        "H(T_at(x̃)) · [T_at(x) right]",
    ),
}
"""Weights of an image's whole loss, by name."""


@plugin
def sample_weight(objective: Objective, name: str, /) -> Objective:
    """Multiply the whole loss of each image by what its teacher tells of it.

    Args:
        objective: any; one without a teacher needs one then.
        name: `entropy` (after SAAD, Lee & Chung 2026: the teacher's entropy on x̃ in nats, which distrusts an
            over-confident teacher; SAAD itself takes five times the entropy beyond the batch's smallest), `correct`
            (after DGAD, Park & Min 2024: 1 where the teacher is right on x, else 0; DGAD itself trains those images on
            x instead of leaving them out) or `entropy_correct` (their product).
    """
    weight = _chosen("sample_weight", name, SAMPLE_WEIGHTS)
    attack = "pgd" if objective.attack == "none" and weight.reads & _ADV else objective.attack
    added = _throughout(
        objective, lambda o: replace(o, sample_weights=(*o.sample_weights, weight), attack=attack)
    )
    return _noted(added, sample_weight=name)


__all__ = [
    "SAMPLE_WEIGHTS",
    "TARGETS",
    "TRUSTS",
    "class_temperature",
    "igdm",
    "introspect",
    "label_smoothing",
    "sample_weight",
    "target",
    "trust",
]
