"""A small run folder to export and to evaluate: a teacher and its student, trained for seconds on digits."""

import contextlib
import shlex

from recipe_files import TINY, call

STUDENT = "runs/digits/iad1_resnet18-at/seed0"


def trained(folder):
    """Train both in `folder`; return the student's run folder, measured with all attacks."""
    measured = "--eval.attacks natural,fgsm,pgd20,cw_inf,aa --eval.aa-limit 2 --data.limit-train 128"
    with contextlib.chdir(folder):
        assert call("at_resnet18", *TINY, *shlex.split("--train.epochs 1 --eval.attacks natural")) == 0
        assert call("iad1_resnet18", *TINY, *shlex.split(measured)) == 0
    return folder / STUDENT
