"""How the docs are built: `make docs`. Every warning is an error; nothing is read from a network."""

import inspect
import sys
import typing
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from docutils import nodes
from sphinx.application import Sphinx

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent), str(DOCS.parent / "recipes"), str(DOCS / "inventories")]

import generate  # noqa: E402 (docs/generate.py)
from inventories import ADDRESSES  # noqa: E402
from jaxtyping import AbstractArray  # noqa: E402

import iad_ext  # noqa: E402

# sphinx-autodoc-typehints still calls what Sphinx 10 will remove
warnings.filterwarnings("ignore", message=".*set_application.*is deprecated")

project = "iad-ext"
author = "The iad-ext authors"
copyright = "the iad-ext authors, MIT licence"  # noqa: A001 (Sphinx's name)
version = release = iad_ext.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_autodoc_typehints",  # types out of annotations, tensor shapes among them
    "sphinx_copybutton",
]
exclude_patterns = [
    "results/*/table.md",
    "_build",
    "results/README.md",
    "launch/README.md",
    "inventories",
]  # the READMEs are parts of pages
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
myst_enable_extensions = [
    "colon_fence",
    "deflist",
]  # no mathematics: it would be drawn by a script from elsewhere
myst_heading_anchors = 3
suppress_warnings = [
    "config.cache"
]  # `typehints_formatter` is a function, and functions cannot be kept between builds
nitpicky = True
# what annotations name and no documentation describes
nitpick_ignore = [
    ("py:class", "torchattacks.PGD"),  # torchattacks publishes no inventory
    ("py:class", "torchattacks.TPGD"),
    ("py:class", "torchattacks.attack.Attack"),
    ("py:class", "torch.nn.modules.batchnorm._BatchNorm"),
    ("py:class", "accelerate.state.PartialState"),  # documented under another name, accelerate.PartialState
]

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_use_ivar = True
napoleon_numpy_docstring = False
always_use_bars_union = True
autodoc_typehints = "none"  # sphinx-autodoc-typehints writes them
typehints_defaults = None
typehints_document_rtype = True
default_role = "code-in-docstrings"

intersphinx_mapping = {name: (address, f"inventories/{name}.inv") for name, address in ADDRESSES.items()}

html_theme = "furo"
html_title = "iad-ext"
html_static_path = ["static"]
html_css_files = ["iad.css"]
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_prompt_text = "$ "

# where classes are documented, which is not where they are defined
PUBLIC = {
    "art.attacks.attack.EvasionAttack": "art.attacks.EvasionAttack",
    "art.data_generators.DataGenerator": "art.data_generators.DataGenerator",
    "art.estimators.classification.pytorch.PyTorchClassifier": "art.estimators.classification.PyTorchClassifier",
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "torch.optim.optimizer.Optimizer": "torch.optim.Optimizer",
    "torch._C.Generator": "torch.Generator",
    "accelerate.accelerator.Accelerator": "accelerate.Accelerator",
    "iad_ext.backbones.networks.Loading": "iad_ext.backbones.Loading",
}
KINDS = {"Float": "floats", "Int": "integers", "Bool": "booleans", "UInt8": "uint8"}


def typehints_formatter(annotation: Any, config: Any) -> str | None:  # noqa: ARG001 (the extension's signature)
    """A tensor's annotation as its kind and shape; a class where its own documentation has it."""
    if inspect.isclass(annotation) and issubclass(annotation, AbstractArray):
        shape = ", ".join(annotation.dim_str.split())
        kind = KINDS[annotation.__name__.partition("[")[0]]
        return rf":py:class:`~torch.Tensor` of {kind}" + (rf" ``({shape})``" if shape else r", a scalar")
    if typing.get_origin(annotation) is np.ndarray:
        return ":py:class:`~numpy.ndarray`"
    name = f"{getattr(annotation, '__module__', '')}.{getattr(annotation, '__qualname__', '')}"
    if name in PUBLIC:
        return f":py:class:`~{PUBLIC[name]}`"
    return None


def code_in_docstrings(
    _role: str, rawtext: str, text: str, *_: Any, **__: Any
) -> tuple[list[nodes.Node], list[Any]]:
    """What docstrings have in single backticks: code."""
    return [nodes.literal(rawtext, text)], []


def keep_colons(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:  # noqa: ARG001
    """Let a property's docstring be a sentence: napoleon would take what is before a colon for a type."""
    if what in ("attribute", "property") and lines and lines[0]:
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> None:
    """Write the generated pages before the sources are read."""
    app.add_role("code-in-docstrings", code_in_docstrings)
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
    app.connect("builder-inited", lambda _: generate.write(DOCS / "generated"))
