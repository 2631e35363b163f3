"""Training objectives as rows of weighted per-image terms, and introspection as a wrapper around a row.

A row is one line of the paper's Table 1. Each of its terms declares which network passes it reads, so that
a training step runs those and no other. `introspect` turns any row into its introspective form (Eq. 3);
IAD-I and IAD-II are `introspect(ard(…))` and `introspect(akd2(…))` and nothing more.

To add an objective, write one function that returns an `Objective` and put `@row` above it.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal, ParamSpec

import torch
from torch import Tensor

from iad_ext import reliability, terms
from iad_ext.checks import check_flag, check_mapping, check_name, check_number
from iad_ext.names import known_arguments, refuse_unknown, unknown
from iad_ext.types import Labels, Logits, PerImage, Scalar

Weights = Mapping[str, float]
Gamma = float | Literal["1-alpha"] | Mapping[int, float] | Callable[[int], float]


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Logits of the passes that a step ran, (batch, classes) each; None for a pass that nobody asked for.

    Attributes:
        student_nat: S(x), the student on natural images.
        student_adv: S(x̃), the student on its adversarial images.
        teacher_nat: T_at(x), the adversarially trained teacher on natural images.
        teacher_adv: T_at(x̃), the same teacher on the student's adversarial images.
        natural_teacher_adv: T_st(x̃), the naturally trained teacher on the student's adversarial images.
    """

    student_nat: Logits | None = None
    student_adv: Logits | None = None
    teacher_nat: Logits | None = None
    teacher_adv: Logits | None = None
    natural_teacher_adv: Logits | None = None

    def get(self, name: str) -> Logits:
        """Return the logits of pass `name`; a ValueError says so if that pass was not run."""
        logits: Logits | None = getattr(self, name)
        if logits is None:
            raise ValueError(
                f"the objective reads {name}, which is not among the outputs; "
                "run every pass in objective.needs(epoch=…)"
            )
        return logits


PASSES: tuple[str, ...] = tuple(f.name for f in fields(Outputs))
ADVERSARIAL_PASSES = frozenset(name for name in PASSES if name.endswith("_adv"))


@dataclass(frozen=True)
class Loss:
    """What an objective returns.

    Attributes:
        total: mean over the batch of the sum of the terms; the scalar to differentiate.
        terms: weighted loss of each active term, (batch,) each; they sum to `per_image`.
        per_image: (batch,).
        trust: α of each image, (batch,), no gradient; ones during warm-up; None where the objective has none.
    """

    total: Scalar
    terms: dict[str, PerImage]
    per_image: PerImage
    trust: PerImage | None


@dataclass(frozen=True)
class Factor:
    """What multiplies a term image by image beside its weight: trust, distrust, a schedule by epoch."""

    value: Callable[[PerImage | None, int], PerImage | float]
    reads_trust: bool
    formula: str

    def switched_off(self, epoch: int) -> bool:
        """Whether the factor is 0 for every image at `epoch`, known without running anything."""
        return not self.reads_trust and float(self.value(None, epoch)) == 0


