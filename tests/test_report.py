"""Report pages: made from a folder alone, safe whatever the files hold, and fit to be looked at."""

import base64
import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from recipe_files import TINY, call
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from iad_ext import cli, evaluate, paper, plots, recipes, report
from iad_ext.evaluation import gallery
from iad_ext.settings import override, to_yaml

RUN = "runs/digits/iad1_resnet18-at/seed0"
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "javascript:alert(3)",
    "' onload='x",
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.words, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def attribute(self, name):
        return [attributes[name] for _, attributes in self.elements if attributes.get(name) is not None]


def page_of(folder):
    return Page(report.write(folder).read_text())


def refuse_anything_active(page):
    """No script, no handler, nothing fetched, no link that runs."""
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & {
        tag for tag, _ in page.elements
    }
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
    assert all(source.startswith("data:image/png;base64,") for source in page.attribute("src"))
    for link in page.attribute("href"):
        assert ":" not in link
        assert not link.startswith("/")
    assert "url(http" not in " ".join(page.attribute("style"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A teacher and its student, measured, as the recipes leave them."""
    root = tmp_path_factory.mktemp("trained")
    more = shlex.split("--eval.attacks natural,pgd20 --train.epochs 3 --data.limit-train 96")
    with contextlib.chdir(root):
        assert call("at_resnet18", *TINY, *more) == 0
        assert call("iad1_resnet18", *TINY, *more) == 0
    return root


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the student's folder, elsewhere."""
    return shutil.copytree(trained / RUN, tmp_path / "runs/mine/seed0")


# ---------------------------------------------------------------------------------------------- a run


def test_every_finished_run_has_its_report(trained):
    for folder in ("runs/digits/at_resnet18/seed0", RUN):
        page = Page((trained / folder / "report.html").read_text())
        assert page.open == []
        refuse_anything_active(page)


def test_the_folder_alone_makes_the_same_page(trained, run):
    """Without its networks, its checkpoints and its place in the world."""
    before = (trained / RUN / "report.html").read_text()
    for name in ("best", "last", "checkpoints", "evaluation"):
        shutil.rmtree(run / name)
    (run / "report.html").unlink()
    assert report.write(run).read_text() == before


def test_the_headline_is_what_was_measured(run):
    page, results = page_of(run), json.loads((run / "results.json").read_text())
    best = results["best"]
    assert "IAD-I on digits" in page.text
    for name in ("natural", "pgd20"):
        low, high = best["interval"][name]
        assert f"{best[name]:.1f}" in page.text
        assert f"{best[name]:.2f}" in page.text
        assert f"95%: {low:.1f} to {high:.1f}" in page.text
    assert f"of {best['n']} natural images" in page.text
    assert f"n = {best['n']}" in page.text
    assert "measured on 32 images" in page.text
    shown = {tag for tag, _ in page.elements}
    assert {"svg", "table", "figure", "img", "details"} <= shown
    captions = [name for name in ("Figure 1a.", "Figure 2b.", "Figure 3.", "Figure 4.") if name in page.text]
    assert len(captions) == 4


def test_beta_beside_another_trust_is_not_told(run):
    assert ("β " in page_of(run).text, "this run's" in page_of(run).text) == (True, True)
    settings = yaml.safe_load((run / "settings.yaml").read_text())
    settings["objective"]["trust"] = "three_cases"
    (run / "settings.yaml").write_text(yaml.safe_dump(settings))
    page = page_of(run).text
    assert "β 0.1" not in page
    assert "this run's" not in page


def test_what_casts_doubt_is_said_first(run):
    results = json.loads((run / "results.json").read_text())
    results["best"]["flags"] = [{"flag": "masked", "attack": "pgd20", "detail": "it is odd", "images": 3}]
    results["changed"] = [{"setting": "train.lr", "before": 0.1, "now": 0.2, "epoch": 1, "step": 0}]
    results["selection"] = "test"
    results["data"]["encoding_note"] = "JPEG, with loss"
    (run / "results.json").write_text(json.dumps(results))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) | {"train/skipped_steps": 2} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    text = page_of(run).text
    for said in (
        "masked (best, PGD-20): it is odd",
        "another train.lr from epoch 2 on: 0.1 before, 0.2 then",
        "6 steps were skipped",
        "chosen on the test images",
        "JPEG, with loss",
    ):
        assert text.index(said) < text.index("Percent right"), said
    assert "no sign of masked gradients" not in text


def as_a_run_of(run, recipe, data, teacher, **changed):
    """The run's page had its settings been those of a recipe for so many epochs, with some changed."""
    settings = recipes.load(recipe).defaults(data=data, epochs=20)
    changed = {name.replace("__", "."): value for name, value in changed.items()}
    settings = override(settings, {"teacher": teacher, "data.selection": "test", **changed})
    (run / "settings.yaml").write_text(to_yaml(settings))
    return page_of(run).text


@pytest.mark.parametrize(
    ("recipe", "data", "teacher", "changed", "where", "row"),
    [
        ("iad1_resnet18", "cifar10", "at", {}, "Table 2, IAD-I (AT)", {"method": "IAD-I", "teacher": "at"}),
        (
            "akd2_resnet18",
            "cifar100",
            "runs/cifar100/trades_resnet18/seed1",
            {},
            "Table 2, AKD2 (TRADES)",
            {"method": "AKD2", "teacher": "trades"},
        ),
        ("trades_wrn34", "cifar10", None, {}, "Table 3, TRADES", {"method": "TRADES"}),
        (
            "iad2_preactresnet18",
            "tiny-imagenet",
            "at",
            {},
            "Table 4, IAD-II (AT)",
            {"method": "IAD-II", "teacher": "at"},
        ),
        (
            "iad2_resnet18",
            "cifar10",
            "at",
            {"objective__beta": 1.0, "objective__warmup_epochs": 0},
            "Table 5, IAD-II, β = 1",
            {"method": "IAD-II", "beta": 1.0},
        ),
        (
            "iad1_resnet18",
            "cifar10",
            "at",
            {"objective__warmup_epochs": 4},  # a fifth of the epochs
            "Table 6, IAD-I, warm-up 40",
            {"method": "IAD-I", "warmup_epochs": 40},
        ),
        (
            "akd2_resnet18",
            "cifar10",
            "at",
            {"objective__name": "akd2_down", "objective__beta": 0.1},
            "Table 7, AKD2, partially trusted",
            {"method": "AKD2, partially trusted"},
        ),
        (
            "iad1_preactresnet18",
            "tiny-imagenet",
            "at",
            {"objective__gate_teacher": True},
            "Table 8, IAD-I-Down",
            {"method": "IAD-I-Down"},
        ),
        (
            "iad1_resnet18",
            "cifar10",
            "at",
            {"objective__gamma": "4.0"},
            "Table 9, IAD-I, γ = 4",
            {"method": "IAD-I", "gamma": 4.0},
        ),
        (
            "trades_resnet18",
            "cifar10",
            None,
            {"objective__tau": 60.0},
            "Table 10, TRADES, τ = 60",
            {"tau": 60},
        ),
        (
            "iad1_resnet18",
            "cifar10",
            "at",
            {"objective__tau": 0.1},
            "Table 11, IAD-I, τ = 0.1",
            {"method": "IAD-I", "tau": 0.1},
        ),
        (
            "ard_resnet18",
            "cifar10",
            "at",
            {"objective__weights": "label=1"},
            "Table 12, label 1, teacher 1",
            {"label_ce_nat": "1", "self_kl": "0", "teacher_kl_adv": "1"},
        ),
        (
            "akd2_resnet18",
            "cifar10",
            "at",
            {"objective__weights": "teacher=0"},
            "Table 13, label, natural teacher",
            {"terms": "label + teacher_st"},
        ),
    ],
)
def test_a_run_of_the_paper_stands_beside_the_paper_s_numbers(
    run, recipe, data, teacher, changed, where, row
):
    text = as_a_run_of(run, recipe, data, teacher, **changed)
    expected = paper.numbers(where.partition(",")[0].lower().replace(" ", ""), data=data, **row)
    assert f"paper {where} {expected['natural']:.2f} {expected['pgd20']:.2f}" in text
    assert f"paper {expected['pgd20']:.1f} ┊" in text
    epochs = recipes.load(recipe).defaults(data=data).train.epochs
    assert (
        f"It differs from the paper's by train.epochs 20 for {epochs}; 32 test images at the least." in text
    )


def test_a_variant_that_the_paper_does_not_have_says_what_sets_it_apart(run):
    """No number of the paper is its own; those of the nearest row stand beside, named as such."""
    changed = {"objective__gamma": "4", "objective__tau": 0.1, "attack__step": 4 / 255}
    text = as_a_run_of(run, "iad1_resnet18", "cifar10", "at", **changed)
    assert "paper, nearest Table 9, IAD-I, γ = 4" in text
    assert (
        "no run with this loss: the nearest differs by objective.tau 0.1 for 1.0; attack.step 4/255 for 2/255;"
        in text
    )
    assert "┊" not in text


def test_another_training_is_said_beside_the_paper_s_row(run):
    changed = {"train__rates": "cosine", "train__awp": 0.01, "average__name": "ema", "eval__eps": 4 / 255}
    text = as_a_run_of(run, "ard_resnet18", "cifar10", "at", **changed)
    assert "paper Table 2, ARD (AT)" in text
    for said in ("train.rates cosine for drops", "train.awp 0.01 for 0.0", "average.name ema for none"):
        assert said in text[text.index("It differs from the paper's by") :]
    assert "eval.eps 4/255 for 8/255" in text


def test_another_teacher_and_extra_images_are_said_beside_the_paper_s_row(run):
    for teacher, apart in {
        "at": None,
        "runs/cifar10/at_resnet18/seed3": None,
        "runs/cifar10/at_resnet18/seed3/best": None,
        "runs/cifar10/at_resnet18,epochs=6/seed0": "teacher at_resnet18,epochs=6 for at_resnet18",
        "runs/cifar10/at_wrn34/seed0": "teacher at_wrn34 for at_resnet18",
    }.items():
        text = as_a_run_of(run, "ard_resnet18", "cifar10", teacher)
        assert "paper Table 2, ARD (AT)" in text
        said = text[text.index("It differs from the paper's by") :].partition(". ")[0]
        assert ("teacher" in said) == (apart is not None)
        assert (apart or "") in said
    changed = {"data__extra": "generated.npz", "data__extra_share": 0.7}
    text = as_a_run_of(run, "ard_resnet18", "cifar10", "at", **changed)
    assert "data.extra generated.npz for none; data.extra_share 0.7 for 0.0" in text


@pytest.mark.parametrize("teacher", ["at_home/best.pt", "models/at/net.pt", "hf-hub:me/at_wrn34"])
def test_a_teacher_of_nobody_knows_which_recipe_is_no_row_of_the_paper(run, teacher):
    assert "paper Table" not in as_a_run_of(run, "ard_resnet18", "cifar10", teacher)


def test_a_run_that_the_paper_does_not_have_claims_none(run):
    assert "Table 2" not in page_of(run).text


def test_an_unfinished_run_has_a_page(run):
    for name in (
        "results.json",
        "gallery.safetensors",
        "robust.safetensors",
        "history.jsonl",
        "environment.json",
    ):
        (run / name).unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(lines[0] + "\n")
    page = page_of(run)
    assert "trained for 1 of 3 epochs. It has not been measured yet." in page.text
    assert "Figure 1a." in page.text
    (run / "metrics.jsonl").unlink()
    assert "trained for 0 of 3 epochs" in page_of(run).text


def test_accuracy_by_radius_is_shown_where_it_was_measured(run):
    results = json.loads((run / "results.json").read_text())
    results["best"] |= {"curve": {"0": 81.5, "8/255": 43.25, "0.15": 3.0}, "curve_n": 1234}
    (run / "results.json").write_text(json.dumps(results))
    text = page_of(run).text
    assert "Accuracy by radius (best, n = 1,234)" in text
    assert "ε 0 8/255 0.15 best 81.5 43.2 3.0" in text
    assert "Robust accuracy by radius" in text
    assert "cannot be shown" not in text


# ---------------------------------------------------------------------------------------------- hostile, damaged


def _spoilt(value, words):
    """Every string of a value replaced by a hostile one, keys kept."""
    if isinstance(value, dict):
        return {key: _spoilt(held, words) for key, held in value.items()}
    if isinstance(value, list):
        return [_spoilt(held, words) for held in value]
    return words if isinstance(value, str) else value


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_words_in_any_file_stay_words(run, words):
    settings = _spoilt(yaml.safe_load((run / "settings.yaml").read_text()), words)
    settings[words] = {words: words}
    (run / "settings.yaml").write_text(yaml.safe_dump(settings))
    for name in ("results.json", "environment.json"):
        content = _spoilt(json.loads((run / name).read_text()), words) | {words: words}
        (run / name).write_text(json.dumps(content))
    flag = {"flag": words, "attack": words, "detail": words, "images": 1}
    results = json.loads((run / "results.json").read_text())
    results["best"]["flags"], results["changed"] = (
        [flag],
        [dict.fromkeys(("setting", "before", "now"), words)],
    )
    results["changed"][0]["epoch"] = 0
    (run / "results.json").write_text(json.dumps(results))
    (run / "history.jsonl").write_text(json.dumps({"event": words, "time": words, "epoch": 0}) + "\n")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    records = [record | {f"loss/{words}": 0.1} for record in records]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    about = json.dumps({"eps": 0.1, "n": 32, "network": words, "classes": [words] * 10})
    save_file(load_file(run / "gallery.safetensors"), run / "gallery.safetensors", {"about": about})
    page = page_of(run)
    assert page.open == []
    refuse_anything_active(page)
    assert page.text.count(words) > 20
    assert "cannot be shown" not in page.text


@pytest.mark.parametrize("name", ["environment.json", "history.jsonl", "gallery.safetensors"])
def test_a_damaged_file_is_named_and_the_rest_is_shown(run, name):
    path = run / name
    path.write_bytes(path.read_bytes()[:40])
    if name == "history.jsonl":  # torn lines are passed over as everywhere; this is none
        path.write_text("3\n")
    text = page_of(run).text
    assert text.count("cannot be shown") == 1
    assert "Figure 1a." in text


def test_numbers_that_are_none_do_not_stop_the_page(run):
    results = json.loads((run / "results.json").read_text())
    results["best"] = {"natural": "high", "n": None, "interval": [], "flags": 3}
    results["data"], results["changed"], results["epochs"] = [1], None, "two"
    (run / "results.json").write_text(json.dumps(results))
    page = page_of(run)
    assert "cannot be shown" in page.text
    assert "Figure 2b." in page.text


@pytest.mark.parametrize("change", ["floats", "too many", "shapes", "radius"])
def test_a_gallery_that_is_none_is_named(run, change):
    held = load_file(run / "gallery.safetensors")
    about = {"eps": 0.1, "n": 32, "classes": []}
    if change == "floats":
        held["worst/images"] = held["worst/images"].float()
    elif change == "too many":
        held = {key: value.repeat_interleave(30, dim=0) for key, value in held.items()}
    elif change == "shapes":
        held["worst/margin"] = held["worst/margin"][:3]
    else:
        about["eps"] = "wide"
    save_file(held, run / "gallery.safetensors", {"about": json.dumps(about)})
    text = page_of(run).text
    assert "the images cannot be shown" in text
    assert "Worst images" not in text


def test_a_report_that_fails_is_a_warning_and_no_more(trained, tmp_path, monkeypatch, caplog):
    def fails(folder):
        raise RuntimeError("no paper left")

    monkeypatch.setattr(report, "write", fails)
    with contextlib.chdir(tmp_path):
        assert (
            call("at_resnet18", *TINY, *shlex.split("--train.epochs 1 --eval.attacks natural --out r")) == 0
        )
        assert (tmp_path / "r/results.json").is_file()
    (said,) = [record.getMessage() for record in caplog.records if "report" in record.getMessage()]
    assert said == "no report (RuntimeError: no paper left); iad-ext report r"


# ---------------------------------------------------------------------------------------------- the gallery


def _linear(seed, classes=5):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 6, classes)).eval()


