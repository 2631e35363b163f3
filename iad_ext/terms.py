"""Per-image losses: the words that objectives are written in. Each returns one number an image."""

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)

from iad_ext.types import Labels, Logits, PerImage


def cross_entropy(logits: Logits, labels: Labels, *, smoothing: float = 0.0) -> PerImage:
    """Cross-entropy of each image, in nats.

    Args:
        logits: (batch, classes).
        labels: true classes, (batch,).
        smoothing: share of the target that is spread evenly over all classes, in [0, 1).
    """
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


def soft_cross_entropy(*, student: Logits, target: Logits) -> PerImage:
    """Cross-entropy of each image with softmax(target) in place of a label, in nats.

    It is KL(target → student) plus the target's entropy, which has no gradient where the target has none.
    """
    return -(target.softmax(dim=1) * F.log_softmax(student, dim=1)).sum(dim=1)


def boosted_cross_entropy(logits: Logits, labels: Labels) -> PerImage:
    """MART's BCE: −log p_y − log(1 − max_{k≠y} p_k) of each image, in nats.

    Source: Wang et al. (2020), Eq. 9. Their code adds 0.0001 inside the second logarithm; here it is computed from
    the logits of the other classes, where it cannot reach log 0.
    """
    log_p = F.log_softmax(logits, dim=1)
    rival = log_p.detach().scatter(1, labels[:, None], -torch.inf).argmax(dim=1, keepdim=True)
    log_rest = torch.logsumexp(log_p.scatter(1, rival, -torch.inf), dim=1)
    return -log_p.gather(1, labels[:, None])[:, 0] - log_rest


def entropy(logits: Logits) -> PerImage:
    """Entropy of softmax(logits) of each image, in nats."""
    log_p = F.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def kl(*, student: Logits, target: Logits, temperature: float = 1.0) -> PerImage:
    """KL(softmax(target / τ) ‖ softmax(student / τ)) of each image, in nats, summed over the classes.

    The paper writes it ℓ_KL(student ‖ target). Gradient flows through both arguments; detach `target` to
    stop it. The factor τ² that keeps gradients comparable between temperatures belongs to the caller.

    Args:
        student: logits of the network being trained, (batch, classes).
        target: logits that it is drawn towards, (batch, classes).
        temperature: τ > 0.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_target = F.log_softmax(target / temperature, dim=1)
    return F.kl_div(log_student, log_target, reduction="none", log_target=True).sum(dim=1)


def margin(logits: Logits, labels: Labels, confidence: float = 50.0) -> PerImage:
    """CW's margin max(z_y − max_{k≠y} z_k + confidence, 0) of each image, which the CW∞ attack descends.

    Source: Carlini & Wagner (2017), f₆, with the confidence of 50 of the paper's evaluation code.
    """
    true = logits.gather(1, labels[:, None])[:, 0]
    is_true = F.one_hot(labels, logits.shape[1]).bool()
    best_other = logits.masked_fill(is_true, -torch.inf).amax(dim=1)
    return (true - best_other + confidence).clamp(min=0)
