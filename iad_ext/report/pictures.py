"""The kept images of a run as PNGs inside the page: the image, its adversarial version, their difference magnified."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from iad_ext import files
from iad_ext.report.html import Html, count, number, tag
from iad_ext.units import show_fraction

MOST_IMAGES, LARGEST = 64, 512  # what a page can hold
GROUPS = {
    "worst": (
        "Worst images",
        "The smallest margins of the student under attack: how far the true class is behind.",
    ),
    "distrusted": (
        "Most distrusted images",
        "Those on whose adversarial versions the teacher gives the true class the least probability. "
        "Here IAD turns to the student's own answer.",
    ),
}


def cards(path: Path, most: int | None = None) -> tuple[Mapping[str, Any], dict[str, list[Html]]]:
    """What the gallery says of itself, and a card an image, by group; of each group the first `most`.

    Raises:
        ValueError: it is no gallery.
    """
    try:
        with safe_open(path, "pt") as held:
            about = files.parse_json((held.metadata() or {}).get("about", "{}"))
            tensors: dict[str, Tensor] = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error
    if not isinstance(about, dict) or not isinstance(about.get("eps"), int | float):
        raise ValueError(f"{path.name} does not say its radius")
    groups: dict[str, list[Html]] = {}
    for group in GROUPS:
        own = {name.partition("/")[2]: t for name, t in tensors.items() if name.startswith(f"{group}/")}
        if own:
            _check(own, path)
            classes = [str(name) for name in about.get("classes", ())]
            shown = range(len(own["label"]))[:most]
            groups[group] = [_card(own, k, classes, float(about["eps"])) for k in shown]
    return about, groups


def said(about: Mapping[str, Any]) -> str:
    """Of which images, under what, and how the differences are to be read."""
    eps = float(about["eps"])
    return (
        f"Of the first {count(about.get('n'))} test images, under PGD-20 at ε = {show_fraction(eps)} on the network "
        f"called {about.get('network')}. The difference is magnified {1 / (2 * max(eps, 1 / 255)):.0f} times: grey is "
        "none, black and white are ∓ε."
    )


def _check(own: Mapping[str, Tensor], path: Path) -> None:
    images, n = own["images"], len(own["label"])
    if (
        images.dtype.is_floating_point
        or images.ndim != 4
        or images.shape[1] not in (1, 3)
        or not n <= MOST_IMAGES
        or max(images.shape[2:]) > LARGEST
        or own["adversarial"].shape != images.shape
        or any(len(tensor) != n for tensor in own.values())
    ):
        raise ValueError(f"{path.name} does not hold images that fit together: {tuple(images.shape)}")


def _card(own: Mapping[str, Tensor], k: int, classes: Sequence[str], eps: float) -> Html:
    true, natural, attacked = (int(own[n][k]) for n in ("label", "said_natural", "said_adversarial"))
    moved = f"{_class(classes, natural)} → {_class(classes, attacked)}" if natural != attacked else ""
    truth = f"{_class(classes, true)}: "
    answer = f"the student says {moved or _class(classes, attacked) + ' to both'}"
    numbers = f"margin {number(float(own['margin'][k]), 2)}"
    if "trust" in own:
        numbers += f" · P_T(x̃|y) {float(own['trust'][k]):.2g}"
    return tag(
        "div",
        tag(
            "img",
            src=_data_uri(_three(own["images"][k], own["adversarial"][k], eps)),
            alt=f"image {int(own['position'][k])}, its adversarial version, and their difference",
            loading="lazy",
        ),
        tag("div", tag("span", "x"), tag("span", "x̃"), tag("span", "x̃ − x"), class_="under"),
        tag("p", tag("b", truth), answer),
        tag("p", f"test image {int(own['position'][k])} · {numbers}", class_="soft"),
        class_="card",
    )


def _class(classes: Sequence[str], k: int) -> str:
    return classes[k] if 0 <= k < len(classes) else f"class {k}"


def _three(natural: Tensor, adversarial: Tensor, eps: float) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """The three beside each other as RGBA; in the difference, grey is none and ±ε are black and white."""
    x, x_adv = (t.permute(1, 2, 0).numpy().astype(np.float64) for t in (natural, adversarial))
    difference = 127.5 + (x_adv - x) / max(eps, 1 / 255) / 2
    panels = [np.clip(np.rint(p), 0, 255).astype(np.uint8) for p in (x, x_adv, difference)]
    height, width, channels = panels[0].shape
    gap = max(1, width // 16)
    whole = np.zeros((height, 3 * width + 2 * gap, 4), dtype=np.uint8)
    for place, panel in enumerate(panels):
        first = place * (width + gap)
        whole[:, first : first + width, :3] = panel if channels == 3 else panel.repeat(3, axis=2)
        whole[:, first : first + width, 3] = 255
    return whole


def _data_uri(pixels: "np.ndarray[Any, np.dtype[np.uint8]]") -> str:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
