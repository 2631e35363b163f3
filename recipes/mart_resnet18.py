"""MART with a ResNet-18 (Wang et al. 2020), in its source's settings: no teacher.

The released code counts epochs from 1 and writes the radius as 0.031, the step as 0.007.
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
    title="MART, ResNet-18 (Wang et al. 2020)",
    settings=Settings(
        recipe="mart_resnet18",
        student=StudentSettings(name="cifar_resnet18"),
        objective=ObjectiveSettings(name="mart", self_weight=5.0),
        attack=AttackSettings(name="mart", eps=8 / 255, step=2 / 255, steps=10, mode="eval"),
        train=TrainSettings(
            epochs=120,
            batch_size=128,
            lr=0.01,
            momentum=0.9,
            weight_decay=3.5e-3,
            drops=(74, 89, 99),
            drop_factor=0.1,
            padding=4,
            flip=True,
        ),
    ),
)

if __name__ == "__main__":
    main(RECIPE)
