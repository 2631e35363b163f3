"""How the attack is run: step by step, as one compiled step, or as a CUDA graph; decided by trying it here.

The attack is most of a training step, and on a GPU a small network's attack is mostly the launching of kernels. A CUDA
graph replays the same kernels at once: the same images, to the last bit. A compiled step fuses and reorders arithmetic,
and is therefore only ever taken where it is asked for. Whatever fails, or changes x̃ by more than rounding does, is left
out, and the run says so.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from iad_ext.attacks import PGD, TRADESPGD
from iad_ext.modes import buffers_kept
from iad_ext.names import unknown
from iad_ext.precision import wait_for
from iad_ext.types import Images, Labels

log = logging.getLogger(__name__)

Kind = Literal["off", "step", "graphs"]
KINDS: tuple[str, ...] = ("auto", "off", "step", "graphs")
GAIN = 1.05  # a graph must be at least this much faster to be worth its memory
PIXELS = 0.999  # share of x̃ that must be the same where arithmetic may be reordered
SHAPES = 2  # batches of so many sizes get a graph of their own: the usual one, and an epoch's last
ON_A_CPU = (
    "on a CPU: a compiled step was measured at 1.06 times the speed on ResNet-18 (two AVX-512 cores, bf16), for a "
    "minute or two of compilation and another rounding; --compile step takes it all the same"
)

Attack: TypeAlias = Callable[[Images, Labels, Images | None], Images]
Autocast: TypeAlias = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Compilation:
    """How a run's attack is run.

    Attributes:
        kind: `off` (eager), `step` (one step of the attack, compiled), or `graphs` (the whole attack, a CUDA graph).
        reason: how it was decided, for people.
    """

    kind: Kind
    reason: str


def check(kind: str) -> None:
    """Raise a ValueError unless `kind` is one of `KINDS`."""
    if kind not in KINDS:
        raise ValueError(unknown("way to compile", str(kind), KINDS))


def decide(
    wanted: str,
    attack: object,
    images: Images,
    *,
    classes: int,
    autocast: Autocast,
    reason: str = "asked for",
) -> Compilation:
    """Say how `attack` will be run, after trying it on `images`; its network is left as it was.

    A compiled step is tried in fp32 too, which compiles it twice: there, x̃ after one step must be eager's.

    Args:
        wanted: one of `KINDS`.
        attack: the training attack; only this package's own can be compiled.
        images: a batch of the size that a step has, in its memory format, on its device.
        classes: number of classes; labels of the trial are the first of them in turn.
        autocast: the precision of the run.
        reason: why it is wanted.

    Raises:
        ValueError: there is no such way.
    """
    check(wanted)
    if wanted == "off":
        return Compilation("off", reason)
    if not isinstance(attack, PGD | TRADESPGD):
        return _instead(wanted, "only this package's own attacks can be compiled")
    if getattr(attack, "reads", None):
        return _instead(wanted, "an attack that is given a teacher's pass has no compiled form")
    if images.device.type != "cuda":
        if wanted == "auto":
            return Compilation("off", ON_A_CPU)
        if wanted == "graphs":
            return _instead(wanted, "CUDA graphs need a GPU")
    kind: Kind = "step" if wanted == "step" else "graphs"
    labels = torch.arange(len(images), device=images.device) % classes
    try:
        with _left_alone(attack.model, images.device):
            trial = _tried(kind, attack, images, labels, autocast)
    except Exception as error:  # whatever a compiler or a driver raises: the run goes on without
        return _instead(wanted, f"it fails here ({type(error).__name__}: {_first_line(error)})")
    if trial.same < PIXELS:
        attack.stepper = None
        return _instead(wanted, f"x̃ is the same in {100 * trial.same:.2f}% of its pixels only")
    said = f"{trial.gain:.2f} times as fast as eager on {images.device.type}, x̃ the same in {100 * trial.same:.2f}%"
    if wanted == "auto" and trial.gain < GAIN:
        return Compilation("off", f"measured: graphs are {said}, which is not worth their memory")
    return Compilation(kind, f"{'measured' if wanted == 'auto' else reason}: {said} of its pixels")


def compiled(attack: Any, compilation: Compilation) -> Any:
    """Return the attack as it is to be run: wrapped for `graphs`, `attack` itself with another step for `step`."""
    if compilation.kind == "graphs":
        return Graphed(attack)
    if compilation.kind == "step" and attack.stepper is None:  # else it was compiled when it was tried
        attack.stepper = CompiledStep(attack)
    return attack


class CompiledStep:
    """One step of an attack, compiled whole: forward, gradient of the images, sign and clamps.

    Compiled for the first batch's shape; batches of another run eagerly. Weights' gradients are not computed: dynamo
    traces `autograd.grad` with the images as its only input, and gives up (an error, not a slow step) where it cannot.
    """

    def __init__(self, attack: PGD | TRADESPGD, backend: str = "inductor") -> None:
        self._eager = attack.take_step
        self._backend = backend
        self._compiled: Callable[..., tuple[Images, Images]] | None = None
        self._shape: torch.Size | None = None

    def __call__(self, adv: Images, images: Images, target: Tensor) -> tuple[Images, Images]:
        """Take a step; returns the next x̃ and the gradient."""
        if self._compiled is None:
            self._compiled = torch.compile(self._eager, fullgraph=True, dynamic=False, backend=self._backend)
            self._shape = adv.shape
        if adv.shape != self._shape:
            return self._eager(adv, images, target)
        with _autograd_traced():
            return self._compiled(adv, images, target)


@contextmanager
def _autograd_traced() -> Iterator[None]:
    """Let dynamo trace `autograd.grad`; without this it silently runs the step eagerly."""
    import torch._dynamo  # slow to import, and needed by nobody else

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        yield


class Graphed:
    """A whole attack as a CUDA graph, captured at the first batch of a size and replayed afterwards.

    The network is attacked in the mode and with the arithmetic of the capture, at the addresses of its weights then:
    they are changed in place by optimizers, and must be.
    """

    def __init__(self, attack: PGD | TRADESPGD) -> None:
        self.attack = attack
        self._graphs: dict[torch.Size, _Graph] = {}
        self._stuck: Tensor | None = None

    def __call__(self, images: Images, labels: Labels, noise: Images | None = None) -> Images:
        """Return adversarial images, as the attack does."""
        if noise is None:
            noise = self.attack.draw_noise(tuple(images.shape), dtype=images.dtype)
        if noise is None:
            noise = torch.zeros_like(images)
        if images.shape not in self._graphs:
            if len(self._graphs) == SHAPES:
                adversarial = self.attack(images, labels, noise)
                self._stuck = self.attack.stuck
                return adversarial
            self._graphs[images.shape] = _Graph(self.attack, images, labels, noise)
        graph = self._graphs[images.shape]
        adversarial = graph.replayed(images, labels, noise)
        self._stuck = None if graph.stuck is None else graph.stuck.clone()  # the next replay writes over it
        return adversarial

    def draw_noise(self, shape: tuple[int, ...], **how: Any) -> Tensor | None:
        """The attack's own."""
        return self.attack.draw_noise(shape, **how)

    @property
    def stuck(self) -> Tensor | None:
        """The last attack's. A replay writes where its own capture did, the attack knows the latest capture's alone."""
        return self._stuck