def test_the_gallery_keeps_the_images_that_a_loop_would():
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (40, 3, 6, 6), dtype=torch.uint8, generator=generator)
    labels = torch.randint(5, (40,), generator=generator)
    student, teacher, eps = _linear(1), _linear(2), 0.05
    everything = gallery.pick(student, images, labels, teacher=teacher, eps=eps, kept=40, batch_size=7)
    kept = gallery.pick(student, images, labels, teacher=teacher, eps=eps, kept=6, batch_size=40)
    flags = evaluate(student, images, labels, attacks=("pgd20",), eps=eps)["robust"]["pgd20"]
    order = everything["worst/position"]
    assert torch.equal(images[order], everything["worst/images"])
    moved = everything["worst/adversarial"].int() - everything["worst/images"].int()
    assert 0.9 * eps * 255 < moved.abs().max() <= eps * 255 + 0.5
    for k, place in enumerate(order.tolist()):
        y = int(labels[place])
        said = int(everything["worst/said_adversarial"][k])
        assert (said == y) == bool(flags[place])
        assert int(everything["worst/label"][k]) == y
        x_adv = everything["worst/adversarial"][k].float() / 255  # rounded to bytes
        row = student(x_adv[None])[0].tolist()
        margin = row[y] - max(value for c, value in enumerate(row) if c != y)
        assert float(everything["worst/margin"][k]) == pytest.approx(margin, abs=0.05)
        trust = teacher(x_adv[None]).softmax(dim=1)[0, y].item()
        assert float(everything["worst/trust"][k]) == pytest.approx(trust, abs=0.02)
        natural = int(student(images[place][None].float() / 255).argmax())
        assert int(everything["worst/said_natural"][k]) == natural
    for group, key in (("worst", "margin"), ("distrusted", "trust")):
        values = everything[f"{group}/{key}"].tolist()
        assert values == sorted(values)
        assert torch.equal(kept[f"{group}/position"], everything[f"{group}/position"][:6])
    alone = gallery.pick(student, images, labels, eps=eps, kept=6)
    assert {name.partition("/")[0] for name in alone} == {"worst"}


