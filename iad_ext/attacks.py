"""L∞ attacks for training and evaluation: torchattacks' own, with the modes and speed that training needs.

All of them are `torchattacks.Attack`s: `attack(images, labels)` with pixels in [0, 1] returns the adversarial
images. They differ from the stock classes in four ways, and in nothing else:

* the network attacks run on is left exactly as it was, every submodule's train or eval mode included (a stock
  attack un-freezes layers that were deliberately in eval mode);
* `training=True` attacks the network in train mode, as the released IAD code does: BatchNorm then uses batch
  statistics and updates its running ones at every step. `training=False`, the default, attacks in eval mode;
* the starting noise can be given (`attack(images, labels, noise=…)`), so that it is a function of the
  position in a run and not of global random state;
* a training step never waits for the device: whoever calls has checked the images.

For the same start, every one returns what its stock counterpart returns, to the last bit (`PGDL2` to rounding).
"""

from collections.abc import Callable
from typing import TypeAlias, TypedDict, Unpack

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
import torchattacks
import torchattacks.attack
from torch import Tensor, nn

from iad_ext import terms
from iad_ext.checks import check_flag, check_name, check_number, check_whole
from iad_ext.modes import frozen, mode
from iad_ext.names import unknown
from iad_ext.types import Images, Labels, Logits, PerImage

EPS = 8 / 255
STEP = 2 / 255

Shape = tuple[int, ...]


class Settings(TypedDict, total=False):
    """What every training attack takes beside its model; see `PGD`."""

    eps: float
    alpha: float
    steps: int
    training: bool
    loss_scale: float


TorchAttack: TypeAlias = torchattacks.attack.Attack
# x̃, x, target -> the next x̃ and the gradient that it followed
Stepper: TypeAlias = Callable[[Images, Images, Tensor], tuple[Images, Images]]


