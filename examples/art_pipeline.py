"""IAD as one more step of an ART pipeline, judged by ART's own attacks before and after.

Somebody has a classifier that fits its images well and falls to an attack. This script is that classifier and what can
be done about it: `PyTorchClassifier.fit` trains it as usual; ART's ProjectedGradientDescent, and SquareAttack, which
sees no gradient, show how much of it stands; then `IntrospectiveAdversarialDistiller(…).fit(x, y)`, which is used as
any estimator of scikit-learn's is, trains the same classifier on, under an adversarially trained teacher. The attacks
are made anew on what came of it. A scheduler steps once an epoch; `checkpoint_folder` keeps a fit, so that the same
script, started again with `--keep` after it was stopped, goes on where it was.

    python examples/art_pipeline.py                        # scikit-learn's handwritten digits, nothing to download
    python examples/art_pipeline.py --path DIR             # a part of the CIFAR-10 in DIR
"""

import argparse
import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent, SquareAttack
from art.estimators.classification import PyTorchClassifier

from iad_ext import IntrospectiveAdversarialDistiller, as_art_classifier
from iad_ext.backbones import create_network
from iad_ext.data import Splits, load_splits


def images(path: Path | None) -> tuple[Splits, float]:
    """Digits with a radius that 16 grey levels can feel, or some of CIFAR-10's images with the usual one."""
    if path is None:
        return load_splits("digits", limit_test=100), 0.1
    return load_splits("cifar10", path=path, limit_train=1000, limit_test=100), 8 / 255


def classifier(image_size: tuple[int, int], *, seed: int) -> PyTorchClassifier:
    """A small network of this package as ART sees it."""
    sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4)
    network = create_network("cifar_resnet8", num_classes=10, seed=seed)
    return as_art_classifier(network, optimizer=sgd, image_size=image_size)


def accuracy(judged: PyTorchClassifier, x: np.ndarray, y: np.ndarray, eps: float) -> str:
    """Percent right on the images as they are and under two of ART's attacks on `judged` itself."""
    pgd = ProjectedGradientDescent(judged, eps=eps, eps_step=eps / 4, max_iter=20, verbose=False)
    square = SquareAttack(judged, eps=eps, max_iter=200, verbose=False)
    shown = {"natural": x, "PGD-20": pgd.generate(x, y), "Square": square.generate(x, y)}
    right = {name: 100 * np.mean(judged.predict(seen).argmax(1) == y) for name, seen in shown.items()}
    return "".join(f"{right[name]:>9.1f}%" for name in shown)


def main(path: Path | None, epochs: int, keep: Path) -> None:
    """Train naturally, attack, train a teacher, distil, attack again."""
    np.random.seed(0)  # ART's own fit and its Square attack draw from here
    torch.manual_seed(0)
    splits, eps = images(path)
    x, y = splits.train.pixels().numpy(), splits.train.labels.numpy()
    x_test, y_test = splits.test.pixels().numpy(), splits.test.labels.numpy()
    print(f"{len(x)} training and {len(x_test)} test images, L∞ radius {eps:.3g}\n")
    print(f"{'':<34}{'natural':>10}{'PGD-20':>10}{'Square':>10}")

    student = classifier(splits.image_size, seed=0)
    student.fit(x, y, batch_size=64, nb_epochs=epochs)
    print(f"{'before: trained as usual':<34}{accuracy(student, x_test, y_test, eps)}", flush=True)

    teacher = classifier(splits.image_size, seed=1)
    hardening = IntrospectiveAdversarialDistiller(teacher, objective="at", eps=eps, precision="fp32")
    hardening.fit(x, y, batch_size=64, nb_epochs=epochs, checkpoint_folder=keep / "teacher")
    print(f"{'the teacher, trained adversarially':<34}{accuracy(teacher, x_test, y_test, eps)}", flush=True)

    drops = torch.optim.lr_scheduler.MultiStepLR(student.optimizer, milestones=[epochs * 2 // 3])
    distiller = IntrospectiveAdversarialDistiller(
        student, teacher, objective="iad1", eps=eps, precision="fp32"
    )
    distiller.fit(x, y, batch_size=64, nb_epochs=epochs, scheduler=drops, checkpoint_folder=keep / "student")
    print(f"{'after: the same network, distilled':<34}{accuracy(student, x_test, y_test, eps)}\n")
    for record in distiller.history:
        trust = "warm-up" if record["trust/mean"] is None else f"mean trust {record['trust/mean']:.3f}"
        print(f"epoch {record['epoch'] + 1}: loss {record['loss/total']:.4f}, {trust}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--path", type=Path, help="folder that holds CIFAR-10; digits when not given")
    parser.add_argument("--epochs", type=int, default=8, help="of each of the three trainings")
    parser.add_argument(
        "--keep", type=Path, help="folder for the fits, to go on from; forgotten when not given"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)  # networks this small lose more by sharing out their work than they gain
    with tempfile.TemporaryDirectory() as forgotten:
        main(given.path, given.epochs, given.keep or Path(forgotten))