@dataclass(frozen=True, kw_only=True)
class Term:
    """One summand of an objective.

    Attributes:
        name: key in `Loss.terms`: `label`, `teacher`, `natural_teacher`, `self` …
        loss: (outputs, labels) -> (batch,).
        reads: the passes that `loss` reads.
        weight: λ; 0 drops the term together with the passes that only it reads.
        factor: per-image multiplier, if any.
        formula: the unweighted term, for people.
    """

    name: str
    loss: Callable[[Outputs, Labels], PerImage]
    reads: frozenset[str]
    formula: str
    weight: float = 1.0
    factor: Factor | None = None

    def active(self, epoch: int) -> bool:
        """Whether the term takes part at `epoch`."""
        return self.weight != 0 and not (self.factor and self.factor.switched_off(epoch))


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A weighted sum of per-image terms, callable as `objective(outputs, labels, epoch=…)`.

    Attributes:
        name: the row's name, such as `iad1`.
        terms: the summands.
        trust_of: (T_at(x̃), labels) -> α, or None where no teacher is weighed.
        warmup: the objective that stands in while `epoch < warmup_epochs` (the wrapped base), or None.
        warmup_epochs: number of warm-up epochs; epochs count from 0.
        attack: the training attack of the method's source: `pgd`, `trades`, or `none` where no pass reads x̃.
        attack_training: whether that attack runs on the student in train mode.
        introspection_weight: λ that introspection takes when it wraps this row.
        introspection_scale: the power of τ that multiplies introspection too (τ² for AKD2, 1 for ARD).
        introspection: name of the term that is introspection; None where there is none.
        settings: the constructor's arguments, for `repr` and provenance.
    """

    name: str
    terms: tuple[Term, ...]
    trust_of: Callable[[Logits, Labels], PerImage] | None = None
    warmup: "Objective | None" = None
    warmup_epochs: int = 0
    attack: Literal["pgd", "trades", "none"] = "pgd"
    attack_training: bool = True
    introspection_weight: float = 1.0
    introspection_scale: float = 1.0
    introspection: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict, compare=False)

    def warming_up(self, epoch: int) -> bool:
        """Whether the wrapped base stands in at `epoch`."""
        return self.warmup is not None and epoch < self.warmup_epochs

    @property
    def reads_trust(self) -> bool:
        """Whether any term that takes part is weighed by α."""
        return self.trust_of is not None and any(
            t.weight and t.factor and t.factor.reads_trust for t in self.terms
        )

    def needs(self, epoch: int) -> frozenset[str]:
        """Return the passes that a call at `epoch` will read, as names of `Outputs`' fields."""
        _check_epoch(epoch)
        if self.warmup is not None and self.warming_up(epoch):
            return self.warmup.needs(epoch)
        passes = frozenset[str]().union(*(term.reads for term in self.terms if term.active(epoch)))
        return passes | {"teacher_adv"} if self.reads_trust else passes

    def passes(self, epochs: int) -> frozenset[str]:
        """Return every pass that some epoch of a run of `epochs` reads."""
        return frozenset[str]().union(*(self.needs(epoch) for epoch in range(epochs)))

    def __call__(self, outputs: Outputs, labels: Labels, *, epoch: int) -> Loss:
        """Evaluate the objective.

        Args:
            outputs: logits of at least the passes in `needs(epoch)`, all (batch, classes).
            labels: true classes as integers, (batch,).
            epoch: counted from 0.

        Raises:
            ValueError: a pass is missing, or shapes or types do not fit together.
        """
        _check_epoch(epoch)
        if self.warmup is not None and self.warming_up(epoch):
            loss = self.warmup(outputs, labels, epoch=epoch)
            return replace(loss, trust=torch.ones_like(loss.per_image)) if self.reads_trust else loss
        active = [term for term in self.terms if term.active(epoch)]
        if not active:
            raise ValueError(
                f"{self.name}: no term takes part at epoch {epoch}; give one of "
                f"{', '.join(term.name for term in self.terms)} a weight above 0 from there on"
            )
        _check_shapes(outputs, labels, self.needs(epoch))
        labels = labels.long()
        trust = None
        if self.trust_of is not None and self.reads_trust:
            trust = self.trust_of(outputs.get("teacher_adv"), labels)
        weighted = {}
        for term in active:
            loss_of_term = term.weight * term.loss(outputs, labels)
            weighted[term.name] = (
                term.factor.value(trust, epoch) * loss_of_term if term.factor else loss_of_term
            )
        per_image = functools.reduce(torch.add, weighted.values())
        return Loss(total=per_image.mean(), terms=weighted, per_image=per_image, trust=trust)

    def with_weights(self, weights: Weights | None) -> "Objective":
        """Return the objective with the named terms' weights replaced; 0 drops a term and its passes."""
        if weights is None:
            return self
        check_mapping("weights", weights, '{"label": 0.5}')
        if not weights:
            return self
        refuse_unknown(f"term in weights of {self.name}", weights, [term.name for term in self.terms])
        for name, weight in weights.items():
            check_number(f"weights[{name!r}]", weight, at_least=0)
        reweighted = tuple(replace(t, weight=float(weights.get(t.name, t.weight))) for t in self.terms)
        warmup = self.warmup
        if warmup is not None:
            of_warmup = {t.name for t in warmup.terms}
            warmup = warmup.with_weights({name: w for name, w in weights.items() if name in of_warmup})
        return replace(self, terms=reweighted, warmup=warmup)

    @property
    def formula(self) -> str:
        """The objective in one line, α = P_T(x̃|y)^β."""
        return " + ".join(_formula(term) for term in self.terms if term.weight)

    def __repr__(self) -> str:
        shown = ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
        return f"{self.name}({shown})"


