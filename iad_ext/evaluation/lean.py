"""AutoAttack's L∞ stages, deciding as pyautoattack's do and computing less.

Each class takes pyautoattack's place inside its own `perturb` loop: the same draws from the same seed, the same
steps, the same question asked of the network at the same points. What is left out cannot change an answer:

* an image whose verdict is known stays in no batch: APGD's once an iterate of it is misclassified, FAB's once a
  misclassified point lies in the ball, Square's once its margin is gone;
* FAB solves for its projection by Newton's method on the piecewise linear equation instead of sorting all pixels;
* Square touches the pixels of the window that it changes, and no others.

A network's rounding depends on how many images share a batch, in the stock code as here, so an image that lies
on the boundary to the last bit may fall on either side. Sources: Croce & Hein (2020) for AutoAttack, APGD and FAB;
Andriushchenko et al. (2020) for Square.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.checks import check_zero_gradients
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from iad_ext.types import Flags, Images, Labels, Logits, PerImage

SHARE = 16  # images leave APGD and FAB together, one in so many: a new batch size costs a backend set-up


class _Group:
    """What an attack holds of the images that it still works on, image by image."""

    def keep(self, mask: Tensor) -> Self:
        """The same of the images in `mask`."""
        return type(self)(**{f.name: getattr(self, f.name)[mask] for f in fields(self)})  # type: ignore[arg-type]


def _worth_leaving(done: Tensor) -> bool:
    """Whether so many of a batch are done that the rest go on alone."""
    return int(done.sum()) * SHARE >= len(done)


def _moved(points: Tensor, others: Tensor) -> PerImage:
    return (points - others).abs().flatten(1).amax(dim=1)


# -------------------------------------------------------------------------------------------------- APGD


@dataclass
class _Climb(_Group):
    """APGD's state, one row an image; `step` is (batch, 1, 1, 1)."""

    at: Tensor  # its position in the batch that was given
    y: Labels
    target: Labels
    low: Images
    high: Images
    adv: Images
    before: Images  # the iterate before `adv`
    gradient: Images
    best: Images
    best_gradient: Images
    loss: PerImage
    best_loss: PerImage
    checked_loss: PerImage  # best_loss at the last checkpoint
    rises: PerImage  # steps since the last checkpoint that raised the loss
    halved: PerImage  # 1 where the last checkpoint halved the step
    step: Tensor


class _LeanAPGD:
    """Replaces the run of stock APGD, whatever its loss."""

    def attack_single_run(self: Any, x: Images, y: Labels, x_init: None = None) -> tuple[Any, ...]:
        """Return (None, whether each image stands, None, the adversarial images), as `perturb` reads them."""
        if x_init is not None:
            raise ValueError("x_init: expected None; AutoAttack standard always starts at random")
        given = self.y_target
        answer, stands = x.clone(), torch.ones(len(x), dtype=torch.bool, device=x.device)
        group = self._start(x, y, y if given is None else given)
        next_check, length = self.n_iter_2, self.n_iter_2
        group, going = self._leave(group, self._look(group, first=True), answer, stands)
        for i in range(self.n_iter):
            if not going:
                break
            self._step(group, momentum=0.75 if i else 1.0)
            fell = self._look(group)
            if i + 1 == next_check:
                _check(group, length, self.thr_decr)
                length = max(length - self.size_decr, self.n_iter_min)
                next_check += length
            group, going = self._leave(group, fell, answer, stands)
        self.y_target = given
        return None, stands, None, answer

    def _start(self: Any, x: Images, y: Labels, target: Labels) -> _Climb:
        noise = 2 * torch.rand(x.shape).to(x.device) - 1
        adv = (x + self.eps * self.normalize(noise)).clamp(0, 1)
        none, empty = x.new_zeros(len(x)), torch.zeros_like(x)
        return _Climb(
            at=torch.arange(len(x), device=x.device),
            y=y,
            target=target,
            low=(x - self.eps).clamp(min=0),
            high=(x + self.eps).clamp(max=1),
            adv=adv,
            before=adv,
            gradient=empty,
            best=adv.clone(),
            best_gradient=empty,
            loss=none,
            best_loss=none,
            checked_loss=none,
            rises=none.clone(),
            halved=torch.ones_like(none),
            step=x.new_full((len(x), 1, 1, 1), 2 * self.eps),
        )

    def _look(self: Any, group: _Climb, *, first: bool = False) -> Flags:
        """Take loss and gradient where the images are, keep the best; return which are misclassified."""
        self.y_target = group.target
        with torch.enable_grad():
            adv = group.adv.detach().requires_grad_(True)
            logits = self.model(adv)
            loss = (
                nn.functional.cross_entropy(logits, group.y, reduction="none")
                if self.loss == "ce"
                else self.dlr_loss_targeted(logits, group.y)
            )
            (group.gradient,) = torch.autograd.grad(loss.sum(), adv)
        loss = loss.detach()
        if first:
            if self.loss != "ce":
                check_zero_gradients(group.gradient.contiguous(), logger=self.logger)
            group.best_gradient = group.gradient.clone()
            group.best_loss, group.checked_loss = loss.clone(), loss.clone()
        else:
            # stock compares the first step with a row of zeros
            group.rises += loss > group.loss
            better = loss > group.best_loss
            group.best[better], group.best_gradient[better] = group.adv[better], group.gradient[better]
            group.best_loss = torch.where(better, loss, group.best_loss)
            group.loss = loss
        fell: Tensor = logits.detach().max(1)[1] != group.y
        return fell

    def _step(self: Any, group: _Climb, *, momentum: float) -> None:
        """Take a step along the gradient's sign, with momentum, into ball and pixel range."""
        inertia, group.before = group.adv - group.before, group.adv
        ahead = (group.adv + group.step * group.gradient.sign()).clamp(group.low, group.high)
        group.adv = (group.adv + (ahead - group.adv) * momentum + inertia * (1 - momentum)).clamp(
            group.low, group.high
        )

    def _leave(self: Any, group: _Climb, fell: Flags, answer: Images, stands: Flags) -> tuple[_Climb, bool]:
        """Write down who fell, let them go once they are many; return who goes on, and whether anybody does."""
        fresh = fell & stands[group.at]
        answer[group.at[fresh]] = group.adv[fresh]
        stands[group.at[fresh]] = False
        standing = stands[group.at]
        if _worth_leaving(~standing):
            group = group.keep(standing)
        return group, bool(len(group.at))