def test_a_run_s_gallery_is_of_its_first_test_images_and_its_teacher(trained):
    with safe_open(trained / RUN / "gallery.safetensors", "pt") as held:
        about = json.loads(held.metadata()["about"])
        assert sorted({name.partition("/")[0] for name in held.keys()}) == ["distrusted", "worst"]  # noqa: SIM118
        assert len(held.get_tensor("worst/label")) == gallery.KEPT
    assert about == {
        "attack": "pgd20",
        "eps": 0.1,
        "n": 32,
        "network": "best",
        "classes": [str(k) for k in range(10)],
    }
    teacher = trained / "runs/digits/at_resnet18/seed0/gallery.safetensors"
    assert {name.partition("/")[0] for name in load_file(teacher)} == {"worst"}


def test_the_pictures_are_x_its_adversarial_version_and_their_difference(run):
    held = load_file(run / "gallery.safetensors")
    first = page_of(run).attribute("src")[0]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(first.partition(",")[2]))))
    x, x_adv = (held[f"worst/{name}"][0].permute(1, 2, 0).numpy() for name in ("images", "adversarial"))
    side = x.shape[1]
    gap = (pixels.shape[1] - 3 * side) // 2
    assert np.array_equal(pixels[:, :side, :3], x)
    assert np.array_equal(pixels[:, side + gap : 2 * side + gap, :3], x_adv)
    difference = pixels[:, -side:, :3].astype(float) / 255
    expected = 0.5 + (x_adv.astype(float) - x) / 255 / (2 * 0.1)  # ±ε fill the range
    assert np.abs(difference - expected.clip(0, 1)).max() < 0.01


