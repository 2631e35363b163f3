"""How robust a network is: accuracy under the paper's attacks, with its provenance and signs of masking."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from iad_ext.attacks import EPS, PGD, PGDL2, CWInf
from iad_ext.checks import check_flag, check_whole
from iad_ext.evaluation import curve as curves
from iad_ext.evaluation import masking
from iad_ext.evaluation.autoattack import Runner, State
from iad_ext.evaluation.kept import Kept, key_of
from iad_ext.evaluation.masking import Flag
from iad_ext.evaluation.samples import Array, Sample, sample
from iad_ext.evaluation.subject import (
    Subject,
    check_device,
    fold_batchnorm,
    probe,
    refuse_non_finite,
    under_evaluation,
)
from iad_ext.evaluation.tables import format_table, hardware, interval, percent
from iad_ext.evaluation.turns import Turns
from iad_ext.names import known_arguments, unknown
from iad_ext.processes import World, from_main
from iad_ext.provenance import versions
from iad_ext.randomness import stream
from iad_ext.reliability import predicts
from iad_ext.types import Flags, Images, Labels
from iad_ext.units import show_fraction

__all__ = ["ATTACKS", "GRADIENT_ATTACKS", "accuracy_under", "evaluate", "format_table", "interval"]

BATCH_SIZE = 250  # AutoAttack's own, on which its result depends
BLOCK = 256  # images that share one stream of random starts, whatever the batch size


@dataclass(frozen=True)
class GradientAttack:
    """Settings of one gradient attack of the evaluation.

    Attributes:
        kind: the attack's class.
        loss: what it ascends, in words.
        steps: number of gradient steps.
        step: size of a step as a share of eps.
        random_start: begin at a uniformly random point of the ball.
    """

    kind: type[PGD] | type[PGDL2]
    loss: str
    steps: int
    step: float
    random_start: bool = True

    def build(self, subject: Subject, eps: float) -> PGD | PGDL2:
        """Build it on `subject`, in eval mode, for a radius of `eps`."""
        return self.kind(
            subject,
            eps=eps,
            alpha=self.step * eps,
            steps=self.steps,
            random_start=self.random_start,
            training=False,
        )

    def protocol(self, eps: float) -> dict[str, Any]:
        """The settings, as they stand beside a result."""
        return {
            "attack": self.kind.__name__,
            "loss": self.loss,
            "eps": eps,
            "alpha": self.step * eps,
            "steps": self.steps,
            "random_start": self.random_start,
            "mode": "eval",
        }


# Steps are the paper's 2/255 at its radius of 8/255, and grow with the radius.
GRADIENT_ATTACKS = {
    # the released evaluation starts FGSM at random; "plain" is the textbook's
    "fgsm": GradientAttack(PGD, "cross-entropy", steps=1, step=1.0),
    "fgsm_plain": GradientAttack(PGD, "cross-entropy", steps=1, step=1.0, random_start=False),
    "pgd10": GradientAttack(PGD, "cross-entropy", steps=10, step=0.25),
    "pgd20": GradientAttack(PGD, "cross-entropy", steps=20, step=0.25),
    "cw_inf": GradientAttack(CWInf, "CW margin, confidence 50", steps=30, step=0.25),
}
ATTACKS = ("natural", *GRADIENT_ATTACKS, "aa")


@known_arguments
def evaluate(
    model: nn.Module,
    images: Array,
    labels: Array,
    attacks: Sequence[str] = ("natural", "fgsm", "pgd20", "cw_inf", "aa"),
    eps: float = EPS,
    seed: int = 0,
    *,
    batch_size: int = BATCH_SIZE,
    device: torch.device | str | None = None,
    progress: bool | None = None,
    channels_last: bool = False,
    fast: bool = False,
    curve: int = 0,
    aa_settings: Mapping[str, int] | None = None,
    state_folder: str | Path | None = None,
    after_batch: Callable[[], object] | None = None,
    world: World | None = None,
) -> dict[str, Any]:
    """Measure the accuracy of `model` on natural images and under L∞ attacks.

    The network runs in eval mode, frozen, in its own precision (autocast off), on its own device, and is left
    as it was; so is torch's global random state. Attacks run in pixel space.

    What counts as robust: under `fgsm`, `fgsm_plain`, `pgd10`, `pgd20` and `cw_inf` every image is attacked
    and counts if its adversarial image is classified correctly, as in the paper's evaluation. Under `aa` an
    image counts if it is classified correctly without an attack and after every stage, as AutoAttack defines
    it. An adversarial image on which the logits are not finite does not count (under `aa` the verdict is
    pyautoattack's); such images are flagged.

    The random starts of gradient attacks are functions of (seed, attack, position of the image). AutoAttack
    reseeds every batch: its flags are those of pyautoattack at the same `batch_size`, order and seed.

    Args:
        model: returns logits (N, C), C ≥ 2.
        images: (N, C, H, W) tensor or NumPy array, floats in [0, 1] or uint8 in 0 … 255; may stay on any
            device.
        labels: (N,) integers, tensor or NumPy array.
        attacks: any of `natural`, `fgsm` (random start, as released), `fgsm_plain`, `pgd10`, `pgd20`,
            `cw_inf`, `aa`.
        eps: radius in pixels of [0, 1], between 0 and 1. Step sizes are in proportion to it.
        seed: of every random start, ≥ 0.
        batch_size: images a pass.
        device: where the network is expected to be; an error if it is elsewhere.
        progress: a progress bar on stderr; None shows it on a terminal only.
        channels_last: run in the channels-last memory layout: faster on many machines, and sums are then
            rounded otherwise, which can move single images across the boundary.
        fast: `channels_last`, and BatchNorm folded into the convolutions where the network can be traced: the same
            attacks on the same function, up to half as fast again, rounded otherwise. `protocol` says what was done.
        curve: measure robust accuracy against the radius, from 0 to 4 · eps, on the first so many images, which shows
            masking that no single percentage shows (`iad_ext.evaluation.curve`). A run measures it on 256.
        aa_settings: a smaller budget of AutoAttack for trials, `{"n_iter": 100, "n_queries": 5000}`; flagged
            as non-standard.
        state_folder: keep what has been measured in a file there; a later call on the same network, images and
            settings goes on after the last batch, and further attacks do not repeat what is known. The results are
            those of a call that was not broken off.
        after_batch: called after every batch; what it raises breaks the evaluation off, with everything kept.
        world: processes that share the batches out, `accelerate.PartialState()`. Each of them makes the same call, with
            the network on its own device, and gets the same result, which is that of one process; the main one
            shows progress and keeps the state. `after_batch` must then raise on all of them or on none.

    Returns:
        A dictionary of

        * each attack: accuracy in percent,
        * `n`: number of images,
        * `interval`: by attack, the 95% Wilson interval of the percentage,
        * `robust`: by attack, (N,) bool on the CPU, whether the image counts: its mean is the percentage,
        * `curve` and `curve_n`, if asked for: percent by radius, such as `{"0": 81.2, "2/255": 70.3, …}`, and the
          number of images,
        * `flags`: what casts doubt on the numbers (`iad_ext.evaluation.masking.Flag`); empty if nothing does,
        * `protocol`: settings, seconds, versions and hardware; plain data for JSON.

    Raises:
        TypeError: wrong kinds of arguments, or a network that does not return one floating tensor.
        ValueError: unknown attack, values out of range, shapes or class counts that do not fit, logits not
            finite.
    """
    names = _checked_names(attacks)
    check_numbers(eps=eps, seed=seed, batch_size=batch_size)
    check_flag("channels_last", channels_last)
    check_flag("fast", fast)
    check_whole("curve, a number of images,", curve, at_least=0)
    channels_last = channels_last or fast
    with under_evaluation(model, channels_last=channels_last) as subject:
        check_device(subject, device)
        data = sample(images, labels, device=subject.device, dtype=subject.pixels)
        course = _Course(
            subject,
            data,
            eps=eps,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
            turns=Turns.among(world),
        )
        course.run(names, aa_settings, state_folder, after_batch, fast=fast, curve=curve)
    return course.result(names, channels_last=channels_last)


def accuracy_under(
    model: nn.Module,
    images: Array,
    labels: Array,
    attack: str,
    *,
    eps: float = EPS,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    first: int = 0,
    after_batch: Callable[[], object] | None = None,
) -> Flags:
    """Return which images count under one attack, cheaply: for the validation after every epoch.

    The same numbers as `evaluate(…)["robust"][attack]`, without flags and protocol, on the network's device.
    Images are never copied to the host.

    Args:
        model: returns logits (N, C).
        images: as for `evaluate`; uint8 on the device costs least.
        labels: (N,) integers.
        attack: `natural` or a gradient attack of `evaluate`, not `aa`.
        eps: radius in pixels of [0, 1].
        seed: of the random starts.
        batch_size: images a pass.
        first: position of the first image in a larger set that several processes share out, so that its random
            start does not depend on who attacks it.
        after_batch: called after every batch; what it raises breaks the measurement off.

    Returns:
        (N,) bool; its mean is the accuracy.

    Raises:
        TypeError: as `evaluate`.
        ValueError: as `evaluate`, and for `aa`.
    """
    (name,) = _checked_names((attack,))
    if name == "aa":
        raise ValueError(
            "attack: AutoAttack is not for every epoch; use evaluate(…, attacks=('aa',)), or 'pgd10' here"
        )
    check_numbers(eps=eps, seed=seed, batch_size=batch_size)
    with under_evaluation(model) as subject:
        data = sample(images, labels, device=subject.device, dtype=subject.pixels)
        probe(subject, data.batch(slice(0, batch_size))[0], highest=int(data.labels.max()))
        robust = []
        for right, finite in _passes(
            subject, data, name, eps=eps, seed=seed, batch_size=batch_size, offset=first
        ):
            robust.append(right & finite)
            if after_batch is not None:
                after_batch()
        return torch.cat(robust)


def _checked_names(attacks: Sequence[str]) -> list[str]:
    """Return the attacks' names, each once."""
    if not isinstance(attacks, str | Sequence) or not all(isinstance(name, str) for name in attacks):
        raise TypeError(f"attacks: expected names, any of {', '.join(ATTACKS)}; got {attacks!r}")
    names = list(dict.fromkeys([attacks] if isinstance(attacks, str) else attacks))
    if not names:
        raise ValueError(f"attacks: expected at least one of {', '.join(ATTACKS)}; got none")
    for name in names:
        if name not in ATTACKS:
            raise ValueError(unknown("attack", str(name), ATTACKS))
    return names


def check_numbers(*, eps: float, seed: int, batch_size: int) -> None:
    if isinstance(eps, bool) or not isinstance(eps, int | float):
        raise TypeError(f"eps: expected a float, in pixels of [0, 1]; got {eps!r}; give for example 8 / 255")
    if not 0 < eps < 1:
        hint = f"; did you mean {eps:g} / 255?" if 1 <= eps < 255 else ""
        raise ValueError(f"eps: expected 0 < eps < 1, in pixels of [0, 1]; got {eps!r}{hint}")
    for name, value, lowest in (("seed", seed, 0), ("batch_size", batch_size, 1)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected an integer; got {value!r}")
        if not lowest <= value < 2**63:
            raise ValueError(f"{name}: expected at least {lowest} and less than 2^63; got {value}")


def _passes(
    subject: Subject,
    data: Sample,
    name: str,
    *,
    eps: float,
    seed: int,
    batch_size: int,
    offset: int = 0,
    done: int = 0,
    stride: int | None = None,
) -> Iterator[tuple[Flags, Flags]]:
    """Attack batch by batch after the first `done` images; yields which are then right, and have finite logits."""
    attack = None if name == "natural" else GRADIENT_ATTACKS[name]
    for images, labels in adversarial_batches(
        subject,
        data,
        attack,
        name,
        eps=eps,
        seed=seed,
        batch_size=batch_size,
        offset=offset,
        done=done,
        stride=stride,
    ):
        logits = subject(images)
        yield predicts(logits, labels), logits.isfinite().all(dim=1)


def adversarial_batches(
    subject: Subject,
    data: Sample,
    settings: GradientAttack | None,
    name: str,
    *,
    eps: float,
    seed: int,
    batch_size: int,
    offset: int = 0,
    done: int = 0,
    stride: int | None = None,
) -> Iterator[tuple[Images, Labels]]:
    """Yield batch by batch, after the first `done` images, the adversarial images of `subject`, and the labels.

    Args:
        subject: the network, frozen, in eval mode.
        data: the images.
        settings: the attack's; None for the images as they are.
        name: of the attack, which names its random starts.
        eps: radius, in the attack's norm.
        seed: of the random starts.
        batch_size: images a pass.
        offset: position of the first image in a larger set.
        done: images that an earlier call has done.
        stride: images from a batch to the next, where several processes take turns.
    """
    attack = starts = None
    if settings is not None:
        attack = settings.build(subject, eps)
        if attack.random_start:
            starts = starting_noise(attack, name, seed, tuple(data.images.shape[1:]))
    for first in range(done, len(data), stride or batch_size):
        images, labels = data.batch(slice(first, first + batch_size))
        if attack is not None:
            noise = starts(offset + first, offset + first + len(images)) if starts is not None else None
            if isinstance(attack, PGD):
                # the loss is the batch's mean, whose small gradients a large batch would lose; a power of two
                # takes no bit from the others
                attack.loss_scale = 2.0 ** (len(images) - 1).bit_length()
            images = attack(images, labels, noise=noise)
        yield images, labels


def starting_noise(
    attack: PGD | PGDL2, name: str, seed: int, shape: tuple[int, ...]
) -> Callable[[int, int], Tensor]:
    """Return the function that gives the starting noise of the images at positions first … last − 1.

    Noise is drawn for whole blocks of images on the CPU: the same for every batch size, device and number of
    images.
    """

    @lru_cache(maxsize=2)
    def block(index: int) -> Tensor:
        noise = attack.draw_noise((BLOCK, *shape), generator=stream(seed, "evaluate", name, index))
        assert noise is not None
        return noise

    def between(first: int, last: int) -> Tensor:
        blocks = range(first // BLOCK, (last - 1) // BLOCK + 1)
        return torch.cat(
            [block(index)[max(first - index * BLOCK, 0) : last - index * BLOCK] for index in blocks]
        )

    return between


class _Course:
    """One evaluation as it goes: what has been measured so far."""

    def __init__(
        self,
        subject: Subject,
        data: Sample,
        *,
        eps: float,
        seed: int,
        batch_size: int,
        progress: bool | None,
        turns: Turns,
    ) -> None:
        self.subject, self.data, self.turns = subject, data, turns
        self.progress = False if turns.rank else progress
        self.eps, self.seed, self.batch_size = eps, seed, batch_size
        self.robust: dict[str, Flags] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self.flags: list[Flag] = []
        self.batchnorm = "as it is"
        self.curve: dict[str, Any] = {}
        self.curve_protocol: dict[str, Any] = {}

    def run(
        self,
        names: Sequence[str],
        aa_settings: Mapping[str, int] | None,
        state_folder: str | Path | None,
        after_batch: Callable[[], object] | None,
        *,
        fast: bool,
        curve: int,
    ) -> None:
        """Look at the network, then run each attack from where it stands."""
        first, _ = self.data.batch(slice(0, self.batch_size))
        logits = probe(self.subject, first, highest=int(self.data.labels.max()))
        if fast:
            self.batchnorm = fold_batchnorm(self.subject, first)
            logits = self.subject(first)
        runner = Runner(
            self.subject,
            classes=logits.shape[1],
            eps=self.eps,
            seed=self.seed,
            batch_size=self.batch_size,
            settings=aa_settings,
        )
        self.after_batch = after_batch
        self.kept = self._kept(state_folder, runner)
        self.flags += masking.from_outputs(logits, self.subject(first))
        natural = self._simple("natural")
        if set(names) - {"natural"}:
            self.flags += masking.zero_gradients(self.subject, self.data, natural, batch_size=self.batch_size)
        for name in names:
            if name in GRADIENT_ATTACKS:
                self._simple(name)
        if curve:
            self._curve(curve)
        if "aa" in names:
            self._autoattack(runner, natural)
        gradient = {name: flags for name, flags in self.robust.items() if name != "natural"}
        self.flags += masking.from_robust(natural, gradient, eps=self.eps)

    def _kept(self, folder: str | Path | None, runner: Runner) -> Kept:
        key, mine = "", folder if self.turns.rank == 0 else None
        if mine is not None:  # hashing a network and its images costs something
            numbers = {"eps": self.eps, "seed": self.seed, "batch_size": self.batch_size}
            key = key_of(self.subject, self.data, **numbers, autoattack=runner.budget)
        kept = Kept(mine, key, n=len(self.data), stages=len(runner.stages))
        if self.turns.of > 1:  # all go on from where the main process stands
            kept.passes, kept.seconds, kept.autoattack = from_main(
                (kept.passes, kept.seconds, kept.autoattack)
            )
        return kept

    def _batch_done(self) -> None:
        """Let the caller break off, with everything kept."""
        if self.after_batch is None:
            return
        try:
            self.after_batch()
        except BaseException:
            self.kept.save()
            raise

    def _simple(self, name: str) -> Flags:
        """Natural accuracy or one gradient attack."""
        kept, before = self.kept, self.kept.seconds.get(name, 0.0)
        began = time.perf_counter()
        done = kept.passes.get(name, torch.empty(2, 0, dtype=torch.bool))
        passes = _passes(
            self.subject,
            self.data,
            name,
            eps=self.eps,
            seed=self.seed,
            batch_size=self.batch_size,
            **self._mine_after(done.shape[1]),
        )
        both = (torch.stack(flags) for flags in passes)
        with ProgressBar(name, len(self.data), self.progress, done=done.shape[1]) as bar:
            for new in self.turns.rounds(both, self._rounds_after(done.shape[1], len(self.data))):
                done = torch.cat([done, new], dim=1)
                kept.passes[name], kept.seconds[name] = done, before + time.perf_counter() - began
                kept.save(due_only=True)
                bar.advance(new.shape[1], percent(done.all(dim=0)))
                self._batch_done()
        kept.save()
        right, finite = done
        if name == "natural":
            refuse_non_finite(finite)
            self.settings[name] = {"attack": "none", "mode": "eval"}
        else:
            self.flags += masking.non_finite(name, int((~finite).sum()))
            self.settings[name] = GRADIENT_ATTACKS[name].protocol(self.eps)
        self.settings[name]["seconds"] = kept.seconds.get(name, 0.0)
        self.robust[name] = right & finite
        return self.robust[name]

    def _mine_after(self, done: int) -> dict[str, int]:
        """Which batches are this process's, after the first `done` images."""
        return {
            "done": done + self.turns.rank * self.batch_size,
            "stride": self.turns.of * self.batch_size,
        }

    def _rounds_after(self, done: int, n: int) -> int:
        return len(range(done, n, self.turns.of * self.batch_size))

    def _curve(self, limit: int) -> None:
        """Robust accuracy against the radius, on the first `limit` images."""
        kept, all_ = self.kept, self.data
        data = Sample(all_.images[:limit], all_.labels[:limit], all_.device, all_.dtype)
        unit = PGD(self.subject, eps=1.0)  # noise in [−1, 1], the same for every radius
        starts = starting_noise(unit, "curve", self.seed, tuple(data.images.shape[1:]))
        stands: dict[float, Flags] = {}
        for radius in curves.radii(self.eps):
            name, before = f"curve {show_fraction(radius)}", kept.seconds.get("curve", 0.0)
            began = time.perf_counter()
            done = kept.passes.get(name, torch.empty(2, 0, dtype=torch.bool))
            passes = curves.standing(
                self.subject,
                data,
                radius,
                starts,
                batch_size=self.batch_size,
                **self._mine_after(done.shape[1]),
            )
            rounds = self._rounds_after(done.shape[1], len(data))
            with ProgressBar(name, len(data), self.progress, done=min(done.shape[1], len(data))) as bar:
                for standing in self.turns.rounds(passes, rounds):
                    done = torch.cat([done, standing.expand(2, -1)], dim=1)
                    kept.passes[name] = done
                    kept.seconds["curve"] = before + time.perf_counter() - began
                    kept.save(due_only=True)
                    bar.advance(len(standing), percent(done[0]))
                    self._batch_done()
            kept.save()
            stands[radius] = done[0, : len(data)]
        self.flags += curves.flags(stands)
        self.curve = {"curve": curves.result(stands), "curve_n": len(data)}
        self.curve_protocol = {"curve": curves.protocol(len(data), kept.seconds.get("curve", 0.0))}

    def _autoattack(self, runner: Runner, natural: Flags) -> None:
        state = self.kept.autoattack = self.kept.autoattack or State.start(natural)
        while state.stage < len(runner.stages):
            queue, stage = len(runner.queue(state)), runner.stages[state.stage]
            done = min(state.batch * self.batch_size, queue)
            with ProgressBar(f"aa {stage}", queue, self.progress, done=done) as bar:
                for images in runner.run_stage(self.data, state, self.turns):
                    self.kept.save(due_only=True)
                    bar.advance(images, percent(state.robust))
                    self._batch_done()
            self.kept.save()
        self.robust["aa"] = state.robust
        self.flags += runner.flags(self.data, state)
        self.flags += masking.non_finite("aa", state.non_finite)
        beside = {name: flags for name, flags in self.robust.items() if name in GRADIENT_ATTACKS}
        fell_to_square = state.fell_to == runner.stages.index("square")
        self.flags += masking.square_beats_gradients(fell_to_square, beside)
        self.settings["aa"] = {
            "eps": self.eps,
            **runner.protocol(state),
            "seconds": sum(state.seconds.values()),
        }

    def result(self, names: Sequence[str], *, channels_last: bool) -> dict[str, Any]:
        """Everything measured, in the public form."""
        n = len(self.data)
        return {
            **{name: percent(self.robust[name]) for name in names},
            "n": n,
            "interval": {name: interval(int(self.robust[name].sum()), n) for name in names},
            "robust": {name: self.robust[name] for name in names},
            **self.curve,
            "flags": self.flags,
            "protocol": {
                "norm": "Linf",
                "eps": self.eps,
                "n": n,
                "seed": self.seed,
                "batch_size": self.batch_size,
                "start_block": BLOCK,
                "channels_last": channels_last,
                "batchnorm": self.batchnorm,
                "dtype": str(self.subject.dtype).removeprefix("torch."),
                "device": str(self.subject.device),
                "hardware": hardware(self.subject.device),
                "versions": versions(),
                "attacks": {name: self.settings[name] for name in names},
                **self.curve_protocol,
            },
        }


class ProgressBar:
    """A progress bar on stderr: images done, and the percentage that stands so far.

    Args:
        name: what is running.
        total: images to do.
        progress: show it; None on a terminal only.
        done: images that an earlier call has done.
    """

    def __init__(self, name: str, total: int, progress: bool | None, *, done: int = 0) -> None:
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=name,
            unit="img",
            file=sys.stderr,
            disable=None if progress is None else not progress,
            dynamic_ncols=True,
        )

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, images: int, robust: float) -> None:
        """`images` more are done; `robust` percent stand."""
        self.bar.set_postfix_str(f"robust {robust:.2f}%", refresh=False)
        self.bar.update(images)