def _check(group: _Climb, length: int, share: float) -> None:
    """Halve the steps that stopped paying, and go on from the best point there; `length` steps since the last check."""
    oscillates = group.rises <= length * share
    stuck = (group.halved == 0) & (group.checked_loss >= group.best_loss)
    halve = oscillates | stuck
    group.halved, group.checked_loss = halve.to(group.loss), group.best_loss.clone()
    group.rises = torch.zeros_like(group.rises)
    group.step = torch.where(halve[:, None, None, None], group.step / 2, group.step)
    group.adv = torch.where(halve[:, None, None, None], group.best, group.adv)
    group.gradient = torch.where(halve[:, None, None, None], group.best_gradient, group.gradient)


class LeanAPGD(_LeanAPGD, APGDAttack):  # type: ignore[misc]
    """APGD on cross-entropy."""


class LeanAPGDTargeted(_LeanAPGD, APGDAttack_targeted):  # type: ignore[misc]
    """APGD on the targeted DLR loss."""


# --------------------------------------------------------------------------------------------------- FAB


@dataclass
class _Walk(_Group):
    """FAB's state, one row an image."""

    at: Tensor
    y: Labels
    target: Labels
    x: Images
    adv: Images


class LeanFAB(FABAttack_PT):  # type: ignore[misc]
    """Targeted FAB, from the image itself, as AutoAttack standard runs it."""

    def attack_single_run(
        self, x: Images, y: Labels, use_rand_start: bool = False, is_targeted: bool = True
    ) -> Images:
        """Return each image's first misclassified point in the ball, and the image itself where there is none."""
        if use_rand_start or not is_targeted:
            raise ValueError(
                "expected FAB's targeted run from the image itself; AutoAttack standard has no other"
            )
        logits = self.predict(x)
        group = _Walk(
            at=torch.arange(len(x), device=x.device),
            y=y,
            target=logits.sort(dim=-1)[1][:, -self.target_class],
            x=x,
            adv=x.clone(),
        ).keep(logits.max(1)[1] == y)
        answer = x.clone()
        done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for _ in range(self.n_iter):
            if not len(group.at):
                break
            self._step(group)
            crossed = self.predict(group.adv).max(1)[1] != group.y
            inside = crossed & ~(_moved(group.adv, group.x) > self.eps)
            fresh = inside & ~done[group.at]
            answer[group.at[fresh]] = group.adv[fresh]
            done[group.at[fresh]] = True
            back = group.x + (group.adv - group.x) * self.beta
            group.adv = torch.where(crossed[:, None, None, None], back, group.adv)
            if _worth_leaving(done[group.at]):
                group = group.keep(~done[group.at])
        return answer

    def _step(self, group: _Walk) -> None:
        """Move to the linearised boundary, from the iterate and from the image, and between the two."""
        with torch.enable_grad():
            adv = group.adv.detach().requires_grad_(True)
            rows, logits = torch.arange(len(adv), device=adv.device), self.predict(adv)
            ahead = logits[rows, group.target] - logits[rows, group.y]
            (gradient,) = torch.autograd.grad(ahead.sum(), adv)
        ahead = ahead.detach()
        w, adv = gradient.flatten(1), group.adv.flatten(1)
        x = group.x.flatten(1)
        offset = (w * adv).sum(1) - ahead
        from_adv, from_x = (onto_hyperplane(point, w, offset) for point in (adv, x))
        far, near = (move.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) for move in (from_adv, from_x))
        share = (far / (far + near)).clamp(0, self.alpha_max)
        moved = (adv + self.eta * from_adv) * (1 - share) + (x + self.eta * from_x) * share
        group.adv = moved.clamp(0, 1).view_as(group.adv)