# ---------------------------------------------------------------------------------------------- a study


def study(folder, **changed):
    """A study of two settings in the form that the runner writes."""

    def cell(mean):
        return {"mean": mean, "std": 0.5, "values": [mean - 0.5, mean + 0.5], "n": 1000}

    rows = [
        {
            "label": label,
            "teacher": "at",
            "method": label,
            "checkpoints": {
                w: {"natural": cell(mean + k), "aa": cell(mean - 30 + k)}
                for k, w in enumerate(("best", "last"))
            },
            "paper": {"natural": mean + 10, "aa": mean - 20},
            "runs": ["runs/mine/seed0", "runs/gone/seed1"],
            "masking": ["fgsm above pgd20"] if label == "ARD" else [],
        }
        for label, mean in (("ARD", 70.25), ("IAD-I", 71.75))
    ]
    difference = {
        "a": "IAD-I",
        "b": "ARD",
        "measure": "aa",
        "checkpoint": "best",
        "difference": -1.5,
        "low": -2.5,
    }
    difference |= {"high": -0.5, "seeds": 2, "n": 1000, "mcnemar_p": 0.0213, "verdict": "lower"}
    difference |= {"seed_spread": 0.2}
    content = {
        "name": "small",
        "title": "Table 2 in small",
        "paper": {"table": "Table 2", "source": "Zhu et al."},
        "settings": {"train": {"epochs": 3}, "seeds": [0, 1], "detectable_points": 1.23},
        "measures": ["natural", "aa"],
        "rows": rows,
        "comparisons": [difference],
        "claims": [{"claim": "IAD-I beats ARD", "verdict": "cannot be told", "why": "two seeds"}],
        "figures": {
            "figure1a": ["IAD-I"],
            "figure2b": ["ARD"],
            "figure3": ["nobody"],
            "figure3c": ["ARD", "IAD-I"],
            "figure4": ["IAD-I"],
        },
        "provenance": {"commit": "abc123", "runs": 3, "runs_wanted": 4, "selection": ["holdout"]},
    }
    (folder / "study.json").write_text(json.dumps(content | changed))
    return folder


