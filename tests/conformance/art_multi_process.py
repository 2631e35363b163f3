"""Fits through the ART door in every process that launches this; each leaves its weights in the folder given.

`fits` is also what one process alone trains, for comparison.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.data_generators import DataGenerator
from art.estimators.classification import PyTorchClassifier
from torch import nn

from iad_ext import IntrospectiveAdversarialDistiller
from iad_ext.trainer import distiller as trainer_module


def network(seed, *, norm=False, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3, stride=2), *([nn.BatchNorm2d(4)] if norm else []), nn.Tanh()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 9, 3)).to(dtype)


def classifier(module):
    return PyTorchClassifier(
        module,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9),
        input_shape=(1, 8, 8),
        nb_classes=3,
        clip_values=(0, 1),
        device_type="cpu",
    )


class Shuffled(DataGenerator):
    """Batches in another order in every process: the main one's must be those that count."""

    def __init__(self, x, y, rank):
        super().__init__(size=len(x), batch_size=10)
        self.x, self.y, self.random = x, y, np.random.default_rng(rank)

    def get_batch(self):
        chosen = self.random.choice(len(self.x), 10, replace=False)
        return self.x[chosen], self.y[chosen]


def fits(rank=0):
    random = np.random.default_rng(0)
    x, y = random.random((27, 1, 8, 8)), random.integers(0, 3, 27)

    def trainer(**settings):
        norm = settings.pop("norm", False)
        dtype = settings.pop("dtype", torch.float64)
        student = classifier(network(1 + rank, norm=norm, dtype=dtype))
        return IntrospectiveAdversarialDistiller(
            student, network(9, dtype=dtype), settings.pop("attack", lambda _: None)(student), **settings
        )

    done = {}
    arrays = trainer(objective_settings={"warmup_epochs": 1})
    # 27 = 10 + 10 + 7: parts of unequal size; validation of 5 images is shared out as 2 and 3
    arrays.fit(x, y, validation_data=(x[:5], y[:5]), batch_size=10, nb_epochs=2)
    done["arrays"] = arrays
    beyond = {"average": "ema", "average_decay": 0.7, "awp": 0.02, "bn_order": "faithful"}
    more = random.random((9, 1, 8, 8)), random.integers(0, 3, 9)
    mixed = {"extra_data": more, "extra_share": 0.3, "augment": "idbh_weak", "flip": True, "cutmix": 0.5}
    for name, norm in (("beyond", False), ("beyond with norm", True)):
        done[name] = trainer(objective="ard", norm=norm, **beyond)
        done[name].fit(x, y, validation_data=(x[:5], y[:5]), batch_size=10, nb_epochs=2, **mixed)
    generator = trainer(objective="trades")
    generator.fit_generator(Shuffled(x, y, rank), nb_epochs=2)
    done["generator"] = generator
    foreign = trainer(
        objective="ard",
        dtype=torch.float32,
        norm=True,
        attack=lambda student: ProjectedGradientDescent(student, eps=0.1, max_iter=2, verbose=False),
    )
    foreign.fit(x.astype(np.float32), y, batch_size=10, nb_epochs=2)
    done["foreign"] = foreign
    measured = trainer(objective="at", dtype=torch.float32)
    measured.fit(x, y, batch_size=10, nb_epochs=40)
    done["measured"] = measured
    return {
        name: {
            "weights": {key: value.clone() for key, value in t.get_classifier().model.state_dict().items()},
            "history": [
                {key: value for key, value in record.items() if not key.startswith(("time/", "memory/"))}
                for record in t.history
            ],
            "training": t.get_classifier().model.training,
            "raw": t.raw_weights or {},
        }
        for name, t in done.items()
    }


def noting(shares):
    """Note where each share of a validation begins and how many images it has."""
    original = trainer_module.accuracy_under

    def noted(network, images, labels, name, **settings):
        shares.add((settings["first"], len(images)))
        return original(network, images, labels, name, **settings)

    trainer_module.accuracy_under = noted


def refused():
    """What more processes than images in a batch are told."""
    random = np.random.default_rng(0)
    x, y = random.random((4, 1, 8, 8)), random.integers(0, 3, 4)
    try:
        IntrospectiveAdversarialDistiller(classifier(network(1)), objective="at").fit(
            x, y, batch_size=1, nb_epochs=1
        )
    except ValueError as error:
        return str(error)
    return None


if __name__ == "__main__":
    import os

    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    shares = set()
    noting(shares)
    left = fits(rank) | {"refused": refused(), "validated": shares}
    torch.save(left, Path(sys.argv[1]) / f"{rank}.pt")
    torch.distributed.destroy_process_group()