def onto_hyperplane(points: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Return the smallest moves, in L∞, that bring points in [0, 1] onto w · point = b without leaving [0, 1].

    Where no move reaches the hyperplane, the one that comes closest. Every pixel with w ≠ 0 moves by the same
    length, or as far as it can: Σ |w| · min(length, room) = |w · point − b|. The left side is concave and
    piecewise linear, so that Newton's method from 0 never overshoots and ends after finitely many steps.

    Args:
        points: (batch, pixels) in [0, 1].
        w: (batch, pixels), the hyperplanes' normals.
        b: (batch,), their offsets.

    Returns:
        (batch, pixels), what to add to `points`.
    """
    gap = (w * points).sum(1) - b
    # towards the hyperplane: against w where the point lies above it, along w below
    direction = torch.where(gap[:, None] >= 0, -w.sign(), w.sign())
    room = torch.where(direction > 0, 1 - points, points)
    gap, weights = gap.abs()[:, None], w.abs()
    reach = weights * room
    length, free = torch.zeros_like(gap), room > 0
    while True:
        slope = (weights * free).sum(1, keepdim=True)
        used = (reach * ~free).sum(1, keepdim=True)
        # nothing free to move: as far as it goes
        length = torch.maximum(length, torch.where(slope > 0, (gap - used) / slope, math.inf))
        still = room > length
        if torch.equal(still, free):
            return direction * torch.minimum(room, length)
        free = still


# ------------------------------------------------------------------------------------------------ Square


@dataclass
class _Queries(_Group):
    """Square's state, one row an image."""

    at: Tensor
    y: Labels
    low: Images
    high: Images
    adv: Images
    margin: PerImage


class LeanSquare(SquareAttack):  # type: ignore[misc]
    """Square in L∞ on the margin, its position and colours shared by a batch, as stock."""

    def attack_single_run(self, x: Images, y: Labels) -> tuple[None, Images]:
        """Return (None, the images at their smallest margins), as `perturb` reads them."""
        channels, height, width = x.shape[1:]
        adv = (x + self.eps * self.random_choice([len(x), channels, 1, width])).clamp(0, 1)
        group = _Queries(
            at=torch.arange(len(x), device=x.device),
            y=y,
            low=(x - self.eps).clamp(min=0),
            high=(x + self.eps).clamp(max=1),
            adv=adv,
            margin=self._margin(adv, y),
        )
        answer = adv.clone()
        for query in range(self.n_queries):
            if bool((group.margin <= 0).any()):
                answer[group.at] = group.adv
                group = group.keep(group.margin > 0)
            if not len(group.at):
                break
            side = max(round(math.sqrt(self.p_selection(query) * height * width)), 1)
            self._query(group, min(side, height, width))
        answer[group.at] = group.adv
        return None, answer

    def _query(self, group: _Queries, side: int) -> None:
        """Paint one square of the images, ask, and keep it where it lowers the margin."""
        channels, height, width = group.adv.shape[1:]
        top, left = self.random_int(0, height - side), self.random_int(0, width - side)
        colour = 2.0 * self.eps * self.random_choice([channels, 1, 1])
        rows, columns = slice(int(top), int(top) + side), slice(int(left), int(left) + side)
        window = group.adv[:, :, rows, columns]
        before = window.clone()
        window.copy_((before + colour).clamp(group.low[:, :, rows, columns], group.high[:, :, rows, columns]))
        margin = self._margin(group.adv, group.y)
        # who has fallen stays as it fell
        better = ((margin < group.margin) | (margin <= 0)) & (group.margin > 0)
        window.copy_(torch.where(better[:, None, None, None], window, before))
        group.margin = torch.where(better, margin, group.margin)

    def _margin(self, x: Images, y: Labels) -> PerImage:
        logits: Logits = self.predict(x)
        own = logits.gather(1, y[:, None])
        others = logits.scatter(1, y[:, None], -math.inf).amax(dim=1)
        return own[:, 0] - others