class _Graph:
    """One captured attack with the places that its inputs are copied to."""

    def __init__(self, attack: PGD | TRADESPGD, images: Images, labels: Labels, noise: Images) -> None:
        self._inputs = (images.clone(), labels.clone(), noise.clone())
        with _left_alone(attack.model, images.device):
            here, side = torch.cuda.current_stream(images.device), torch.cuda.Stream(images.device)
            side.wait_stream(here)
            with torch.cuda.stream(side):
                for _ in range(
                    2
                ):  # libraries choose their kernels and set up what cannot be set up in a capture
                    attack(*self._inputs)
            here.wait_stream(side)
        # weights cast to a lower precision before the capture would stay what they were then
        torch.clear_autocast_cache()
        self._graph = torch.cuda.CUDAGraph()
        # what other threads do to the device, such as a watchdog of NCCL's, is none of the capture's business
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._adversarial = attack(*self._inputs)
        self.stuck = attack.stuck
        torch.clear_autocast_cache()  # what was cast in the capture is not computed until it is replayed

    def replayed(self, *inputs: Tensor) -> Images:
        for place, value in zip(self._inputs, inputs, strict=True):
            place.copy_(value)
        self._graph.replay()
        return self._adversarial.clone()


# ---------------------------------------------------------------------------------------------- the trial


@dataclass(frozen=True)
class _Trial:
    same: float  # share of x̃'s pixels
    gain: float  # eager seconds / compiled seconds


def _tried(kind: Kind, attack: PGD | TRADESPGD, images: Images, labels: Labels, autocast: Autocast) -> _Trial:
    """Attack the same images from the same start in both ways, three times each, in turns; the fastest counts.

    x̃ is compared after one step in fp32: later ones, and those in a lower precision, multiply what rounding leaves.
    """
    noise = attack.draw_noise(tuple(images.shape), dtype=images.dtype)
    noise = torch.zeros_like(images) if noise is None else noise
    steps, way, best = (
        attack.steps,
        Compilation(kind, "tried"),
        {"eager": float("inf"), "other": float("inf")},
    )
    other = compiled(attack, way)
    stepper = attack.stepper  # None for graphs
    try:
        for turn in range(4):
            for name, run in (("eager", attack), ("other", other)):
                attack.stepper = None if name == "eager" else stepper
                seconds = _seconds(run, images, labels, noise, autocast)
                if turn:
                    best[name] = min(best[name], seconds)
        attack.steps, attack.stepper = 1, None
        expected = attack(images, labels, noise)
        attack.stepper = stepper
        found = compiled(attack, way)(images, labels, noise)
    except BaseException:
        stepper = None
        raise
    finally:
        attack.steps, attack.stepper = steps, stepper
    same = float((found - expected).abs().le(1e-6).double().mean())
    return _Trial(same=same, gain=best["eager"] / best["other"])


def _seconds(run: Attack, images: Images, labels: Labels, noise: Images, autocast: Autocast) -> float:
    wait_for(images.device)
    began = time.perf_counter()
    with autocast():
        run(images, labels, noise)
    wait_for(images.device)
    return time.perf_counter() - began


@contextmanager
def _left_alone(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Buffers and the random state are afterwards what they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), buffers_kept(network):
        yield


def _instead(wanted: str, why: str) -> Compilation:
    """Off, and a word about it where something else was asked for."""
    if wanted != "auto":
        log.warning("--compile %s is not taken: %s; the attack runs eagerly", wanted, why)
    return Compilation("off", f"{wanted} was wanted; {why}")


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")[:200]
