"""RSLAD with a ResNet-18 student (Zi et al. 2021), in its source's settings.

The source's teacher is a WideResNet-34-10; `--teacher` takes one.
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
    title="RSLAD, ResNet-18 student (Zi et al. 2021)",
    settings=Settings(
        recipe="rslad_resnet18",
        student=StudentSettings(name="cifar_resnet18"),
        objective=ObjectiveSettings(name="rslad", tau=1.0, adv_weight=5 / 6),
        attack=AttackSettings(name="rslad", eps=8 / 255, step=2 / 255, steps=10, mode="eval"),
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
    ),
)

if __name__ == "__main__":
    main(RECIPE)
