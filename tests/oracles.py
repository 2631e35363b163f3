"""The paper's formulas as loops over images and classes, in Python's own floats. Slow, obvious, no tensor.

An image's logits are a list of floats; `z` maps the name of a pass to them. Elementary losses return their
value and its gradient by pass, written out by hand; `test_objectives` holds those gradients against finite
differences of the values.
"""

import math
from dataclasses import dataclass


def softmax(row, tau=1.0):
    highest = max(row)
    powers = [math.exp((value - highest) / tau) for value in row]
    return [power / math.fsum(powers) for power in powers]


def log_softmax(row, tau=1.0):
    highest = max(row)
    log_sum = math.log(math.fsum(math.exp((value - highest) / tau) for value in row))
    return [(value - highest) / tau - log_sum for value in row]


def prediction(row):
    """The class of the largest logit, the first of equals."""
    best = 0
    for k, value in enumerate(row):
        if value > row[best]:
            best = k
    return best


def cross_entropy(row, y):
    return -log_softmax(row)[y]


def cross_entropy_gradient(row, y):
    p = softmax(row)
    return [p[k] - (1.0 if k == y else 0.0) for k in range(len(row))]


def kl(target, student, tau=1.0):
    """KL(softmax(target / τ) ‖ softmax(student / τ))."""
    p, log_p, log_q = softmax(target, tau), log_softmax(target, tau), log_softmax(student, tau)
    return math.fsum(p[k] * (log_p[k] - log_q[k]) for k in range(len(p)))


def kl_gradients(target, student, tau=1.0):
    """Gradients with respect to (target, student)."""
    p, q = softmax(target, tau), softmax(student, tau)
    log_p, log_q = log_softmax(target, tau), log_softmax(student, tau)
    value = kl(target, student, tau)
    by_target = [p[k] * (log_p[k] - log_q[k] - value) / tau for k in range(len(p))]
    by_student = [(q[k] - p[k]) / tau for k in range(len(p))]
    return by_target, by_student


def rival(row, y):
    """The most likely wrong class, the first of equals."""
    best = None
    for k, value in enumerate(row):
        if k != y and (best is None or value > row[best]):
            best = k
    return best


def boosted(row, y):
    """MART's −log p_y − log(1 − p_rival)."""
    p, other = softmax(row), rival(row, y)
    return cross_entropy(row, y) - math.log(math.fsum(p[k] for k in range(len(row)) if k != other))


def boosted_gradient(row, y):
    p, other = softmax(row), rival(row, y)
    rest = math.fsum(p[k] for k in range(len(row)) if k != other)
    slopes = cross_entropy_gradient(row, y)
    return [slopes[k] + p[k] - (p[k] / rest if k != other else 0.0) for k in range(len(row))]


def margin(row, y, confidence=50.0):
    """Carlini and Wagner's max(z_y − max_{k≠y} z_k + confidence, 0)."""
    others = [value for k, value in enumerate(row) if k != y]
    return max(row[y] - max(others) + confidence, 0.0)


def trust(row, y, beta):
    return softmax(row)[y] ** beta


def entropy(row):
    return -math.fsum(p * log_p for p, log_p in zip(softmax(row), log_softmax(row), strict=True))


def combined(teacher_adv, student_nat, alpha):
    """α · T(x̃) + (1 − α) · S(x), in probabilities."""
    both = zip(softmax(teacher_adv), softmax(student_nat), strict=True)
    return [alpha * t + (1 - alpha) * s for t, s in both]


def case(nat, adv, y):
    right_nat, right_adv = prediction(nat) == y, prediction(adv) == y
    if right_nat and right_adv:
        return "reliable"
    if right_nat:
        return "unreliable"
    return "recovered" if right_adv else "wrong"


# ------------------------------------------------------------------------------------------- objectives


@dataclass
class Term:
    """One summand for one image, before its weight and its factor."""

    weight: float
    value: float
    gradients: dict[str, list[float]]
    factor: float = 1.0


def _label(z, y, student, weight):
    return Term(weight, cross_entropy(z[student], y), {student: cross_entropy_gradient(z[student], y)})


def _kl(z, target, tau, scale, weight, *, detached=False, student="student_adv"):
    by_target, by_student = kl_gradients(z[target], z[student], tau)
    gradients = {student: [scale * g for g in by_student]}
    if not detached:
        gradients[target] = [scale * g for g in by_target]
    return Term(weight, scale * kl(z[target], z[student], tau), gradients)


def st(z, y, epoch):
    return {"label": _label(z, y, "student_nat", 1.0)}


def at(z, y, epoch):
    return {"label": _label(z, y, "student_adv", 1.0)}


