"""What an evaluation costs beside the stock libraries: pyautoattack's AutoAttack and torchattacks' PGD-20, in fp32.

    python benchmarks/evaluation.py --quick
    python benchmarks/evaluation.py --images 1000 --batch 250 --share 0.1 --out evaluation.json

Every figure is a ratio of two measurements that took turns in one process on the same images, network and threads.
The network is trained adversarially here for some minutes (or is a run folder, `--network`): on an untrained one
nothing stands, and the stages that cost most would have nothing to do. Beside the ratios: which images' verdicts
differ, how many forward and backward passes each side made, and where the stock time goes.
"""

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own name for it)
import torchattacks
from pyautoattack import AutoAttack
from torch import Tensor, nn

from iad_ext.attacks import PGD
from iad_ext.backbones import create_network, load_network
from iad_ext.data import ImageSet, load_splits
from iad_ext.evaluation import accuracy_under, evaluate, hardware
from iad_ext.evaluation.autoattack import BUDGET
from iad_ext.evaluation.measures import BLOCK
from iad_ext.precision import wait_for
from iad_ext.provenance import versions
from iad_ext.randomness import stream

if TYPE_CHECKING:
    from harness import Bench

DATA = Path(os.environ.get("IAD_EXT_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data"))


def figures(
    device: torch.device | str,
    quick: bool,
    *,
    network: str | None = None,
    images: int | None = None,
    batch: int | None = None,
    share: float | None = None,
) -> dict[str, Any]:
    """Measure and return plain data for JSON.

    Args:
        device: where to compute.
        quick: digits, few images, a fiftieth of AutoAttack's budget: shows that the code works, no more.
        network: a run folder or another source of `load_network`; a small one is trained when not given.
        images: how many test images, taken batch by batch.
        batch: images a batch.
        share: of AutoAttack's budget (100 iterations, 5,000 queries). Both sides get the same.
    """
    device = torch.device(device)
    folder = DATA / "cifar10"
    real = folder.exists() and not quick
    splits = load_splits("cifar10", path=folder) if real else load_splits("digits")
    eps = 8 / 255 if real else 0.1
    images, batch = images or (200 if real else 60), batch or (50 if real else 30)
    share = share or (0.2 if real else 0.02)
    budget = {name: max(round(full * share), 1) for name, full in BUDGET.items()}
    model = (
        load_network(network) if network else _trained(splits.train, eps, 90_000 if real else 6_000, device)
    )
    model = model.to(device).eval()
    rounds = [
        _round(model, splits.test.take(slice(first, first + batch)), device, eps, budget, order=number)
        for number, first in enumerate(range(0, images, batch))
    ]
    return {
        "network": network or "cifar_resnet8, trained here with FGSM from random starts",
        "images": f"{images} test images of {splits.provenance['name']}, {batch} a batch, eps {eps:.4g}",
        "aa_budget": budget,
        "hardware": hardware(device),
        "versions": versions(),
        "rounds": len(rounds),
        "autoattack": _compared(rounds, "stock_aa", ("aa", "aa_fast")),
        "pgd20": _compared(rounds, "stock_pgd20", ("pgd20", "pgd20_fast", "pgd20_evaluate")),
        "curve_over_pgd20": _ratio([r["seconds"]["curve"] / r["seconds"]["stock_pgd20"] for r in rounds]),
        "passes": {
            name: [sum(r["passes"][name][i] for r in rounds) for i in (0, 1)] for name in rounds[0]["passes"]
        },
        "stock_parts": {
            name: {key: sum(r["stock_parts"].get(name, {}).get(key, 0) for r in rounds) for key in PART}
            for name in ("apgd", "apgd_targeted", "fab", "square")
        },
    }


