"""Run a recipe up to its first update, then leave: `first_step.py FOLDER DEVICE`."""

import os
import runpy
import sys
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "at_resnet18.py"


def main() -> None:
    """Stop the process where the first update returns."""
    folder, device = sys.argv[1:]
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    from iad_ext.loop import Engine

    update = Engine._update

    def first(engine: Engine, *place: Any) -> int:
        update(engine, *place)
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
        sys.stdout.flush()
        os._exit(0)

    Engine._update = first  # type: ignore[method-assign]
    sys.argv = [
        str(RECIPE),
        *("--data.name", "digits", "--data.limit-train", "64", "--data.limit-test", "20"),
        *("--student.name", "cifar_resnet8", "--train.batch-size", "32", "--train.epochs", "1"),
        *("--eval.attacks", "", "--out", folder, "--resume", "never"),
    ]
    runpy.run_path(str(RECIPE), run_name="__main__")


if __name__ == "__main__":
    main()