def trades(z, y, epoch, *, self_weight=6.0, tau=1.0, detach_target=False):
    return {
        "label": _label(z, y, "student_nat", 1.0),
        "self": _kl(z, "student_nat", tau, tau**2, self_weight, detached=detach_target),
    }


def ard(z, y, epoch, *, tau=1.0, label_weight=0.0):
    return {
        "label": _label(z, y, "student_nat", label_weight),
        "teacher": _kl(z, "teacher_nat", tau, tau**2, 1 - label_weight),
    }


def ard_goldblum(z, y, epoch, *, tau=30.0, label_weight=0.0):
    classes = len(z["student_adv"])
    return {
        "label": _label(z, y, "student_nat", label_weight),
        "teacher": _kl(z, "teacher_nat", tau, tau**2 / classes, 1 - label_weight),
    }


def akd2(z, y, epoch, *, tau=1.0, label_weight=0.25, teacher_weight=0.5, natural_teacher_weight=0.25):
    return {
        "label": _label(z, y, "student_adv", label_weight),
        "teacher": _kl(z, "teacher_adv", tau, tau**2, teacher_weight),
        "natural_teacher": _kl(z, "natural_teacher_adv", tau, tau**2, natural_teacher_weight),
    }


def akd2_chen(z, y, epoch, *, tau=2.0, label_weight=0.3, teacher_weight=0.6, natural_teacher_weight=0.1):
    return akd2(
        z,
        y,
        epoch,
        tau=tau,
        label_weight=label_weight,
        teacher_weight=teacher_weight,
        natural_teacher_weight=natural_teacher_weight,
    )


def akd2_down(z, y, epoch, *, beta=0.1, **settings):
    row = akd2(z, y, epoch, **settings)
    if prediction(z["teacher_adv"]) != y:
        row["teacher"].factor = trust(z["teacher_adv"], y, beta)
    return row


def gamma_at(gamma, alpha, epoch):
    if gamma == "1-alpha":
        return 1 - alpha
    if callable(gamma):
        return gamma(epoch)
    if isinstance(gamma, dict):
        value = None
        for start in sorted(gamma):
            if start <= epoch:
                value = gamma[start]
        return value
    return gamma


def _introspective(row, own, z, y, epoch, *, beta, gamma, gate_teacher):
    """Add the term `own` to a base's row; while warming up, whoever calls leaves the row as it is."""
    alpha = trust(z["teacher_adv"], y, beta)
    if gate_teacher:
        row["teacher"].factor = alpha
    own.factor = gamma_at(gamma, alpha, epoch)
    return {**row, "self": own}


def iad1(
    z,
    y,
    epoch,
    *,
    beta=0.1,
    gamma="1-alpha",
    tau=1.0,
    introspection_tau=1.0,
    label_weight=0.0,
    gate_teacher=False,
    warmup_epochs=60,
    detach_target=False,
):
    row = ard(z, y, epoch, tau=tau, label_weight=label_weight)
    if epoch < warmup_epochs:
        return row
    own = _kl(z, "student_nat", introspection_tau, 1.0, 1 - label_weight, detached=detach_target)
    return _introspective(row, own, z, y, epoch, beta=beta, gamma=gamma, gate_teacher=gate_teacher)


def iad1_down(z, y, epoch, **settings):
    return iad1(z, y, epoch, gate_teacher=True, **settings)


def iad2(
    z,
    y,
    epoch,
    *,
    beta=0.1,
    gamma="1-alpha",
    tau=1.0,
    introspection_tau=1.0,
    label_weight=0.25,
    teacher_weight=0.5,
    natural_teacher_weight=0.25,
    gate_teacher=True,
    warmup_epochs=40,
    detach_target=False,
):
    row = akd2(
        z,
        y,
        epoch,
        tau=tau,
        label_weight=label_weight,
        teacher_weight=teacher_weight,
        natural_teacher_weight=natural_teacher_weight,
    )
    if epoch < warmup_epochs:
        return row
    own = _kl(z, "student_nat", introspection_tau, tau**2, teacher_weight, detached=detach_target)
    return _introspective(row, own, z, y, epoch, beta=beta, gamma=gamma, gate_teacher=gate_teacher)


def rslad(z, y, epoch, *, tau=1.0, adv_weight=5 / 6):
    return {
        "teacher": _kl(z, "teacher_nat", tau, tau**2, adv_weight),
        "teacher_nat": _kl(z, "teacher_nat", tau, tau**2, 1 - adv_weight, student="student_nat"),
    }


def adaad(z, y, epoch, *, tau=1.0, adv_weight=1.0):
    return {
        "teacher": _kl(z, "teacher_adv", tau, tau**2, adv_weight),
        "teacher_nat": _kl(z, "teacher_nat", tau, tau**2, 1 - adv_weight, student="student_nat"),
    }


