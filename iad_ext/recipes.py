"""Where the recipes are, and how one is read without running it."""

import functools
import importlib.util
from pathlib import Path

from iad_ext.names import unknown
from iad_ext.settings import Recipe


def folder() -> Path:
    """Where the recipes are: inside an installed package, or beside the package in its source tree.

    Raises:
        FileNotFoundError: they are in neither place.
    """
    package = Path(__file__).parent
    for found in (package / "_recipes", package.parent / "recipes"):
        if (found / "at_resnet18.py").is_file():
            return found
    raise FileNotFoundError(f"this installation in {package} has no recipes; install iad-ext again")


def file_of(name: str) -> Path:
    """The file of the recipe called `name`, such as `iad1_resnet18`.

    Raises:
        ValueError: there is no such recipe.
    """
    known = {file.stem: file for file in folder().glob("*_*.py")}
    if name not in known:
        raise ValueError(unknown("recipe", name, known))
    return known[name]


@functools.cache
def load(name: str) -> Recipe:
    """The `RECIPE` of the recipe called `name`.

    Raises:
        ValueError: there is no such recipe.
    """
    file = file_of(name)
    spec = importlib.util.spec_from_file_location(f"iad_ext_recipe_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    recipe: Recipe = module.RECIPE
    return recipe
