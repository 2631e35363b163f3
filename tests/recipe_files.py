"""The recipes as files: found, loaded, and called as a command line would."""

import importlib.util
import os
import shlex
import sys
from pathlib import Path

from iad_ext.run import main

RECIPES = Path(__file__).parents[1] / "recipes"

# the smallest run that is one: real images, a network that learns something, seconds on one core
TINY = shlex.split(
    "--data.name digits --student.name cifar_resnet8 --data.limit-train 64 --data.limit-test 32 "
    "--train.batch-size 16 --train.epochs 2 --eval.attacks natural,pgd10 --precision fp32"
)

# one thread is many times faster for networks this small; no network access
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def together(processes):
    """The beginning of a command that accelerate runs in so many processes; what follows is a script, or -m MODULE."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0"]
    return [*launch, "--num_processes", str(processes)]


def names():
    """Every recipe of a method and a student."""
    return sorted(path.stem for path in RECIPES.glob("*_*.py"))


def load(name):
    """The `RECIPE` of recipes/NAME.py, without running it."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.RECIPE


def call(name, *args):
    """Run recipes/NAME.py's main in this process and return its exit code."""
    try:
        main(load(name), [str(arg) for arg in args])
    except SystemExit as stopped:
        return stopped.code
    return 0


def command(name, *args):
    """The command line of recipes/NAME.py in a process of its own."""
    return [sys.executable, str(RECIPES / f"{name}.py"), *map(str, args)]