def _formula(term: Term) -> str:
    weight = "" if term.weight == 1 else f"{term.weight:g} · "
    factor = f"{term.factor.formula} · " if term.factor else ""
    return f"{weight}{factor}{term.formula}"


# ---------------------------------------------------------------------------------------------- checks


def _check_epoch(epoch: int) -> None:
    if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
        raise ValueError(f"epoch counts from 0 as an integer, got {epoch!r}")


def _check_shapes(outputs: Outputs, labels: Labels, needed: frozenset[str]) -> None:
    """Compare shapes and types only: reading a value would make the step wait for the device."""
    if not isinstance(outputs, Outputs):
        raise TypeError(f"outputs must be an iad_ext.Outputs(student_nat=…, …), got {type(outputs).__name__}")
    passes = {name: outputs.get(name) for name in sorted(needed)}
    for name, logits in passes.items():
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            came = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
            raise TypeError(f"outputs: {name} must be a floating tensor of logits, got {came}")
    shapes = {name: tuple(logits.shape) for name, logits in passes.items()}
    first = next(iter(shapes))
    if len(shapes[first]) != 2:
        raise ValueError(f"logits must be (batch, classes), {first} is {shapes[first]}")
    classes = {name: shape[1:] for name, shape in shapes.items()}
    if len(set(classes.values())) > 1:
        said = ", ".join(f"{name} {shape[0] if shape else '?'}" for name, shape in classes.items())
        raise ValueError(
            f"networks differ in their number of classes: {said}; load both with the same num_classes"
        )
    if len(set(shapes.values())) > 1:
        raise ValueError(f"passes differ in their batch: {shapes}")
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor of integers, got {type(labels).__name__}")
    if labels.shape != shapes[first][:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels must be integers of shape {shapes[first][:1]}, got {labels.dtype} "
            f"{tuple(labels.shape)}; "
            "one-hot labels become integers by argmax(dim=1)"
        )


# ---------------------------------------------------------------------------------------------- terms


def _label(images: Literal["nat", "adv"], weight: float) -> Term:
    """Cross-entropy of the student on natural or adversarial images."""
    student = f"student_{images}"

    def loss(outputs: Outputs, labels: Labels) -> PerImage:
        return terms.cross_entropy(outputs.get(student), labels)

    image = "x" if images == "nat" else "x̃"
    return Term(
        name="label", loss=loss, reads=frozenset({student}), weight=weight, formula=f"CE(S({image}), y)"
    )


def _distil(
    name: str, target: str, symbol: str, tau: float, weight: float, *, class_mean: bool = False
) -> Term:
    """τ² KL(target → S(x̃); τ): the student's adversarial prediction drawn towards a teacher's."""

    def loss(outputs: Outputs, labels: Labels) -> PerImage:  # noqa: ARG001 (every term has this signature)
        student = outputs.get("student_adv")
        divergence = tau**2 * terms.kl(student=student, target=outputs.get(target), temperature=tau)
        return divergence / student.shape[1] if class_mean else divergence

    return Term(
        name=name,
        loss=loss,
        reads=frozenset({"student_adv", target}),
        weight=weight,
        formula=("mean over classes of " if class_mean else "") + _kl_formula(symbol, tau, tau**2),
    )


def _introspection(name: str, tau: float, scale: float, weight: float, *, detach_target: bool) -> Term:
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
        formula=_kl_formula("S(x)", tau, scale),
    )


def _kl_formula(target: str, tau: float, scale: float) -> str:
    at = f"; τ={tau:g}" if tau != 1 else ""
    return (f"{scale:g} · " if scale != 1 else "") + f"KL({target} → S(x̃){at})"


# ---------------------------------------------------------------------------------------------- registry

P = ParamSpec("P")
ROWS: dict[str, Callable[..., Objective]] = {}


def row(constructor: Callable[P, Objective]) -> Callable[P, Objective]:
    """Register an objective's constructor under its own name, and refuse arguments that it does not know."""
    signature = inspect.signature(constructor)
    name = constructor.__name__

    @known_arguments
    @functools.wraps(constructor)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Objective:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        settings = {key: value for key, value in bound.arguments.items() if value is not None}
        objective = constructor(*args, **kwargs)
        if not any(term.weight for term in objective.terms):
            raise ValueError(f"{name}: every term's weight is 0, nothing is left to train on")
        return replace(objective, name=name, settings=settings)

    ROWS[name] = checked
    return checked


