"""How far a teacher can be trusted on the student's adversarial images (the paper's Sections 3.2, 3.3)."""

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)

from iad_ext.types import Flags, Labels, Logits, PerImage, Probabilities


def trust(teacher_adv: Logits, labels: Labels, *, beta: float = 0.1) -> PerImage:
    """α = P_T(x̃ | y)^β: the teacher's probability of the true class on the adversarial image (Eq. 4).

    Args:
        teacher_adv: the teacher's logits on the student's adversarial images, (batch, classes).
        labels: true classes, (batch,).
        beta: β ≥ 0; 0 trusts the teacher fully everywhere.

    Returns:
        (batch,) in [0, 1], without gradient.
    """
    log_p = F.log_softmax(teacher_adv.detach(), dim=1).gather(1, labels[:, None])[:, 0]
    return torch.exp(beta * log_p)


def predicts(logits: Logits, labels: Labels) -> Flags:
    """Whether the largest logit is the true class's, image by image."""
    return logits.argmax(dim=1) == labels


def margin_trust(teacher_adv: Logits, labels: Labels) -> PerImage:
    """ADR's clip as trust: clip(1 − (max_k P_T(x̃ | k) − P_T(x̃ | y)), 0, 1), which is 1 where the teacher is right.

    Source: Wu et al. (2024), the interpolation factor of their rectified labels, with λ = 1.
    """
    p = teacher_adv.detach().softmax(dim=1)
    return (1 - (p.amax(dim=1) - p.gather(1, labels[:, None])[:, 0])).clamp(0, 1)


def three_cases(teacher_nat: Logits, teacher_adv: Logits, labels: Labels) -> dict[str, Flags]:
    """Which case of Section 3.2 each image is in; exactly one is true for each.

    Returns:
        `reliable` (right on x and x̃), `unreliable` (right on x, wrong on x̃), `wrong` (wrong on both), and
        `recovered` (wrong on x, right on x̃), which should be nearly empty and which the paper has under
        "wrong".
    """
    nat, adv = predicts(teacher_nat, labels), predicts(teacher_adv, labels)
    return {"reliable": nat & adv, "unreliable": nat & ~adv, "wrong": ~nat & ~adv, "recovered": ~nat & adv}


def combined_guidance(teacher_adv: Logits, student_nat: Logits, alpha: PerImage) -> Probabilities:
    """α · T(x̃) + (1 − α) · S(x), the guidance of Figure 3. α knows the true label: so does the result."""
    weight = alpha[:, None]
    return weight * teacher_adv.softmax(dim=1) + (1 - weight) * student_nat.softmax(dim=1)