def test_a_study_s_page_says_what_it_found(run, tmp_path):
    report.write(run)
    page = page_of(study(tmp_path))
    refuse_anything_active(page)
    text = page.text
    for said in (
        "Table 2 in small",
        "IAD-I: 41.8%",
        "70.25 ± 0.50",
        "paper 80.25",
        "2 seeds, n = 1,000",
        "IAD-I against ARD",
        "−1.50",
        "−2.50 to −0.50",
        "lower",
        "0.021",
        "cannot be told",
        "two seeds",
        "abc123",
        "signs of masked gradients in ARD: fgsm above pgd20",
        "3 of 4 runs are finished",
        "a difference of about 1.2 points",
        "The first less the second, accuracies in percentage points",
    ):
        assert said in text, said
    assert page.attribute("href") == ["runs/mine/seed0/report.html"] * 6  # a run that is gone has no link


def test_a_study_s_page_has_its_figures_the_trust_the_curves_and_images(run, tmp_path):
    report.write(run)
    page = page_of(study(tmp_path))
    for said in (
        "Figure 1a.",
        "Figure 2b.",
        "Figure 3, right.",
        "Figure 4.",
        "ARD to IAD-I",
        "Robust accuracy by radius",
        "Trust in the teacher",
        "Worst images",
        "Most distrusted images",
        "Of the first 32 test images, under PGD-20",
        "Not drawn yet, for want of runs or of their numbers: figure3.",
    ):
        assert said in page.text, said
    assert "cannot be shown" not in page.text
    figures = 4 + 2 + 2  # declared; all rows by epoch and by radius; the trust of each row
    assert sum(tag == "svg" for tag, _ in page.elements) == figures
    assert len(page.attribute("src")) == 2 * 2 * 3  # rows, groups, images
    names = page.attribute("id")
    assert len(names) == len(set(names))  # no figure takes another's hatching


