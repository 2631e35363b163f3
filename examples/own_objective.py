"""An objective of your own in twenty lines, and its introspective form for nothing.

An objective is a row of weighted terms. A term returns one number an image and names the network passes that it reads;
a training step then runs those passes and no other. The row below is the loss of RSLAD (Zi et al. 2021, "Revisiting
Adversarial Robustness Distillation: Robust Soft Labels Make Student Better"): the student follows the teacher's natural
prediction on natural and on adversarial images alike. (The package has it as `rslad`, with the attack of its own, so
that this one needs another name.) `@row` gives it settings that are checked, and a place among the others:
`objectives.build("soft_labels", …)` knows it, and so does the ART door by name. `introspect` turns it into a method
that the paper does not have: RSLAD by a student who trusts the teacher only as far as it goes.

    python examples/own_objective.py
    python examples/own_objective.py --path DIR            # a part of the CIFAR-10 in DIR
"""

import argparse
import functools
from pathlib import Path

import torch
from art.estimators.classification import PyTorchClassifier

from iad_ext import (
    IntrospectiveAdversarialDistiller,
    Outputs,
    as_art_classifier,
    evaluate,
    introspect,
    objectives,
)
from iad_ext.backbones import create_network
from iad_ext.data import Splits, load_splits
from iad_ext.evaluation import format_table
from iad_ext.objectives import Objective, Term, row
from iad_ext.terms import kl
from iad_ext.types import Labels, PerImage

# ------------------------------------------------------------------------------------------- the twenty lines


def follow_teacher(name: str, student: str, image: str, weight: float) -> Term:
    """KL(T(x) → S(·)), one number an image."""

    def loss(outputs: Outputs, labels: Labels) -> PerImage:  # noqa: ARG001 (every term has this signature)
        return kl(student=outputs.get(student), target=outputs.get("teacher_nat"))

    reads = frozenset({student, "teacher_nat"})
    return Term(name=name, loss=loss, reads=reads, weight=weight, formula=f"KL(T_at(x) → S({image}))")


@row
def soft_labels(*, natural_weight: float = 1 / 6) -> Objective:
    """RSLAD (Zi et al. 2021): 5/6 KL(T(x) → S(x̃)) + 1/6 KL(T(x) → S(x))."""
    on_adversarial = follow_teacher("teacher", "student_adv", "x̃", 1 - natural_weight)
    on_natural = follow_teacher("natural", "student_nat", "x", natural_weight)
    return Objective(name="soft_labels", terms=(on_adversarial, on_natural))


# ------------------------------------------------------------------------------------------- what it can do now


def images(path: Path | None) -> tuple[Splits, float]:
    """Digits with a radius that 16 grey levels can feel, or some of CIFAR-10's images with the usual one."""
    if path is None:
        return load_splits("digits"), 0.1
    return load_splits("cifar10", path=path, limit_train=1000, limit_test=200), 8 / 255


def classifier(seed: int, image_size: tuple[int, int]) -> PyTorchClassifier:
    """A small network of this package as ART sees it."""
    sgd = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4)
    network = create_network("cifar_resnet8", num_classes=10, seed=seed)
    return as_art_classifier(network, optimizer=sgd, image_size=image_size)


def main(path: Path | None, epochs: int) -> None:
    """Show the row, train by it and by its introspective form, and print the table."""
    ours = objectives.build("soft_labels", natural_weight=0.25)
    print(f"{ours!r} = {ours.formula}\nits step runs {', '.join(sorted(ours.needs(epoch=0)))}")
    try:
        objectives.build("soft_labels", natural_wieght=0.25)
    except TypeError as error:
        print(f"a slip is met with: {error}\n")
    with_trust = introspect(soft_labels(), beta=0.1, warmup_epochs=epochs // 3)
    print(f"{with_trust.name} = {with_trust.formula}\n")

    splits, eps = images(path)
    x, y = splits.train.pixels().numpy(), splits.train.labels.numpy()
    teacher = classifier(0, splits.image_size)
    networks = {"AT (teacher)": teacher}
    fit = {"batch_size": 64, "nb_epochs": epochs}
    IntrospectiveAdversarialDistiller(teacher, objective="at", eps=eps, precision="fp32").fit(x, y, **fit)
    for name, objective in (("RSLAD", "soft_labels"), ("RSLAD, introspective", with_trust)):
        networks[name] = classifier(1, splits.image_size)
        trainer = IntrospectiveAdversarialDistiller(
            networks[name], teacher, objective=objective, eps=eps, precision="fp32"
        )
        trainer.fit(x, y, **fit)
    attacks = ("natural", "fgsm", "pgd20", "cw_inf")
    results = {
        name: evaluate(network.model, splits.test.pixels(), splits.test.labels, attacks=attacks, eps=eps)
        for name, network in networks.items()
    }
    print(f"{len(x)} training images, L∞ radius {eps:.3g}\n\n{format_table(results)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--path", type=Path, help="folder that holds CIFAR-10; digits when not given")
    parser.add_argument("--epochs", type=int, default=8, help="of each of the three trainings")
    given = parser.parse_args()
    torch.set_num_threads(1)  # networks this small lose more by sharing out their work than they gain
    main(given.path, given.epochs)
