"""ADR with a ResNet-18 (Wu et al. 2024): no teacher but the moving average of the student's own weights.

λ rises from 0.7 to 0.95 and τ falls from 2.5 to 2 over the run; on CIFAR-100 τ falls from 1.5 to 1, on Tiny-ImageNet
from 2 to 1.5 in 80 epochs, with λ from 0.5 to 0.9.
"""

from iad_ext.run import main
from iad_ext.settings import (
    AttackSettings,
    ObjectiveSettings,
    Recipe,
    Settings,
    StudentSettings,
    TrainSettings,
)

RECIPE = Recipe(
    title="ADR, ResNet-18 (Wu et al. 2024)",
    settings=Settings(
        recipe="adr_resnet18",
        student=StudentSettings(name="cifar_resnet18"),
        objective=ObjectiveSettings(name="adr"),
        attack=AttackSettings(name="adr", eps=8 / 255, step=2 / 255, steps=10, mode="train"),
        train=TrainSettings(
            epochs=200,
            batch_size=128,
            lr=0.1,
            momentum=0.9,
            nesterov=True,
            weight_decay=5e-4,
            drops=(100, 150),
            drop_factor=0.1,
            padding=4,
            flip=True,
        ),
    ),
    by_data={
        "cifar100": {"objective.options": "temperatures=1.5:1"},
        "tiny-imagenet": {
            "objective.options": "rectification=0.5:0.9,temperatures=2:1.5",
            "train.epochs": 80,
            "train.drops": (40, 60),
            "train.padding": 4,
        },
    },
)

if __name__ == "__main__":
    main(RECIPE)
