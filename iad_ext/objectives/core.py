"""What an objective is: a weighted sum of per-image terms, each of which says which network passes it reads."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import NoReturn

import torch
from torch import Tensor

from iad_ext.checks import check_mapping, check_number
from iad_ext.names import refuse_unknown
from iad_ext.types import Labels, Logits, PerImage, Scalar

Weights = Mapping[str, float]
EQ_4 = "P_T(x̃|y)^β"


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Logits of the passes that a step ran, (batch, classes) each; None for a pass that nobody asked for.

    Attributes:
        student_nat: S(x), the student on natural images.
        student_adv: S(x̃), the student on its adversarial images.
        teacher_nat: T_at(x), the adversarially trained teacher on natural images.
        teacher_adv: T_at(x̃), the same teacher on the student's adversarial images.
        natural_teacher_adv: T_st(x̃), the naturally trained teacher on the student's adversarial images.
        natural_teacher_nat: T_st(x), the same teacher on natural images (MTARD).
        average_nat: Ŝ(x), the moving average of the student's own weights on natural images (ADR).
        student_mirror: S(2x − x̃), the student on the adversarial image mirrored in the natural one (IGDM).
        teacher_mirror: T_at(2x − x̃), the adversarially trained teacher on the same.
    """

    student_nat: Logits | None = None
    student_adv: Logits | None = None
    teacher_nat: Logits | None = None
    teacher_adv: Logits | None = None
    natural_teacher_adv: Logits | None = None
    natural_teacher_nat: Logits | None = None
    average_nat: Logits | None = None
    student_mirror: Logits | None = None
    teacher_mirror: Logits | None = None

    def get(self, name: str) -> Logits:
        """Return the logits of pass `name`; a ValueError says so if that pass was not run."""
        logits: Logits | None = getattr(self, name)
        if logits is None:
            raise ValueError(
                f"the objective reads {name}, which is not among the outputs; "
                "run every pass in objective.needs(epoch=…)"
            )
        return logits


SYMBOLS: Mapping[str, str] = {
    "student_nat": "S(x)",
    "student_adv": "S(x̃)",
    "teacher_nat": "T_at(x)",
    "teacher_adv": "T_at(x̃)",
    "natural_teacher_adv": "T_st(x̃)",
    "natural_teacher_nat": "T_st(x)",
    "average_nat": "Ŝ(x)",
    "student_mirror": "S(2x − x̃)",
    "teacher_mirror": "T_at(2x − x̃)",
}
"""The passes as formulas write them."""
PASSES: tuple[str, ...] = tuple(f.name for f in fields(Outputs))
ADVERSARIAL_PASSES = frozenset(name for name in PASSES if name.endswith(("_adv", "_mirror")))
"""The passes that an attack must have run for."""
LEAST_FIRST_LOSS = 1e-3  # below, a loss has nothing to fall from, and a share of it is none


@dataclass(frozen=True)
class Loss:
    """What an objective returns.

    Attributes:
        total: mean over the batch of the sum of the terms; the scalar to differentiate.
        terms: weighted loss of each active term, (batch,) each; they sum to `per_image`.
        per_image: (batch,).
        trust: α of each image, (batch,), no gradient; ones during warm-up; None where the objective has none.
        balanced: losses of the terms that the objective balances, before trust and every weight, (batch,) each, no
            gradient; what `Balance.updated` takes the means of.
    """

    total: Scalar
    terms: dict[str, PerImage]
    per_image: PerImage
    trust: PerImage | None
    balanced: Mapping[str, PerImage] = field(default_factory=dict)

    def detached(self) -> "Loss":
        """The same numbers without gradient."""
        terms = {name: values.detach() for name, values in self.terms.items()}
        return replace(self, total=self.total.detach(), terms=terms, per_image=self.per_image.detach())


@dataclass(frozen=True)
class ImageWeight:
    """A number an image that is read off the passes, without gradient: trust in a teacher, or a sample weight.

    Attributes:
        value: (outputs, labels) -> (batch,), ≥ 0; may keep a gradient, which the objective cuts.
        reads: the passes that `value` reads.
        formula: for people.
        beta: β of a trust that is Eq. 4's α, else None.
    """

    value: Callable[[Outputs, Labels], PerImage]
    reads: frozenset[str]
    formula: str
    beta: float | None = None

    def __call__(self, outputs: Outputs, labels: Labels) -> PerImage:
        """Evaluate it."""
        return self.value(outputs, labels).detach()


@dataclass(frozen=True)
class Target:
    """What becomes of a pass before the terms read it as their target.

    Trust, sample weights and terms that read passes `as_run` see it as it was.

    Attributes:
        passes: the passes that it changes, where they were run.
        change: (logits, labels, epoch) -> logits.
        formula: for people.
    """

    passes: frozenset[str]
    change: Callable[[Logits, Labels, int], Logits]
    formula: str

    def __call__(self, outputs: Outputs, labels: Labels, epoch: int) -> Outputs:
        """Return the outputs with those passes changed."""
        run = {name: z for name in sorted(self.passes) if (z := getattr(outputs, name)) is not None}
        return replace(outputs, **{name: self.change(z, labels, epoch) for name, z in run.items()})