def test_many_rows_are_parted_and_folded(run, tmp_path):
    """As many curves in a figure as there are marks, the rest in figures of their own."""
    report.write(run)
    content = json.loads((study(tmp_path) / "study.json").read_text())
    rows = [content["rows"][0] | {"label": f"row {k}"} for k in range(9)]
    page = page_of(study(tmp_path, rows=rows, figures={}, comparisons=[]))
    assert "row 0 to row 3" in page.text
    assert "row 4 to row 8" in page.text
    assert sum(tag == "svg" for tag, _ in page.elements) == 2 * 2 + 9
    assert "Trust in the teacher" in page.text
    assert "9 rows" in page.text
    assert not [of for tag, of in page.elements if tag == "details" and "open" in of]
    assert len((tmp_path / "report.html").read_bytes()) < 9 * 150_000


def test_figures_of_several_data_sets_are_drawn_of_each(run, tmp_path):
    report.write(run)
    (row,) = json.loads((study(tmp_path) / "study.json").read_text())["rows"][1:]
    rows = [row | {"label": f"IAD-I, {data}", "data": data} for data in ("cifar10", "cifar100")]
    page = page_of(study(tmp_path, rows=rows, figures={"figure1a": ["IAD-I"], "figure2b": ["ARD"]}))
    captions = re.findall(r"Figure 1a\. .*? attacks this student\. (.*?)\.", page.text)
    assert captions == ["IAD-I, cifar10", "IAD-I, cifar100"]
    assert "of their numbers: figure2b (cifar10), figure2b (cifar100)." in page.text


def test_one_seed_says_nothing_of_methods(tmp_path):
    (one,) = json.loads((study(tmp_path) / "study.json").read_text())["comparisons"]
    sentence = "the intervals speak of these very networks only: nothing is said of the methods"
    page = page_of(study(tmp_path, comparisons=[one]))
    assert "badge bad" in page.attribute("class")
    assert sentence not in page.text
    page = page_of(study(tmp_path, comparisons=[one | {"seed_spread": None}]))
    assert "badge bad" not in page.attribute("class")
    assert "· these networks only" in page.text
    assert sentence in page.text