def mtard(z, y, epoch, *, tau=1.0, balance_rate=0.025, balance_power=1.0):
    """Before any step, at which both weights are a half; `objective` sees to them."""
    return {
        "teacher": _kl(z, "teacher_adv", tau, tau**2, 1.0),
        "natural_teacher": _kl(z, "natural_teacher_nat", tau, tau**2, 1.0, student="student_nat"),
    }


def mart(z, y, epoch, *, self_weight=5.0):
    adv, nat = z["student_adv"], z["student_nat"]
    p = softmax(nat)
    doubt, divergence = 1 - p[y], kl(nat, adv)
    by_nat, by_adv = kl_gradients(nat, adv)
    slope = [-p[y] * ((1.0 if k == y else 0.0) - p[k]) for k in range(len(p))]
    return {
        "label": Term(1.0, boosted(adv, y), {"student_adv": boosted_gradient(adv, y)}),
        "self": Term(
            self_weight,
            doubt * divergence,
            {
                "student_adv": [doubt * g for g in by_adv],
                "student_nat": [doubt * by_nat[k] + divergence * slope[k] for k in range(len(p))],
            },
        ),
    }


def half_cosine(ends, epoch, epochs):
    """Along half a cosine from one end of the run to the other, at the middle of `epoch`."""
    passed = min(1.0, (epoch + 0.5) / epochs)
    return ends[1] + (ends[0] - ends[1]) * (1 + math.cos(math.pi * passed)) / 2


def rectified(row, y, share, tau):
    """ADR's target: a softened prediction mixed with the label, as probabilities."""
    p = softmax(row, tau)
    share = min(1.0, max(0.0, share - (max(p) - p[y])))
    return [share * p[k] + (1 - share if k == y else 0.0) for k in range(len(p))]


def adr(
    z,
    y,
    epoch,
    *,
    rectification=(0.7, 0.95),
    temperatures=(2.5, 2.0),
    average_decay=0.995,
    ramp_epochs=200,
):
    share = half_cosine(rectification, epoch, ramp_epochs)
    wanted = rectified(z["average_nat"], y, share, half_cosine(temperatures, epoch, ramp_epochs))
    q, log_q = softmax(z["student_adv"]), log_softmax(z["student_adv"])
    value = -math.fsum(wanted[k] * log_q[k] for k in range(len(q)))
    return {"label": Term(1.0, value, {"student_adv": [q[k] - wanted[k] for k in range(len(q))]})}


def adaiad(z, y, epoch, *, tau=1.0, adv_weight=1.0, warmup_epochs=60, **settings):
    row = adaad(z, y, epoch, tau=tau, adv_weight=adv_weight)
    return row if epoch < warmup_epochs else _wrapped(row, z, y, epoch, adv_weight, 1.0, **settings)


def iad_rslad(z, y, epoch, *, tau=1.0, adv_weight=5 / 6, warmup_epochs=90, **settings):
    row = rslad(z, y, epoch, tau=tau, adv_weight=adv_weight)
    return row if epoch < warmup_epochs else _wrapped(row, z, y, epoch, adv_weight, 1.0, **settings)


def iad_mtard(
    z,
    y,
    epoch,
    *,
    tau=1.0,
    balance_rate=0.025,
    balance_power=1.0,
    warmup_epochs=90,
    gate_teacher=True,
    **settings,
):
    row = mtard(z, y, epoch, tau=tau)
    if epoch < warmup_epochs:
        return row
    return _wrapped(row, z, y, epoch, 0.5, tau**2, gate_teacher=gate_teacher, **settings)


def _wrapped(
    row,
    z,
    y,
    epoch,
    weight,
    scale,
    *,
    beta=0.1,
    gamma="1-alpha",
    introspection_tau=1.0,
    gate_teacher=False,
    detach_target=False,
):
    own = _kl(z, "student_nat", introspection_tau, scale, weight, detached=detach_target)
    return _introspective(row, own, z, y, epoch, beta=beta, gamma=gamma, gate_teacher=gate_teacher)


ROWS = {f.__name__: f for f in (st, at, trades, ard, ard_goldblum, akd2, akd2_chen, akd2_down)}
ROWS |= {f.__name__: f for f in (iad1, iad1_down, iad2)}
ROWS |= {f.__name__: f for f in (rslad, adaad, mtard, mart, adr, adaiad, iad_rslad, iad_mtard)}


@dataclass
class Loss:
    """What an objective returns for a batch, and the gradient of its mean: pass -> image -> class."""

    total: float
    terms: dict[str, list[float]]
    gradients: dict[str, list[list[float]]]