@dataclass(frozen=True)
class Balance:
    """Weights of several terms that follow their relative losses from step to step (MTARD's Eq. 9 to 11).

    A term that has fallen less than the others since the first step gets more weight; what multiplies a term beside,
    such as trust, does not count as its falling. The state is a tensor
    (2, terms) of float64: the weights, which sum to 1, and the losses of the first step, NaN before it. A term that
    has next to no loss at first, as that of a student begun with its teacher's weights, has not begun until it has. A
    step runs under the weights that the steps before it left, so that a batch can be computed in parts.

    Attributes:
        terms: names of the terms.
        rate: share of the new weight at each step, in [0, 1); MTARD's r_w.
        power: exponent of the relative losses; MTARD's β.
    """

    terms: tuple[str, ...]
    rate: float
    power: float = 1.0

    def begin(self, device: torch.device | str = "cpu") -> Tensor:
        """The state before the first step: equal weights."""
        even = torch.full((len(self.terms),), 1 / len(self.terms), dtype=torch.float64, device=device)
        return torch.stack([even, torch.full_like(even, torch.nan)])

    def updated(self, state: Tensor, losses: Tensor, *, slowed: float = 1.0) -> Tensor:
        """The state after a step, from the batch means (terms,) of `Loss.balanced`.

        `slowed` multiplies the rate; in [0, 1].
        """
        weights, first = state
        losses = losses.double()
        begun = first >= LEAST_FIRST_LOSS  # not where it is NaN
        first = torch.where(begun, first, losses)
        relative = torch.where(begun, losses.clamp(min=0) / first, 1.0) ** self.power
        rate = self.rate * slowed
        return torch.stack([rate * relative / relative.sum() + (1 - rate) * weights, first])


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
        cross_entropy_of: the pass whose cross-entropy with the labels this is, if that is what it is.
        as_run: whether the term reads every pass as it was run, and not as the objective's targets leave it.
    """

    name: str
    loss: Callable[[Outputs, Labels], PerImage]
    reads: frozenset[str]
    formula: str
    weight: float = 1.0
    factor: Factor | None = None
    cross_entropy_of: str | None = None
    as_run: bool = False

    def active(self, epoch: int) -> bool:
        """Whether the term takes part at `epoch`."""
        return self.weight != 0 and not (self.factor and self.factor.switched_off(epoch))


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A weighted sum of per-image terms, callable as `objective(outputs, labels, epoch=…)`.

    Attributes:
        name: the row's name, such as `iad1`.
        terms: the summands.
        trust_of: what α is, or None where no teacher is weighed.
        warmup: the objective that stands in while `epoch < warmup_epochs` (the wrapped base), or None.
        warmup_epochs: number of warm-up epochs; epochs count from 0.
        attack: the training attack of the method's source, a name in `attacks.TRAINING_ATTACKS`, or `none` where no
            pass reads x̃.
        attack_training: whether that attack runs on the student in train mode.
        introspection_weight: λ that introspection takes when it wraps this row.
        introspection_scale: the power of τ that multiplies introspection too (τ² for AKD2, 1 for ARD).
        introspection: name of the term that is introspection; None where there is none.
        targets: changes to the passes that terms read, in this order.
        sample_weights: what the whole loss of an image is multiplied by.
        balance: weights that change from step to step, if any.
        average_decay: decay of the moving average of weights that the source reads passes of, if any.
        settings: the constructor's arguments, for `repr` and provenance.
    """

    name: str
    terms: tuple[Term, ...]
    trust_of: ImageWeight | None = None
    warmup: "Objective | None" = None
    warmup_epochs: int = 0
    attack: str = "pgd"
    attack_training: bool = True
    introspection_weight: float = 1.0
    introspection_scale: float = 1.0
    introspection: str | None = None
    targets: tuple[Target, ...] = ()
    sample_weights: tuple[ImageWeight, ...] = ()
    balance: Balance | None = None
    average_decay: float | None = None
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
        check_epoch(epoch)
        if self.warmup is not None and self.warming_up(epoch):
            return self.warmup.needs(epoch)
        passes = frozenset[str]().union(*(term.reads for term in self.terms if term.active(epoch)))
        if not passes:
            return passes
        if self.trust_of is not None and self.reads_trust:
            passes |= self.trust_of.reads
        return passes.union(*(weight.reads for weight in self.sample_weights))

    def passes(self, epochs: int) -> frozenset[str]:
        """Return every pass that some epoch of a run of `epochs` reads."""
        return frozenset[str]().union(*(self.needs(epoch) for epoch in range(epochs)))

    def check_run(self, epochs: int, *, classes: int | None = None) -> None:
        """Refuse what would end a run of `epochs` on the way, such as an epoch in which no term takes part.

        Args:
            epochs: how many there are.
            classes: how many the networks have; of those, one image is computed for each set of passes.

        Raises:
            ValueError: says what, and from which epoch on.
        """
        computed: set[frozenset[str]] = set()
        for epoch in range(epochs):
            needed = self.needs(epoch)
            if not needed:
                self._refuse_empty(epoch)
            if classes is not None and needed not in computed:
                logits = torch.zeros(1, classes)
                self(Outputs(**dict.fromkeys(needed, logits)), torch.zeros(1, dtype=torch.long), epoch=epoch)
                computed.add(needed)

    def _refuse_empty(self, epoch: int) -> NoReturn:
        raise ValueError(
            f"{self.name}: no term takes part at epoch {epoch}; give one of "
            f"{', '.join(term.name for term in self.terms)} a weight above 0 from there on"
        )

    def __call__(
        self, outputs: Outputs, labels: Labels, *, epoch: int, balance: Tensor | None = None
    ) -> Loss:
        """Evaluate the objective.

        Args:
            outputs: logits of at least the passes in `needs(epoch)`, all (batch, classes).
            labels: true classes as integers, (batch,).
            epoch: counted from 0.
            balance: where the objective balances its terms, the state that `balance.updated` returned last; that
                before the first step when None.

        Raises:
            ValueError: a pass is missing, or shapes or types do not fit together.
        """
        check_epoch(epoch)
        if self.warmup is not None and self.warming_up(epoch):
            loss = self.warmup(outputs, labels, epoch=epoch, balance=balance)
            return replace(loss, trust=torch.ones_like(loss.per_image)) if self.reads_trust else loss
        active = [term for term in self.terms if term.active(epoch)]
        if not active:
            self._refuse_empty(epoch)
        _check_shapes(outputs, labels, self.needs(epoch))
        labels = labels.long()
        trust = self.trust_of(outputs, labels) if self.trust_of is not None and self.reads_trust else None
        by_image = [weight(outputs, labels) for weight in self.sample_weights]
        by_step = self._balanced(balance, outputs)
        changed = self.with_targets(outputs, labels, epoch)
        weighted, balanced = {}, {}
        for term in active:
            alone = term.loss(outputs if term.as_run else changed, labels)
            loss_of_term = term.weight * alone
            if term.factor:
                loss_of_term = term.factor.value(trust, epoch) * loss_of_term
            if term.name in by_step:
                balanced[term.name] = alone.detach()
                loss_of_term = by_step[term.name] * loss_of_term
            weighted[term.name] = functools.reduce(torch.mul, by_image, loss_of_term)
        per_image = functools.reduce(torch.add, weighted.values())
        return Loss(per_image.mean(), weighted, per_image, trust, balanced)

    def with_targets(self, outputs: Outputs, labels: Labels, epoch: int) -> Outputs:
        """Return the outputs as the terms read them, but for those that read passes as they were run."""
        for target in self.targets:
            outputs = target(outputs, labels, epoch)
        return outputs

    def _balanced(self, state: Tensor | None, outputs: Outputs) -> dict[str, Tensor]:
        """The weights of this step, by term, as scalars of the logits' type."""
        if self.balance is None:
            return {}
        logits = next(z for name in PASSES if (z := getattr(outputs, name)) is not None)
        weights = (self.balance.begin(logits.device) if state is None else state)[0].to(logits)
        return dict(zip(self.balance.terms, weights, strict=True))

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
        warmup, balance = self.warmup, self.balance
        if warmup is not None:
            of_warmup = {t.name for t in warmup.terms}
            warmup = warmup.with_weights({name: w for name, w in weights.items() if name in of_warmup})
        if balance is not None and any(t.name in balance.terms and not t.weight for t in reweighted):
            balance = None  # one term alone has nothing to be balanced against
        return replace(self, terms=reweighted, warmup=warmup, balance=balance)

    @property
    def formula(self) -> str:
        """The objective in one line, α = P_T(x̃|y)^β unless another trust is chosen."""
        total = " + ".join(self._formula_of(term) for term in self.terms if term.weight)
        weighed = " · ".join(weight.formula for weight in self.sample_weights)
        changed = "; ".join(target.formula for target in self.targets)
        trust = self.trust_of.formula if self.trust_of is not None and self.reads_trust else EQ_4
        notes = [f"α = {trust}" if trust != EQ_4 else "", changed]
        return "; ".join([f"{weighed} · [{total}]" if weighed else total, *filter(None, notes)])

    def _formula_of(self, term: Term) -> str:
        weight = "" if term.weight == 1 else f"{term.weight:g} · "
        factor = f"{term.factor.formula} · " if term.factor else ""
        balanced = self.balance.terms if self.balance is not None else ()
        step = f"w_{balanced.index(term.name) + 1} · " if term.name in balanced else ""
        return f"{weight}{factor}{step}{term.formula}"

    def __repr__(self) -> str:
        shown = ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
        return f"{self.name}({shown})"


# ---------------------------------------------------------------------------------------------- checks


def check_epoch(epoch: int) -> None:
    """Raise a ValueError unless `epoch` is an integer from 0 on."""
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