class _ModeKept:
    """What every attack here adds to its torchattacks base: its mode, exact restoration, a given start."""

    reads: frozenset[str] = frozenset()
    """Passes that a step runs for the attack before it."""
    through_teacher = False
    """Whether every step goes through the teacher too, which `teacher=` is then."""
    predicts_first = False
    """Whether the model is run on natural images once before the first step."""
    stuck: PerImage | None = None
    """(N,), the share of an image's steps on which its gradient was exactly zero, in the last attack; None without a
    `loss_scale`, which is where gradients can underflow."""
    stepper: Stepper | None = None
    """What takes a step instead of `take_step`: a compiled form of it."""

    def _set_up(self, *, training: bool, loss_scale: float) -> None:
        self.training = training
        self.loss_scale = loss_scale
        self.supported_mode = ["default"]  # training and evaluation are untargeted

    def __call__(self, images: Images, labels: Labels | None = None, noise: Images | None = None) -> Images:
        """Return adversarial images; `noise` (the shape of `images`) is the start's offset from them."""
        with mode(self.model, training=self.training), torch.enable_grad():  # type: ignore[attr-defined]
            return self.forward(images, labels, noise)  # type: ignore[attr-defined, no-any-return]

    def draw_noise(
        self, shape: Shape, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor | None:
        """Draw the start's offset for `shape` on the generator's device; None without a random start."""
        raise NotImplementedError

    def loss(self, logits: Logits, target: Tensor) -> Tensor:
        """The scalar that the attack ascends, against the target that it was given: labels or probabilities."""
        raise NotImplementedError

    def _ascend(self, images: Images, start: Images, target: Tensor) -> Images:
        """Take `steps` steps towards a greater loss."""
        images, adv = images.detach(), start.detach()
        if self.loss_scale != 1:
            self.stuck = torch.zeros(len(images), device=images.device)
        take = self.stepper or self.take_step
        for _ in range(self.steps):  # type: ignore[attr-defined]
            adv, gradient = take(adv.requires_grad_(True), images, target)
            if self.loss_scale != 1:
                self.stuck += (gradient == 0).flatten(1).all(dim=1) / self.steps  # type: ignore[attr-defined]
        return adv

    def take_step(self, adv: Images, images: Images, target: Tensor) -> tuple[Images, Images]:
        """One step of `alpha` along the gradient's sign, back into the ball and [0, 1]; x̃ asks for its gradient."""
        (gradient,) = torch.autograd.grad(self._climbed(adv, target) * self.loss_scale, adv)
        adv = adv.detach() + self.alpha * gradient.sign()  # type: ignore[attr-defined]
        delta = (adv - images).clamp(min=-self.eps, max=self.eps)  # type: ignore[attr-defined]
        return (images + delta).clamp(min=0, max=1).detach(), gradient

    def _climbed(self, adv: Images, target: Tensor) -> Tensor:
        """`loss` at x̃; an attack that runs another network on x̃, too, does so here."""
        return self.loss(self.get_logits(adv), target)  # type: ignore[attr-defined]

    def _start(self, images: Images, noise: Images | None) -> Images:
        if noise is None:
            noise = self.draw_noise(tuple(images.shape), dtype=images.dtype)
        if noise is None:
            return images
        return (images + noise.to(images)).clamp(min=0, max=1)

    def __repr__(self) -> str:
        names = ("eps", "alpha", "steps", "random_start", "training", "loss_scale")
        settings = {key: getattr(self, key) for key in names if hasattr(self, key)}
        shown = (
            f"{key}={value if isinstance(value, bool) else format(value, '.6g')}"
            for key, value in settings.items()
        )
        return f"{type(self).__name__}({', '.join(shown)})"


def _check_settings(
    model: nn.Module, *, eps: float, alpha: float, steps: int, training: bool, loss_scale: float
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module that returns logits, got {type(model).__name__}")
    check_number("eps, a radius in pixels of [0, 1],", eps, at_least=0, at_most=1)
    check_number("alpha, a step in pixels of [0, 1],", alpha, at_least=0)
    check_whole("steps", steps, at_least=1)
    check_flag("training", training)
    check_number("loss_scale", loss_scale, above=0)


class PGD(_ModeKept, torchattacks.PGD):  # type: ignore[misc]
    """L∞ PGD on cross-entropy: the paper's training, validation and PGD-20 attack.

    With one step of `alpha=eps` it is FGSM: from a random point as the released evaluation does, or from the
    image itself with `random_start=False`.

    Args:
        model: returns logits; attacked as it is (give the raw network, not its distributed wrapper).
        eps: radius in pixels of [0, 1].
        alpha: step size, same unit.
        steps: number of gradient steps.
        random_start: start at a uniformly random point of the ball, clipped to [0, 1].
        training: attack in train mode (batch statistics) instead of eval mode.
        loss_scale: multiplies the loss before the gradient, whose sign it does not change; keeps fp16
            gradients from underflowing to a sign of 0.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: `eps` is outside [0, 1], or another number is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = EPS,
        alpha: float = STEP,
        steps: int = 10,
        random_start: bool = True,
        training: bool = False,
        loss_scale: float = 1.0,
    ) -> None:
        _check_settings(model, eps=eps, alpha=alpha, steps=steps, training=training, loss_scale=loss_scale)
        check_flag("random_start", random_start)
        super().__init__(model, eps=eps, alpha=alpha, steps=steps, random_start=random_start)
        self._set_up(training=training, loss_scale=loss_scale)

    def draw_noise(
        self, shape: Shape, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor | None:
        """Uniform in [−eps, eps]."""
        if not self.random_start:
            return None
        device = generator.device if generator is not None else self.device
        return torch.empty(shape, dtype=dtype, device=device).uniform_(
            -self.eps, self.eps, generator=generator
        )

    def loss(self, logits: Logits, target: Labels) -> Tensor:
        """The mean cross-entropy, ascended."""
        return F.cross_entropy(logits, target)

    def forward(self, images: Images, labels: Labels, noise: Images | None = None) -> Images:
        """Ascend `loss` from a start in the ball around `images`."""
        return self._ascend(images, self._start(images, noise), labels)


class CWInf(PGD):
    """PGD in the L∞ ball on CW's margin loss: the paper's CW∞, 30 steps of 2/255 with confidence 50.

    torchattacks' own `CW` is the L2 attack, another thing. Any number of classes ≥ 2.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = EPS,
        alpha: float = STEP,
        steps: int = 30,
        random_start: bool = True,
        training: bool = False,
        loss_scale: float = 1.0,
    ) -> None:
        super().__init__(
            model,
            eps=eps,
            alpha=alpha,
            steps=steps,
            random_start=random_start,
            training=training,
            loss_scale=loss_scale,
        )

    def loss(self, logits: Logits, target: Labels) -> Tensor:
        """Minus the mean margin, ascended."""
        return -terms.margin(logits, target).mean()


class PGDL2(_ModeKept, torchattacks.PGDL2):  # type: ignore[misc]
    """L2 PGD on cross-entropy: steps along the gradient over its norm, for evaluation only.

    Source: Madry et al. (2018); torchattacks' PGDL2, from the same start. That one takes the gradient of the batch's
    mean loss, which shrinks it beside the constant that guards the norm; here the loss is summed, so that an image's
    x̃ does not depend on the batch that it is in.

    Args:
        model: returns logits.
        eps: L2 radius of an image's offset, pixels in [0, 1].
        alpha: length of a step, same unit.
        steps: number of gradient steps.
        random_start: start in a random direction, at a distance that is uniform in [0, eps].
        training: attack in train mode instead of eval mode.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float,
        alpha: float,
        steps: int = 20,
        random_start: bool = True,
        training: bool = False,
    ) -> None:
        check_number("eps, an L2 radius,", eps, above=0)
        # an L2 radius has no upper end at 1, a step's length neither
        _check_settings(model, eps=0, alpha=alpha, steps=steps, training=training, loss_scale=1.0)
        check_flag("random_start", random_start)
        super().__init__(model, eps=eps, alpha=alpha, steps=steps, random_start=random_start)
        self._set_up(training=training, loss_scale=1.0)

    def draw_noise(
        self, shape: Shape, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor | None:
        """A random direction, of a length that is uniform in [0, eps]."""
        if not self.random_start:
            return None
        device = generator.device if generator is not None else self.device
        direction = torch.randn(shape, dtype=dtype, device=device, generator=generator)
        length = torch.rand((shape[0], 1, 1, 1), dtype=dtype, device=device, generator=generator)
        noise: Tensor = direction * (length / _norms(direction) * self.eps)
        return noise

    def loss(self, logits: Logits, target: Labels) -> Tensor:
        """The summed cross-entropy, ascended."""
        return F.cross_entropy(logits, target, reduction="sum")

    def take_step(self, adv: Images, images: Images, target: Tensor) -> tuple[Images, Images]:
        """One step of length `alpha` along the gradient, back into the ball and [0, 1]."""
        (gradient,) = torch.autograd.grad(self._climbed(adv, target), adv)
        direction = gradient / (_norms(gradient) + self.eps_for_division)
        delta = adv.detach() + self.alpha * direction - images
        delta = delta * (self.eps / _norms(delta)).clamp(max=1)
        moved: Tensor = images + delta
        return moved.clamp(min=0, max=1).detach(), gradient

    def forward(self, images: Images, labels: Labels, noise: Images | None = None) -> Images:
        """Ascend `loss` from a start in the ball around `images`."""
        return self._ascend(images, self._start(images, noise), labels)


def _norms(images: Images) -> Tensor:
    """L2 norms, (batch, 1, 1, 1)."""
    norms: Tensor = images.flatten(1).norm(dim=1)
    return norms.view(-1, 1, 1, 1)


class TRADESPGD(_ModeKept, torchattacks.TPGD):  # type: ignore[misc]
    """The attack of TRADES: PGD on KL(S(x) → S(x̃)) from x + 0.001 · normal noise, in eval mode.

    Source: Zhang et al. (2019); torchattacks' TPGD. Labels are not read.
    """

    predicts_first = True

    def __init__(
        self,
        model: nn.Module,
        *,
        eps: float = EPS,
        alpha: float = STEP,
        steps: int = 10,
        training: bool = False,
        loss_scale: float = 1.0,
    ) -> None:
        _check_settings(model, eps=eps, alpha=alpha, steps=steps, training=training, loss_scale=loss_scale)
        super().__init__(model, eps=eps, alpha=alpha, steps=steps)
        self._set_up(training=training, loss_scale=loss_scale)

    def draw_noise(
        self, shape: Shape, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """0.001 · normal."""
        device = generator.device if generator is not None else self.device
        return 0.001 * torch.randn(shape, dtype=dtype, device=device, generator=generator)

    def loss(self, logits: Logits, target: Tensor) -> Tensor:
        """KL from the target's probabilities, summed over the batch as stock TPGD does, ascended."""
        return F.kl_div(logits.log_softmax(dim=1), target, reduction="sum")

    def forward(self, images: Images, labels: Labels | None = None, noise: Images | None = None) -> Images:  # noqa: ARG002
        """Ascend KL from the prediction on `images`."""
        target = self.get_logits(images.detach()).detach().softmax(dim=1)
        return self._ascend(images, self._start(images, noise), target)


class MARTPGD(PGD):
    """The attack of MART: PGD on cross-entropy from x + 0.001 · normal noise.

    Source: Wang et al. (2020), whose released code starts as TRADES does.
    """

    def draw_noise(
        self, shape: Shape, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor | None:
        """0.001 · normal."""
        device = generator.device if generator is not None else self.device
        return 0.001 * torch.randn(shape, dtype=dtype, device=device, generator=generator)


class _FromPass(PGD):
    """An attack away from a pass on natural images, given with each call: a step runs it once for attack and loss."""

    climbs: str
    as_target = False
    """Whether it climbs away from the pass as the objective's terms read it, and not as it was run."""

    def __call__(
        self,
        images: Images,
        labels: Labels | None = None,  # noqa: ARG002
        noise: Images | None = None,
        target: Logits | None = None,
    ) -> Images:
        """Return adversarial images; `target` is the pass, (batch, classes). Labels are not read."""
        if target is None:
            raise ValueError(
                f"this attack climbs {self.climbs}; give it the logits of {min(self.reads)} as target="
            )
        with mode(self.model, training=self.training), torch.enable_grad():
            return self._ascend(images, self._start(images, noise), target.detach().softmax(dim=1))


class RSLADPGD(_FromPass, MARTPGD):
    """The attack of RSLAD: PGD on KL(T(x) → S(x̃)) from x + 0.001 · normal noise. Labels are not read.

    Source: Zi et al. (2021). T(x) is given with each call.
    """

    reads = frozenset({"teacher_nat"})
    climbs = "KL(T(x) → S(x̃))"

    def loss(self, logits: Logits, target: Tensor) -> Tensor:
        """KL from the target's probabilities, summed over the batch, ascended."""
        return F.kl_div(logits.log_softmax(dim=1), target, reduction="sum")


class ADRPGD(_FromPass):
    """The attack of ADR: PGD on the cross-entropy with the rectified label, from a uniformly random start.

    Source: Wu et al. (2024), released code. The rectified label is given with each call, as log-probabilities.
    """

    reads = frozenset({"average_nat"})
    climbs = "the cross-entropy with the rectified label"
    as_target = True

    def loss(self, logits: Logits, target: Tensor) -> Tensor:
        """The mean cross-entropy with the target's probabilities, ascended."""
        return F.cross_entropy(logits, target)


class AdaADPGD(MARTPGD):
    """The attack of AdaAD: PGD on KL(T(x̃) → S(x̃)), the gradient through both networks. Labels are not read.

    From x + 0.001 · normal noise. Source: Huang et al. (2023).

    Args:
        model: the student; other arguments as for `PGD`.
        teacher: T, in eval mode; its parameters get no gradient.
    """

    through_teacher = True

    def __init__(self, model: nn.Module, *, teacher: nn.Module, **settings: Unpack[Settings]) -> None:
        super().__init__(model, **settings)
        if not isinstance(teacher, nn.Module):
            raise TypeError(
                f"teacher must be a torch.nn.Module that returns logits, got {type(teacher).__name__}"
            )
        self.teacher = teacher

    def forward(self, images: Images, labels: Labels | None = None, noise: Images | None = None) -> Images:  # noqa: ARG002
        """Ascend KL between the two predictions of x̃, summed over the batch."""
        with mode(self.teacher, training=False), frozen(self.teacher):
            return self._ascend(images, self._start(images, noise), images)  # no target but the teacher

    def _climbed(self, adv: Images, target: Tensor) -> Tensor:  # noqa: ARG002
        goal = self.teacher(adv).log_softmax(dim=1)
        student = self.get_logits(adv).log_softmax(dim=1)
        return F.kl_div(student, goal, reduction="sum", log_target=True)


# an entry is an attack's name everywhere; what else there is to know of it, its class says
TRAINING_ATTACKS: dict[str, type[PGD] | type[TRADESPGD]] = {
    "pgd": PGD,
    "trades": TRADESPGD,
    "mart": MARTPGD,
    "rslad": RSLADPGD,
    "adaad": AdaADPGD,
    "adr": ADRPGD,
}


def build(
    name: str,
    model: nn.Module,
    *,
    teacher: nn.Module | None = None,
    eps: float = EPS,
    alpha: float = STEP,
    steps: int = 10,
    training: bool = False,
    loss_scale: float = 1.0,
) -> PGD | TRADESPGD:
    """Build the training attack called `name` on `model`; arguments as for `PGD`.

    Raises:
        ValueError: there is no attack of that name, or it goes through a teacher and none was given.
    """
    check_name("name", name)
    if name not in TRAINING_ATTACKS:
        raise ValueError(unknown("training attack", name, TRAINING_ATTACKS))
    settings: Settings = {
        "eps": eps,
        "alpha": alpha,
        "steps": steps,
        "training": training,
        "loss_scale": loss_scale,
    }
    kind = TRAINING_ATTACKS[name]
    if not kind.through_teacher:
        return kind(model, **settings)
    if teacher is None:
        raise ValueError(f"the attack {name} goes through the teacher too; give it teacher=")
    return kind(model, teacher=teacher, **settings)  # type: ignore[call-arg]