def build(name: str, **settings: object) -> Objective:
    """Build the objective called `name`, such as `build("iad2", beta=0.1)`.

    Raises:
        ValueError: no objective has that name (the nearest one is suggested), or a value is out of range.
        TypeError: the objective has no such argument, or a value is of the wrong kind.
    """
    check_name("name", name)
    if name not in ROWS:
        raise ValueError(unknown("objective", name, ROWS))
    return ROWS[name](**settings)


# ---------------------------------------------------------------------------------------------- Table 1


@row
def st(*, weights: Weights | None = None) -> Objective:
    """Standard training: CE(S(x), y). No attack."""
    return Objective(name="st", terms=(_label("nat", 1.0),), attack="none").with_weights(weights)


@row
def at(*, weights: Weights | None = None) -> Objective:
    """Adversarial training (Table 1; Madry et al. 2018): CE(S(x̃), y). The student is attacked in eval mode."""
    return Objective(name="at", terms=(_label("adv", 1.0),), attack_training=False).with_weights(weights)


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
            _label("nat", 1.0),
            _introspection("self", tau, tau**2, self_weight, detach_target=detach_target),
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
            _label("nat", label_weight),
            _distil("teacher", "teacher_nat", "T_at(x)", tau, 1 - label_weight, class_mean=class_mean),
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
    teacher_weight: float = 0.1,
    natural_teacher_weight: float = 0.6,
    weights: Weights | None = None,
) -> Objective:
    """AKD2 with Chen et al.'s own temperature and weights. Their runs average weights too (SWA); not here."""
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

    def trust_where_wrong(teacher_adv: Logits, labels: Labels) -> PerImage:
        alpha = reliability.trust(teacher_adv, labels, beta=beta)
        return torch.where(reliability.predicts(teacher_adv, labels), torch.ones_like(alpha), alpha)

    base = _akd2(tau, label_weight, teacher_weight, natural_teacher_weight)
    gated = tuple(replace(t, factor=_TRUST) if t.name == "teacher" else t for t in base.terms)
    return replace(base, terms=gated, trust_of=trust_where_wrong).with_weights(weights)


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
            _label("adv", label_weight),
            _distil("teacher", "teacher_adv", "T_at(x̃)", tau, teacher_weight),
            _distil("natural_teacher", "natural_teacher_adv", "T_st(x̃)", tau, natural_teacher_weight),
        ),
        introspection_weight=teacher_weight,
        introspection_scale=tau**2,
    )


# ---------------------------------------------------------------------------------------------- introspection


def _alpha(trust: PerImage | None, epoch: int) -> PerImage:  # noqa: ARG001
    assert trust is not None  # the objective computes trust whenever a factor reads it
    return trust


def _one_minus_alpha(trust: PerImage | None, epoch: int) -> PerImage:
    return 1 - _alpha(trust, epoch)


_TRUST = Factor(_alpha, reads_trust=True, formula="α")
_DISTRUST = Factor(_one_minus_alpha, reads_trust=True, formula="(1 − α)")


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
        _check_epoch(start)
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

    gated = tuple(
        replace(t, factor=_TRUST) if gate_teacher and t.name == "teacher" else t for t in base.terms
    )
    # a base that regularises towards itself already (TRADES) keeps the name for its own term
    name = "introspection" if "self" in names else "self"
    own = _introspection(
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
        trust_of=functools.partial(reliability.trust, beta=beta),
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


@row
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


def as_objective(objective: "str | Objective", **settings: object) -> Objective:
    """Return `objective` itself, or build the one of that name."""
    if isinstance(objective, Objective):
        if settings:
            raise TypeError(
                f"settings {sorted(settings)} go to an objective given by name, not to a finished one"
            )
        return objective
    return build(objective, **settings)


__all__ = [
    "ADVERSARIAL_PASSES",
    "PASSES",
    "ROWS",
    "Loss",
    "Objective",
    "Outputs",
    "Term",
    "akd2",
    "akd2_chen",
    "akd2_down",
    "ard",
    "ard_goldblum",
    "as_objective",
    "at",
    "build",
    "iad1",
    "iad1_down",
    "iad2",
    "introspect",
    "row",
    "st",
    "trades",
]