def run(bench: "Bench", only: frozenset[str]) -> list[str]:
    """(f) of `benchmarks/run.py`: a small network, a fifth of AutoAttack's budget; the table."""
    assert only == {"f"}
    found = bench.case(
        "evaluation: AutoAttack, PGD-20", lambda: _as_spreads(figures(bench.device, bench.quick))
    )
    if "failed" in found:
        return [bench.report("f", TITLE, [{"evaluation": "failed", "stock / ours": found["failed"]}], ())]
    rows = [
        {
            "evaluation": said,
            "stock / ours": found[f"{stock} / {name}"],
            "target": 1.5 if stock == "autoattack" else 1.0,
            "stock, %": found[stock]["stock_accuracy"],
            "ours, %": found[stock][name]["accuracy"],
            "images": found[stock]["images"],
            "verdicts that differ": len(found[stock][name]["images_that_differ"]),
        }
        for stock, name, said in CONTENDERS
    ]
    share = found["aa_budget"]
    parts = ", ".join(
        f"{name} {100 * part['seconds'] / sum(p['seconds'] for p in found['stock_parts'].values()):.0f}%"
        for name, part in found["stock_parts"].items()
    )
    notes = (
        f"{found['network']}; {found['images']}; {share['n_iter']} iterations and {share['n_queries']} queries "
        f"instead of AutoAttack's {BUDGET['n_iter']} and {BUDGET['n_queries']:,}, on both sides.",
        f"Where the stock AutoAttack spends its time: {parts}. `fast` folds BatchNorm into the convolutions before it "
        "and is channels_last; it is fp32 like the others.",
    )
    return [bench.report("f", TITLE, rows, notes)]


TITLE = "Stock evaluation / ours"
CONTENDERS = (
    ("autoattack", "aa", "AutoAttack"),
    ("autoattack", "aa_fast", "AutoAttack, `fast`"),
    ("pgd20", "pgd20", "PGD-20, the attack alone"),
    ("pgd20", "pgd20_evaluate", "PGD-20 by `evaluate`"),
    ("pgd20", "pgd20_fast", "PGD-20 by `evaluate`, `fast`"),
)


def _as_spreads(found: dict[str, Any]) -> dict[str, Any]:
    """The same, with each ratio as the harness's spread."""
    for stock, name, _ in CONTENDERS:
        ratio = found[stock][name]["stock_over_ours"]
        low, high = float(f"{ratio['least']:.4g}"), float(f"{ratio['most']:.4g}")
        found[f"{stock} / {name}"] = {
            "median": float(f"{ratio['median']:.4g}"),
            "low": low,
            "high": high,
            "n": found["rounds"],
        }
    return found


PART = ("seconds", "forward", "backward", "images")