@pytest.mark.parametrize(("p", "said"), [(4.4e-16, "<0.001"), (0.0004, "<0.001"), (0.0014, "0.001")])
def test_no_p_value_is_nought(tmp_path, p, said):
    (one,) = json.loads((study(tmp_path) / "study.json").read_text())["comparisons"]
    held = {"called": "IAD-I", "method": "iad1", "rho": -1.0, "n": 8, "p": p}
    point = {"label": "a", "teacher": "at", "method": "iad1", "x": 1.0, "y": 2.0}
    found = {"x": "a", "y": "b", "x_title": "a", "y_title": "b", "points": [point], "correlations": [held]}
    changed = {"comparisons": [one | {"mcnemar_p": p}], "relations": [found]}
    page = page_of(study(tmp_path, **changed))
    assert "0.000" not in page.text
    assert f"IAD-I: p {'' if said[0] == '<' else '= '}{said}" in page.text
    assert page.text.count(said) == 2


def test_many_comparisons_are_folded_but_for_the_strongest_attack_s(tmp_path):
    (one,) = json.loads((study(tmp_path) / "study.json").read_text())["comparisons"]
    many = [
        one | {"a": f"row {k}", "measure": measure, "checkpoint": which}
        for k in range(9)
        for measure in ("natural", "aa")
        for which in ("best", "last")
    ]
    text = report.write(study(tmp_path, comparisons=many)).read_text()
    assert re.findall(r'<details open=""><summary>(.*?)</summary>', text) == ["AutoAttack, best checkpoint"]
    assert "<summary>natural, last checkpoint</summary>" in text


def test_costs_have_their_names_and_no_checkpoint(tmp_path):
    content = json.loads((study(tmp_path) / "study.json").read_text())
    cell = {"mean": 2.5, "std": None, "values": [2.5], "n": None}
    rows = [
        row
        | {"checkpoints": {which: {"seconds_per_epoch": cell, "gpu_mib": cell} for which in ("best", "last")}}
        for row in content["rows"]
    ]
    differences = [
        content["comparisons"][0]
        | {"measure": measure, "verdict": "higher", "checkpoint": "last", "seed_spread": None, "n": 5}
        for measure in ("seconds_per_epoch", "gpu_mib")
    ]
    measures = ["seconds_per_epoch", "gpu_mib"]
    page = page_of(study(tmp_path, rows=rows, measures=measures, comparisons=differences))
    assert sum(tag == "table" for tag, _ in page.elements) == 1 + 2
    assert "seconds an epoch" in page.text
    assert "memory, MiB" in page.text
    for word in ("seconds_per_epoch", "gpu_mib", "checkpoint", "percent", "n = –", "networks only"):
        assert word not in page.text
    assert "1 seed" in page.text
    assert "95% intervals over epochs" in page.text
    assert "badge bad" in page.attribute("class")  # more of a cost is no gain
    assert "badge good" not in page.attribute("class")


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_words_in_a_study_stay_words(tmp_path, words):
    content = _spoilt(json.loads((study(tmp_path) / "study.json").read_text()), words)
    content["measures"] = ["natural", words]
    point = {"label": words, "teacher": words, "method": words, "x": 1.0, "y": 2.0, "seeds": 1}
    held = {"called": words, "method": words, "rho": None, "n": 1, "p": None}
    titles = {"x_title": words, "y_title": words, "x": words, "y": words}
    content["relations"] = [{"name": words, "points": [point], "correlations": [held], **titles}]
    content["figures"] = {words: [words]}
    page = page_of(study(tmp_path, **content))
    assert page.open == []
    refuse_anything_active(page)
    assert page.text.count(words) > 10


def test_nobody_leads_a_study_where_nobody_does(tmp_path):
    """Not one of two equals, not the only one, not one data set over another."""
    content = json.loads((study(tmp_path) / "study.json").read_text())
    ard, iad = content["rows"]
    assert "The highest mean accuracy" in page_of(study(tmp_path, rows=[ard, iad])).text
    others = ([ard, {**ard, "label": "twin"}], [ard], [ard | {"data": "cifar10"}, iad | {"data": "cifar100"}])
    for rows in others:
        assert "The highest mean accuracy" not in page_of(study(tmp_path, rows=rows)).text


def test_a_study_of_nothing_and_one_of_nonsense_have_pages(tmp_path):
    (tmp_path / "study.json").write_text("{}")
    assert "0 settings in 0 runs" in page_of(tmp_path).text
    nonsense = {
        "rows": [3, {"runs": 5, "checkpoints": []}],
        "comparisons": [[]],
        "claims": "x",
        "measures": 7,
    }
    (tmp_path / "study.json").write_text(json.dumps(nonsense))
    assert "cannot be shown" in page_of(tmp_path).text


