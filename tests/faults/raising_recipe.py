"""The recipe of IAD-I, in which the second process fails in the middle of a step."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

import iad1_resnet18

from iad_ext import run, step

whole, calls = step.Step.__call__, 0


def failing(self, *args, **kwargs):
    global calls
    calls += 1
    if os.environ["RANK"] == "1" and calls == 7:
        raise RuntimeError("rank 1 fails here")
    return whole(self, *args, **kwargs)


step.Step.__call__ = failing

if __name__ == "__main__":
    run.main(iad1_resnet18.RECIPE)