class _Counted(nn.Module):
    """Counts the images that pass forward, and those whose input gradient was wanted."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.forwards, self.backwards = network, 0, 0
        self.eval()  # torchattacks puts back the mode of what it is given, and what is inside follows

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        self.backwards += len(x) * (torch.is_grad_enabled() and x.requires_grad)
        return self.network(x)


def _trained(data: ImageSet, eps: float, images: int, device: torch.device) -> nn.Module:
    """A ResNet-8, trained on FGSM's images from random starts: robust enough for all stages to have work."""
    network = create_network("cifar_resnet8", num_classes=10, seed=0, in_chans=data.images.shape[1]).to(
        device
    )
    pixels, labels = data.images.to(device), data.labels.to(device)
    generator = torch.Generator().manual_seed(0)
    size, steps = 64, images // 64
    optimizer = torch.optim.SGD(network.parameters(), 0.2, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps, pct_start=0.25)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (size,), generator=generator).to(device)
        x, y = pixels[chosen].float() / 255, labels[chosen]
        noise = torch.empty(x.shape).uniform_(-eps, eps, generator=generator).to(device)
        adv = (x + noise).clamp(0, 1).requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(adv), y), adv)
        delta = (adv.detach() - x + 1.25 * eps * gradient.sign()).clamp(-eps, eps)
        loss = F.cross_entropy(network((x + delta).clamp(0, 1)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network


def _round(
    model: nn.Module,
    data: ImageSet,
    device: torch.device,
    eps: float,
    budget: dict[str, int],
    *,
    order: int,
) -> dict[str, Any]:
    """Every contender once, on one batch; the order turns from round to round."""
    x, y = data.images.to(device).float() / 255, data.labels.to(device)
    n = len(y)
    common: dict[str, Any] = {"eps": eps, "batch_size": n}
    counted = {name: _Counted(copy.deepcopy(model)) for name in ("stock_aa", "aa", "stock_pgd20", "pgd20")}
    parts: dict[str, dict[str, float]] = {}
    draw = PGD(model, eps=eps).draw_noise
    streams = (stream(0, "evaluate", "pgd20", block) for block in range(-(-n // BLOCK)))
    noise = torch.cat([draw((BLOCK, *x.shape[1:]), generator=generator) for generator in streams])[:n].to(x)

    def stock_aa() -> Tensor:
        attack = AutoAttack(counted["stock_aa"], eps=eps, seed=0, device=device)
        for part in (attack.apgd, attack.apgd_targeted, attack.fab):
            part.n_iter = budget["n_iter"]
        attack.square.n_queries = budget["n_queries"]
        for name in ("apgd", "apgd_targeted", "fab", "square"):
            part = getattr(attack, name)
            part.perturb = _noted(part.perturb, counted["stock_aa"], parts.setdefault(name, {}), device)
        _, predicted = attack.run_standard_evaluation(x, y, batch_size=n)
        return predicted == y

    def stock_pgd20() -> Tensor:
        network = counted["stock_pgd20"]
        attack = torchattacks.PGD(network, eps=eps, alpha=eps / 4, steps=20)
        # from the start that ours takes, so that the verdicts can be compared image by image
        with mock.patch.object(torch.Tensor, "uniform_", lambda tensor, *_: tensor.copy_(noise)):
            adv = attack(x, y)
        with torch.no_grad():
            return network(adv).argmax(1) == y

    def ours(network: nn.Module, attack: str, **more: Any) -> Tensor:
        settings = {"aa_settings": budget} if attack == "aa" else {}
        result = evaluate(network, x, y, (attack,), **common, **settings, **more, progress=False)
        return result["robust"][attack]

    contenders: dict[str, Callable[[], Tensor]] = {
        "stock_aa": stock_aa,
        "aa": lambda: ours(counted["aa"], "aa"),
        "aa_fast": lambda: ours(model, "aa", fast=True),
        "stock_pgd20": stock_pgd20,
        "pgd20": lambda: accuracy_under(counted["pgd20"], x, y, "pgd20", **common),
        "pgd20_fast": lambda: ours(model, "pgd20", fast=True),
        "pgd20_evaluate": lambda: ours(model, "pgd20"),
        "curve": lambda: ours(model, "natural", curve=n),
    }
    names = list(contenders)
    names = names[order % len(names) :] + names[: order % len(names)]
    seconds, stands = {}, {}
    with torch.no_grad():
        model(x)  # a backend's set-up for this batch size is no contender's
    for name in names:
        wait_for(device)
        began = time.perf_counter()
        stands[name] = contenders[name]().cpu()
        wait_for(device)
        seconds[name] = time.perf_counter() - began
    return {
        "seconds": seconds,
        "stands": stands,
        "passes": {name: (network.forwards, network.backwards) for name, network in counted.items()},
        "stock_parts": parts,
    }


def _noted(
    perturb: Callable[..., Tensor], network: _Counted, part: dict[str, float], device: torch.device
) -> Callable[..., Tensor]:
    def noting(x: Tensor, y: Tensor) -> Tensor:
        began, forwards, backwards = time.perf_counter(), network.forwards, network.backwards
        adv = perturb(x, y)
        wait_for(device)
        spent = (
            time.perf_counter() - began,
            network.forwards - forwards,
            network.backwards - backwards,
            len(x),
        )
        for key, value in zip(PART, spent, strict=True):
            part[key] = part.get(key, 0) + value
        return adv

    return noting


def _compared(rounds: list[dict[str, Any]], stock: str, others: tuple[str, ...]) -> dict[str, Any]:
    """Stock seconds over ours, and how far the verdicts agree."""
    together = {name: torch.cat([r["stands"][name] for r in rounds]) for name in (stock, *others)}
    n = len(together[stock])
    compared: dict[str, Any] = {"stock_accuracy": 100 * int(together[stock].sum()) / n, "images": n}
    for name in others:
        compared[name] = {
            "stock_over_ours": _ratio([r["seconds"][stock] / r["seconds"][name] for r in rounds]),
            "accuracy": 100 * int(together[name].sum()) / n,
            "images_that_differ": (together[name] != together[stock]).nonzero()[:, 0].tolist(),
        }
    return compared


def _ratio(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="digits, few images: shows that it works")
    parser.add_argument(
        "--network", help="run folder or another source; a small one is trained when not given"
    )
    parser.add_argument("--images", type=int, help="test images in all")
    parser.add_argument("--batch", type=int, help="images a batch")
    parser.add_argument("--share", type=float, help="share of AutoAttack's budget")
    parser.add_argument("--threads", type=int, help="of a CPU; one is fastest for the small network")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    found = figures(
        options.device,
        options.quick,
        network=options.network,
        images=options.images,
        batch=options.batch,
        share=options.share,
    )
    text = json.dumps(found, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