# ---------------------------------------------------------------------------------------------- command line


def _cli(*args):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", *map(str, args)])
    return stopped.value.code


def test_the_command_writes_the_pages_that_it_is_given(run, tmp_path, capsys):
    (run / "report.html").unlink()
    assert _cli(run, study(tmp_path)) == 0
    assert (run / "report.html").is_file()
    assert (tmp_path / "report.html").is_file()
    assert "report.html" in capsys.readouterr().out


def test_the_command_draws_what_a_run_has_as_svg_and_png(trained, run):
    assert _cli(run, "--figures") == 0
    found = {path.name for path in (run / "figures").iterdir()}
    assert found == {f"{name}.{suffix}" for name in plots.FIGURES for suffix in ("svg", "png")}
    teacher = shutil.copytree(trained / "runs/digits/at_resnet18/seed0", run.parent / "teacher")
    assert _cli("--figures", teacher) == 0  # it has no teacher of its own
    found = {path.stem for path in (teacher / "figures").iterdir()}
    assert found == {"learning", "losses", "figure3", "figure3c", "radius"}


@pytest.mark.parametrize("content", [None, "settings.yaml", "results.json", "study.json"])
def test_the_command_says_what_it_cannot_read(run, tmp_path, capsys, content):
    folder = tmp_path / "nothing"
    if content is not None:
        folder.mkdir()
        if content == "results.json":
            folder = run
        (folder / content).write_text("{ no")
    assert _cli(folder) == 2
    assert "error: " in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- in a browser


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to look at the page with")


def _browse(folder, *args):
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder}/profile",
    ]
    done = subprocess.run([CHROMIUM, *flags, *args], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


WIDTHS = (390, 1400)
TALL = 2400
DARK = "--blink-settings=preferredColorScheme=0"
# a page carries no script: copies that measure themselves, side by side in a frame that says how wide they are
MEASURING = (
    "<script>document.title=[document.documentElement.scrollWidth,innerWidth].join('/')</script></body>"
)
SAYING = """<script>onload=()=>{
  const said = [...document.querySelectorAll('iframe')].map(f => f.contentDocument.title)
  document.documentElement.lang = 'wide ' + said.join(' ')
}</script>"""


def _looked_at(folder, page, *flags):
    """The page at each width as grey pixels, and how wide what is on it is, from one start of the browser."""
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text()).replace("</body>", MEASURING)
    (folder / "measured.html").write_text(text)
    frames = "".join(f"<iframe width={w} height={TALL} src=measured.html></iframe>" for w in WIDTHS)
    style = "<style>body { margin: 0; display: flex } iframe { border: 0 }</style>"
    (folder / "frame.html").write_text(
        f'<html><meta name="color-scheme" content="light dark">{style}<body>{frames}{SAYING}</body></html>'
    )
    shot = folder / "shot.png"
    dom = _browse(
        folder,
        "--allow-file-access-from-files",
        "--virtual-time-budget=3000",
        f"--window-size={sum(WIDTHS)},{TALL}",
        f"--screenshot={shot}",
        "--dump-dom",
        *flags,
        (folder / "frame.html").as_uri(),
    )
    pixels = np.asarray(Image.open(shot).convert("L"), dtype=float)
    assert pixels.shape == (TALL, sum(WIDTHS))
    found = re.search(r"wide (\d+)/(\d+) (\d+)/(\d+)", dom).groups()
    assert tuple(map(int, found[1::2])) == WIDTHS
    return np.split(pixels, [WIDTHS[0]], axis=1), list(map(int, found[::2]))


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["run", "study"])
def test_the_page_in_a_browser_on_a_telephone_and_a_screen(run, tmp_path, kind, scheme):
    page = report.write(run)
    if kind == "study":
        page = report.write(study(tmp_path))
    shots, wide = _looked_at(tmp_path, page, *([DARK] if scheme == "dark" else []))
    for pixels, width, content in zip(shots, WIDTHS, wide, strict=True):
        assert content <= width  # nothing to scroll sideways for
        ground = np.median(pixels)
        assert ground < 45 if scheme == "dark" else ground > 225
        # and on it, all the way down, something to see
        assert all(strip.std() > 5 for strip in np.array_split(pixels, 6))
