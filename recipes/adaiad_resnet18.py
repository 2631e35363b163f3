"""AdaIAD with a ResNet-18 student (Huang et al. 2023): AdaAD with introspection.

Warm-up and temperature are the released code's: 60 of 200 epochs, τ = 30.
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
    title="AdaIAD, ResNet-18 student (Huang et al. 2023)",
    settings=Settings(
        recipe="adaiad_resnet18",
        student=StudentSettings(name="cifar_resnet18"),
        objective=ObjectiveSettings(
            name="adaiad",
            beta=0.1,
            gamma="1-alpha",
            tau=30.0,
            introspection_tau=1.0,
            adv_weight=1.0,
            gate_teacher=False,
            warmup_epochs=60,
        ),
        attack=AttackSettings(name="adaad", eps=8 / 255, step=2 / 255, steps=10, mode="eval"),
        train=TrainSettings(
            epochs=200,
            batch_size=128,
            lr=0.1,
            momentum=0.9,
            weight_decay=5e-4,
            drops=(100, 150),
            drop_factor=0.1,
            padding=4,
            flip=True,
        ),
        teacher="at",
    ),
)

if __name__ == "__main__":
    main(RECIPE)
