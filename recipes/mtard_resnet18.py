"""MTARD with a ResNet-18 student (Zhao et al. 2022), in its source's settings: a robust and a natural teacher."""

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
    title="MTARD, ResNet-18 student (Zhao et al. 2022)",
    settings=Settings(
        recipe="mtard_resnet18",
        student=StudentSettings(name="cifar_resnet18"),
        objective=ObjectiveSettings(name="mtard", tau=1.0, options="balance_rate=0.025"),
        attack=AttackSettings(name="mart", eps=8 / 255, step=2 / 255, steps=10, mode="eval"),
        train=TrainSettings(
            epochs=300,
            batch_size=128,
            lr=0.1,
            momentum=0.9,
            weight_decay=2e-4,
            drops=(215, 260, 285),
            drop_factor=0.1,
            padding=4,
            flip=True,
        ),
        teacher="at",
        natural_teacher="st",
    ),
)

if __name__ == "__main__":
    main(RECIPE)