def objective(name, batch, labels, epoch, *, weights=None, **settings):
    """Evaluate row `name`; `batch` maps a pass to a list of images, each a list of logits."""
    n = len(labels)
    passes = list(batch)
    balanced = {"teacher", "natural_teacher"} if name in ("mtard", "iad_mtard") else set()
    if any((weights or {}).get(term) == 0 for term in balanced):
        balanced = set()
    terms, total = {}, 0.0
    gradients = {p: [[0.0] * len(image) for image in batch[p]] for p in passes}
    for i in range(n):
        z = {p: batch[p][i] for p in passes}
        for term_name, term in ROWS[name](z, labels[i], epoch, **settings).items():
            weight = (weights or {}).get(term_name, term.weight)
            whole = weight * term.factor * (0.5 if term_name in balanced else 1.0)
            terms.setdefault(term_name, []).append(whole * term.value)
            total += whole * term.value / n
            for p, gradient in term.gradients.items():
                for k, slope in enumerate(gradient):
                    gradients[p][i][k] += whole * slope / n
    return Loss(total, terms, gradients)


def needs(name, epoch, *, weights=None, **settings):
    """The passes that Table 1 names for a row, less those that only a term of weight 0 reads.

    Written as conditions and not from the terms above.
    """
    weights = dict(weights or {})
    usual = {"iad2": 40, "iad_rslad": 90, "iad_mtard": 90}.get(name, 60)
    warm = epoch < settings.get("warmup_epochs", usual)
    found = set()
    if name in NEEDS_SINCE:
        return _needs_since(name, epoch, weights, settings, warm)
    if name in ("st", "at"):
        if weights.get("label", 1) > 0:
            found |= {"student_nat" if name == "st" else "student_adv"}
        return found
    if name == "trades":
        if weights.get("label", 1) > 0:
            found |= {"student_nat"}
        if weights.get("self", settings.get("self_weight", 6.0)) > 0:
            found |= {"student_nat", "student_adv"}
        return found
    ard_like = name in ("ard", "ard_goldblum", "iad1", "iad1_down")
    default_label = {"akd2_chen": 0.3}.get(name, 0.0 if ard_like else 0.25)
    label = settings.get("label_weight", default_label)
    group = 1 - label if ard_like else settings.get("teacher_weight", 0.6 if name == "akd2_chen" else 0.5)
    if weights.get("label", label) > 0:
        found |= {"student_nat" if ard_like else "student_adv"}
    teacher = weights.get("teacher", group) > 0
    if teacher:
        found |= {"student_adv", "teacher_nat" if ard_like else "teacher_adv"}
    natural = settings.get("natural_teacher_weight", 0.1 if name == "akd2_chen" else 0.25)
    if not ard_like and weights.get("natural_teacher", natural) > 0:
        found |= {"student_adv", "natural_teacher_adv"}
    if name.startswith("iad") and not warm:
        gamma = settings.get("gamma", "1-alpha")
        by_trust = gamma == "1-alpha"
        if weights.get("self", group) > 0 and (by_trust or gamma_at(gamma, None, epoch) > 0):
            found |= {"student_nat", "student_adv"} | ({"teacher_adv"} if by_trust else set())
        gate = settings.get("gate_teacher", name in ("iad1_down", "iad2"))
        if gate and teacher:
            found |= {"teacher_adv"}
    return found


NEEDS_SINCE = ("rslad", "adaad", "mtard", "mart", "adr", "adaiad", "iad_rslad", "iad_mtard")


def _needs_since(name, epoch, weights, settings, warm):
    found = set()
    if name == "adr":
        return {"student_adv", "average_nat"} if weights.get("label", 1) > 0 else found
    if name == "mart":
        if weights.get("label", 1) > 0:
            found |= {"student_adv"}
        if weights.get("self", settings.get("self_weight", 5.0)) > 0:
            found |= {"student_adv", "student_nat"}
        return found
    of_mtard = "mtard" in name
    adv = 1.0 if of_mtard else settings.get("adv_weight", 5 / 6 if "rslad" in name else 1.0)
    teacher = weights.get("teacher", adv) > 0
    if teacher:
        found |= {"student_adv", "teacher_nat" if "rslad" in name else "teacher_adv"}
    if of_mtard and weights.get("natural_teacher", 1) > 0:
        found |= {"student_nat", "natural_teacher_nat"}
    if not of_mtard and weights.get("teacher_nat", 1 - adv) > 0:
        found |= {"student_nat", "teacher_nat"}
    if "iad" in name and not warm:
        gamma = settings.get("gamma", "1-alpha")
        by_trust = gamma == "1-alpha"
        own = weights.get("self", 0.5 if of_mtard else adv) > 0
        if own and (by_trust or gamma_at(gamma, None, epoch) > 0):
            found |= {"student_nat", "student_adv"} | ({"teacher_adv"} if by_trust else set())
        if settings.get("gate_teacher", of_mtard) and teacher:
            found |= {"teacher_adv"}
    return found
