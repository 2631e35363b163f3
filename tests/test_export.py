"""Exports: what comes back is the network, what is said of it was measured, and no pickle leaves the house."""

import ast
import dataclasses
import functools
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import onnxruntime
import pytest
import timm
import torch
import yaml
from art.attacks.evasion import FastGradientMethod
from art.estimators.classification import PyTorchClassifier
from run_folders import trained

from iad_ext import IntrospectiveAdversarialDistiller, as_art_classifier, cli, load_network
from iad_ext.backbones import create_network, network_digest, save_network, saved_metadata
from iad_ext.data import load_splits
from iad_ext.export import Record, push_to_hub, robustbench_model_info, to_folder, to_onnx
from iad_ext.provenance import digest

FIRST_RUN = Path(__file__).parents[1] / "docs/results/first-run/iad1_resnet18-at"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return to_folder(run, tmp_path_factory.mktemp("exports") / "student", license="mit")


@pytest.fixture(scope="module")
def images():
    return load_splits("digits").test.pixels(slice(0, 8))


def logits(network, x):
    with torch.inference_mode():
        return network(x)


def results(run):
    return json.loads((run / "results.json").read_text())["best"]


def card_of(folder):
    """The front matter as data, and the text."""
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def measured_network(folder, **facts):
    """A folder with a network and a record of it in which the figures are as given."""
    network = create_network("cifar_resnet8", num_classes=10, seed=0)
    save_network(network, folder, metadata={})
    return Record(network=network, source=str(folder), **facts)


# ------------------------------------------------------------------------------------------- the folder


def test_the_folder_holds_the_best_network_for_us_and_for_timm(run, exported, images):
    expected = logits(load_network(run / "best"), images)
    assert torch.equal(logits(load_network(exported), images), expected)
    of_timm = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    assert torch.equal(logits(of_timm, images), expected)
    assert sorted(path.name for path in exported.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_timm_reads_it_from_the_hub(exported, images, monkeypatch):
    def download(repo_id, filename, **_):
        assert repo_id == "me/student"
        return str(exported / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert torch.equal(
        logits(load_network("hf-hub:me/student"), images), logits(load_network(exported), images)
    )


def test_a_network_that_normalises_outside_is_exported_with_its_normalisation(tmp_path, images):
    network = create_network("test_resnet", num_classes=4, seed=0).eval()
    save_network(network, tmp_path / "saved", metadata={})
    folder = to_folder(tmp_path / "saved", tmp_path / "out")
    assert torch.equal(logits(load_network(folder), images), logits(network, images))
    assert "normalises inside; timm's network takes them normalised" in card_of(folder)[1]


def test_an_exported_folder_can_be_exported_again_with_all_that_is_known(exported, tmp_path):
    again = to_folder(exported, tmp_path / "student", license="mit")
    of_first, of_second = card_of(exported), card_of(again)
    assert of_second[0] == of_first[0]
    # the teacher's and the selection's figures stay with the run
    kept = [line for line in of_first[1].splitlines() if not line.startswith("| teacher")]
    assert of_second[1].splitlines() == kept


def test_no_path_of_this_machine_is_in_it(run, exported):
    for name in ("README.md", "config.json"):
        assert str(run.parents[3]) not in (exported / name).read_text(encoding="utf-8")
    metadata = saved_metadata(exported)
    assert metadata["data"]["path"] is None
    assert metadata["settings"]["out"] is None


# ------------------------------------------------------------------------------------------- the card


def test_the_card_s_figures_are_those_measured(run, exported):
    front, text = card_of(exported)
    measured = results(run)
    of_machines = {
        r["name"].split(",")[1].strip(): r["value"] for r in front["model-index"][0]["results"][0]["metrics"]
    }
    assert of_machines["natural"] == round(measured["natural"], 2)
    assert of_machines["AutoAttack at L∞ 0.1"] == round(measured["aa"], 2)
    lines = [line.strip("| ").split(" | ") for line in text.splitlines()]
    rows = {cells[0]: cells[1:4] for cells in lines if len(cells) == 5}
    for title, attack, n in (("natural", "natural", 32), ("PGD-20", "pgd20", 32), ("AutoAttack", "aa", 2)):
        low, high = measured["interval"][attack]
        assert rows[title] == [f"{measured[attack]:.2f}", f"{low:.2f} to {high:.2f}", str(n)]


def test_the_card_says_where_the_network_comes_from(run, exported):
    front, text = card_of(exported)
    assert front["library_name"] == "timm"
    assert front["license"] == "mit"
    assert {"adversarial-robustness", "adversarial-distillation", "iad1"} <= set(front["tags"])
    environment = json.loads((run / "environment.json").read_text())
    teacher = environment["teachers"]["teacher"]
    for words in (
        "| recipe | `iad1_resnet18` |",
        "KL(T_at(x) → S(x̃)) + (1 − α) · KL(S(x) → S(x̃))",
        f"| teacher | `digits/at_resnet18/seed0`: natural {teacher['natural']:.2f}%",
        "the best epoch is chosen on held-out training images",
        "| data | digits, 128 images",
        f"torch {torch.__version__.partition('+')[0]}",
        environment["hardware"]["cpu"],
        environment["commit"],
        "L∞ radius 0.1, seed 0",
        "AutoAttack 2",  # few images
        'timm.create_model("hf-hub:OWNER/student", pretrained=True)',
        "import iad_ext  # registers",
    ):
        assert words in text, words


@pytest.mark.slow
def test_the_card_s_code_runs_on_its_folder(exported, tmp_path):
    _, text = card_of(exported)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block, scheme in zip(blocks, ("", "local-dir:"), strict=True):
        code = block.replace("hf-hub:OWNER/student", f"{scheme}{exported}") + "print(network.num_classes)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.stdout == "10\n", done.stderr


def test_the_card_of_real_cifar10_says_that_the_images_were_a_jpeg_copy(tmp_path):
    facts = {
        name: json.loads((FIRST_RUN / f"{name}.json").read_text()) for name in ("results", "environment")
    }
    record = measured_network(
        tmp_path,
        measured=facts["results"]["best"],
        results=facts["results"],
        environment=facts["environment"],
        data=facts["environment"]["data"],
        settings=yaml.safe_load((FIRST_RUN / "settings.yaml").read_text()),
        epoch=3,
    )
    front, text = card_of(to_folder(record, tmp_path / "out"))
    assert front["datasets"] == ["uoft-cs/cifar10"]
    for words in (
        "JPEG, with loss; uoft-cs/cifar10 is PNG",
        "Trained on 3,000 of the training images only.",
        "AutoAttack 32",
        "weights after epoch 4",
        "radius 8/255",
        "| AutoAttack | 6.25 | 1.73 to 20.15 | 32 |",
    ):
        assert words in text, words


def test_the_card_names_flags_selection_on_the_test_set_and_another_radius(run, tmp_path):
    record = Record.of(run)
    flag = {
        "flag": "zero_gradients",
        "attack": "pgd20",
        "detail": "the gradient is zero on 9 images",
        "images": 9,
    }
    settings = {**record.settings, "data": {**record.settings["data"], "selection": "test"}}
    settings["attack"] = {**settings["attack"], "eps": 8 / 255}
    changed = {
        name: getattr(record, name)
        for name in ("network", "source", "data", "environment", "results", "epoch")
    }
    _, text = card_of(
        to_folder(
            Record(**changed, measured={**record.measured, "flags": [flag]}, settings=settings),
            tmp_path / "out",
        )
    )
    assert "- `zero_gradients` (PGD-20): the gradient is zero on 9 images." in text
    assert "chosen on the test set" in text
    assert "Trained at a radius of 8/255, measured at 0.1." in text
    assert "No sign of masked gradients" not in text


def changed(record, **groups):
    """The record of a run with other settings."""
    settings = {**record.settings}
    for name, values in groups.items():
        settings[name] = {**settings[name], **values}
    return dataclasses.replace(record, settings=settings)


def test_an_evaluation_s_images_are_not_passed_off_as_those_trained_on(run, tmp_path):
    network = load_network(run)
    evaluated = load_splits("digits", selection="test", limit_train=1, limit_test=24).provenance
    file = tmp_path / "results.json"
    note = "JPEG, with loss"
    content = {
        "weights": digest(network.state_dict()),
        "measured": results(run),
        "data": {**evaluated, "name": "cifar10", "source": "hub", "encoding_note": note},
    }
    file.write_text(json.dumps(content))
    front, text = card_of(to_folder(run, tmp_path / "out", results=file))
    assert "Trained on 128 of the training images only." in text
    assert "| data | digits, 128 images" in text
    assert "trained on digits" in text
    assert "datasets" not in front  # digits is not on the hub
    assert "the test images of cifar10" in text
    assert f"The images were a re-encoded copy: {note}." in text
    assert front["model-index"][0]["results"][0]["dataset"]["type"] == "uoft-cs/cifar10"
    info = json.loads(robustbench_model_info(run, tmp_path / "out", results=file).read_text())
    assert info["dataset"] == "cifar10"
    assert f"Images: {note}." in info["footnote"]
    # and so where the export is exported again
    again = card_of(to_folder(tmp_path / "out", tmp_path / "again"))[1]
    for words in ("| data | digits, 128 images", "the test images of cifar10"):
        assert words in again


def test_the_card_says_how_the_rate_went_and_what_else_was_trained_with(run, tmp_path):
    record = Record.of(run)
    plain = card_of(to_folder(record, tmp_path / "plain"))[1]
    for absent in ("| weights averaged", "| weights perturbed", "| extra images", "CutMix"):
        assert absent not in plain
    train = {"epochs": 30, "drops": (10, 20), "schedule": "released"}
    released = card_of(to_folder(changed(record, train=train), tmp_path / "released"))[1]
    assert "SGD, rate 0.1, × 0.1 at epoch 10 (schedule released), " in released
    beyond = changed(
        record,
        train={
            **train,
            "rates": "cyclic",
            "awp": 0.005,
            "awp_start": 3,
            "cutmix": 0.5,
            "augment": "cropshift",
        },
        average={"name": "ema", "decay": 0.995, "start": 2},
        data={"extra": str(tmp_path / "generated.npz"), "extra_share": 0.7},
    )
    folder = to_folder(beyond, tmp_path / "beyond")
    text = card_of(folder)[1]
    assert "at epoch 10" not in text
    for words in (
        "SGD, rate up to 0.1 at 2/5 of the epochs and down to 0, linearly (cyclic), ",
        "| weights perturbed | adversarially (AWP), γ = 0.005, from epoch 3 |",
        "| weights averaged | EMA, decay 0.995, from epoch 2; ",
        "generated.npz`, 70% of an epoch's images |",
        "| augmentation | cropshift, CutMix on 50% of images |",
    ):
        assert words in text, words
    assert str(tmp_path) not in text + json.dumps(saved_metadata(folder))
    info = robustbench_model_info(beyond, tmp_path / "beyond")
    assert json.loads(info.read_text())["additional_data"] is True


def test_a_formula_does_not_break_the_card_s_table(run, tmp_path):
    record = Record.of(run)
    knobs = dict.fromkeys(record.settings["objective"]) | {"name": "akd2_down", "introspect": False}
    folder = to_folder(changed(record, objective=knobs), tmp_path / "out")
    (row,) = (line for line in card_of(folder)[1].splitlines() if line.startswith("| objective"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert r"P_T(x̃\|y)" in row


def test_what_is_not_known_is_said_not_to_be(tmp_path):
    save_network(create_network("cifar_resnet8", num_classes=10, seed=0), tmp_path / "bare", metadata={})
    front, text = card_of(to_folder(tmp_path / "bare", tmp_path / "out"))
    assert "model-index" not in front
    assert "Not measured." in text
    assert text.count("Not known.") == 2


def test_figures_of_other_weights_are_not_passed_off_as_theirs(run, tmp_path):
    # a run that went on after it was measured: best/ is of a later epoch than results.json
    later = tmp_path / "later"
    shutil.copytree(run, later)
    network = load_network(run)
    save_network(network, later / "best", metadata={**saved_metadata(run / "best"), "epoch": 77})
    assert Record.of(later).measured == {}
    # a file that another network was measured for
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"source": "x", "weights": "0", "measured": {}, "data": {}}))
    with pytest.raises(ValueError, match="was measured on other weights"):
        Record.of(run, results=file)
    file.write_text("[]")
    with pytest.raises(ValueError, match="iad-ext evaluate --out wrote"):
        Record.of(run, results=file)


def test_the_digest_is_one_of_all_that_is_computed_with():
    one, same = (create_network("cifar_resnet8", num_classes=10, seed=0) for _ in range(2))
    assert network_digest(one) == network_digest(same) == digest(one.state_dict())  # as older runs have it
    with torch.no_grad():
        same.linear.bias[0] += 1e-6
    assert network_digest(one) != network_digest(same)
    for name in ("cifar_resnet8", "test_resnet"):  # normalisation in the network, and before it
        told = {
            network_digest(create_network(name, num_classes=4, seed=0, mean=[mean] * 3, std=[0.2] * 3))
            for mean in (0.4, 0.5)
        }
        assert len(told) == 2


def test_figures_of_another_normalisation_are_not_passed_off_as_theirs(tmp_path):
    """`iad-ext evaluate` of a bare checkpoint without its mean and std, then an export with them."""
    network = create_network("cifar_resnet8", num_classes=10, image_size=8, seed=0)
    torch.save(network.state_dict(), tmp_path / "bare.pt")
    bare = (str(tmp_path / "bare.pt"), "--architecture", "cifar_resnet8")
    results = tmp_path / "results.json"
    asked = ("--data.name", "digits", "--attacks", "natural", "--limit", "8", "--out", str(results))
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", *bare, *asked])
    assert ended.value.code == cli.DONE
    loading = {"results": results, "architecture": "cifar_resnet8"}
    assert Record.of(bare[0], **loading).measured
    with pytest.raises(ValueError, match="was measured on other weights"):
        Record.of(bare[0], model_args={"mean": [0.5] * 3, "std": [0.2] * 3}, **loading)


def test_the_weights_file_of_a_run_is_known_as_its_folder_is(run):
    file, folder = (Record.of(run / "best" / name) for name in ("model.safetensors", ""))
    assert file.attacks
    known = [field.name for field in dataclasses.fields(Record) if field.name not in ("network", "source")]
    assert all(getattr(file, name) == getattr(folder, name) for name in known)


# ------------------------------------------------------------------------------------------- the hub


@pytest.fixture
def hub(monkeypatch):
    """The hub's functions, recording what they were asked."""
    calls = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(
            huggingface_hub, name, lambda *args, name=name, **kwargs: calls.append((name, args, kwargs))
        )
    return calls


def test_nothing_is_uploaded_without_the_explicit_flag(exported, hub):
    files = push_to_hub(exported, "me/student")
    assert files == ["README.md", "config.json", "model.safetensors"]
    assert hub == []


def test_with_it_those_files_and_no_others_are(exported, hub):
    files = push_to_hub(exported, "me/student", push=True)
    (created, (repo,), how), (uploaded, _, what) = hub
    assert (created, uploaded) == ("create_repo", "upload_folder")
    assert repo == what["repo_id"] == "me/student"
    assert how["private"] is True
    assert what["allow_patterns"] == files
    assert Path(what["folder_path"]) == exported


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("weights.json", pickle.dumps({"a": 1})),
        ("model.bin", b"anything"),
        ("optimizer.pt", None),
        ("hidden.safetensors", None),
    ],
)
def test_a_pickle_is_never_uploaded_whatever_it_is_called(run, tmp_path, hub, name, content):
    folder = to_folder(run, tmp_path / "student")
    if content is None:
        torch.save({"a": torch.zeros(2)}, folder / name)
    else:
        (folder / name).write_bytes(content)
    for push in (False, True):
        with pytest.raises(ValueError, match=f"{name} is .*; remove it, then push"):
            push_to_hub(folder, "me/student", push=push)
    assert hub == []


def test_what_cannot_be_pushed_is_said(run, tmp_path, exported, hub, monkeypatch):
    with pytest.raises(
        ValueError, match=r"lacks model\.safetensors, config\.json, README\.md; export a network"
    ):
        push_to_hub(tmp_path, "me/student")
    for wrong in ("student", "me/you/student", "me/", "me/st udent"):
        with pytest.raises(ValueError, match="expected a repository as OWNER/NAME"):
            push_to_hub(exported, wrong)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        push_to_hub(exported, "me/student", push=True)
    with pytest.raises(TypeError, match="did you mean 'push'"):
        push_to_hub(exported, "me/student", pussh=True)
    assert hub == []


# ------------------------------------------------------------------------------------------- ART


def test_any_source_is_an_art_classifier_in_one_call(run, images):
    classifier = as_art_classifier(run)
    assert isinstance(classifier, PyTorchClassifier)
    assert classifier.input_shape == (3, 8, 8)
    assert classifier.nb_classes == 10
    expected = logits(load_network(run), images).numpy()
    np.testing.assert_allclose(classifier.predict(images.numpy()), expected, atol=1e-5)
    attacked = FastGradientMethod(classifier, eps=0.1).generate(images.numpy())
    assert 0.05 < np.abs(attacked - images.numpy()).max() <= 0.1 + 1e-6


def test_images_in_0_to_255_are_brought_to_what_the_network_takes(run, images):
    classifier = as_art_classifier(run, clip_values=(0, 255))
    expected = logits(load_network(run), images).numpy()
    np.testing.assert_allclose(classifier.predict(255 * images.numpy()), expected, atol=1e-4)
    attacked = FastGradientMethod(classifier, eps=8).generate(255 * images.numpy())
    assert attacked.max() > 8
    assert attacked.max() <= 255


def test_with_an_optimizer_it_can_be_distilled(run):
    splits = load_splits("digits", limit_train=32)
    student = as_art_classifier(
        create_network("cifar_resnet8", num_classes=10, image_size=8, seed=1),
        optimizer=functools.partial(torch.optim.SGD, lr=0.1),
    )
    before = digest(student.model.state_dict())
    trainer = IntrospectiveAdversarialDistiller(student, as_art_classifier(run), objective="ard", eps=0.1)
    trainer.fit(splits.train.pixels().numpy(), splits.train.labels.numpy(), nb_epochs=1, batch_size=16)
    assert digest(student.model.state_dict()) != before


def test_a_bare_checkpoint_and_wrong_clip_values(run, tmp_path):
    torch.save(load_network(run).state_dict(), tmp_path / "t.pt")
    classifier = as_art_classifier(tmp_path / "t.pt", architecture="cifar_resnet8", image_size=8)
    assert classifier.input_shape == (3, 8, 8)
    with pytest.raises(ValueError, match=r"clip_values must be \(lower, upper\)"):
        as_art_classifier(run, clip_values=(1, 0))


@pytest.mark.parametrize("range_", [None, 1, (0,), ("0", "1"), (False, True), (0, np.inf), (0, np.nan)])
def test_a_range_that_is_none(run, range_):
    with pytest.raises(ValueError, match=r"clip_values must be \(lower, upper\), two finite numbers"):
        as_art_classifier(run, clip_values=range_)


@pytest.mark.parametrize("size", ["32", 8.0, True, 0, -3, (8,), (8, 0)])
def test_a_size_that_is_none(run, tmp_path, size):
    for make in (as_art_classifier, functools.partial(to_onnx, path=tmp_path / "m.onnx")):
        with pytest.raises((TypeError, ValueError), match="image_size must be"):
            make(run, image_size=size)
    assert not (tmp_path / "m.onnx").exists()


def test_a_device_that_is_none(run):
    with pytest.raises(ValueError, match=r"unknown device 'cuda:0'; .*known: cpu, gpu"):
        as_art_classifier(run, device="cuda:0")


def test_unknown_arguments_are_answered_with_the_nearest(run, tmp_path):
    with pytest.raises(TypeError, match="as_art_classifier 'clip_value'; did you mean 'clip_values'"):
        as_art_classifier(run, clip_value=(0, 1))
    with pytest.raises(TypeError, match="to_folder 'architcture'; did you mean 'architecture'"):
        to_folder(run, tmp_path, architcture="cifar_resnet8")
    with pytest.raises(TypeError, match="a record is loaded already"):
        to_folder(Record.of(run), tmp_path, architecture="cifar_resnet8")


# ------------------------------------------------------------------------------------------- ONNX


def test_onnx_computes_the_same_for_any_number_of_images(run, tmp_path, images):
    assert to_onnx(run, tmp_path / "deep" / "model.onnx") < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "deep" / "model.onnx")
    network = load_network(run)
    for n in (1, 2, 5, 8):
        (got,) = session.run(None, {"pixels": images[:n].numpy()})
        np.testing.assert_allclose(got, logits(network, images[:n]).numpy(), atol=1e-4)


def test_onnx_holds_the_normalisation(tmp_path):
    network = create_network("test_resnet", num_classes=4, seed=0).eval()
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    assert to_onnx(network, tmp_path / "m.onnx", image_size=32, dynamic_batch=False) < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert session.get_inputs()[0].shape == [1, 3, 32, 32]
    (got,) = session.run(None, {"pixels": pixels[:1].numpy()})
    np.testing.assert_allclose(got, logits(network, pixels[:1]).numpy(), atol=1e-4)
    assert np.abs(got - logits(network.network, pixels[:1]).numpy()).max() > 1e-3  # what it would be without


def test_onnx_leaves_the_network_as_it_was(tmp_path):
    network = create_network("cifar_resnet8", num_classes=10, image_size=8, seed=0).double().train()
    to_onnx(network, tmp_path / "m.onnx")
    assert network.training
    assert {p.dtype for p in network.parameters()} == {torch.float64}


def test_onnx_says_what_is_missing(run, tmp_path, monkeypatch):
    monkeypatch.setattr("iad_ext.export.onnx.NEEDED", ("onnx", "no_such_package"))
    with pytest.raises(ValueError, match=r"ONNX needs no_such_package; .*pip install 'iad-ext\[onnx\]'"):
        to_onnx(run, tmp_path / "m.onnx")


# ------------------------------------------------------------------------------------------- RobustBench


@pytest.mark.slow
def test_robustbench_gets_its_fields_and_a_loader_that_runs(run, exported):
    path = robustbench_model_info(
        run, exported, name="Zhu2022Reliable", title="Reliable", authors="A, B", venue="ICLR 2022"
    )
    assert path == exported / "model_info/digits/Linf/Zhu2022Reliable.json"
    info, measured = json.loads(path.read_text()), results(run)
    assert info["clean_acc"] == f"{measured['natural']:.2f}"
    assert info["autoattack_acc"] == info["reported"] == f"{measured['aa']:.2f}"
    assert (
        info | {"eps": "0.1", "name": "Reliable", "dataset": "digits", "architecture": "cifar_resnet8"}
        == info
    )
    assert info["additional_data"] is False
    assert "AutoAttack on 2 test images only." in info["footnote"]
    done = subprocess.run(
        [sys.executable, str(exported / "robustbench_loader.py")], capture_output=True, text=True, check=False
    )
    assert done.stdout == "Zhu2022Reliable: 75,290 parameters, 10 classes\n", done.stderr
    path.unlink()
    (exported / "robustbench_loader.py").unlink()


def test_any_name_leaves_the_loader_a_program(tmp_path):
    protocol = {"eps": 8 / 255, "attacks": {"natural": {}, "aa": {"version": "standard", "stages": []}}}
    measured = {"natural": 83.0, "aa": 48.0, "n": 10_000, "flags": [], "protocol": protocol}
    name = 'My "best" {net}\\n"""'
    record = measured_network(tmp_path / name.replace("/", ""), measured=measured, data={"name": "cifar10"})
    robustbench_model_info(record, tmp_path, name=name)
    code = (tmp_path / "robustbench_loader.py").read_text(encoding="utf-8")
    said = ast.unparse(ast.parse(code).body[-1])
    assert repr(name) in said


def test_a_whole_measurement_on_cifar10_needs_no_footnote(tmp_path):
    settings = {"version": "standard", "stages": []}
    protocol = {"eps": 8 / 255, "attacks": {"natural": {}, "aa": settings}}
    measured = {"natural": 83.256, "aa": 48.91, "n": 10_000, "flags": [], "protocol": protocol}
    record = measured_network(tmp_path, measured=measured, data={"name": "cifar10"})
    info = json.loads(robustbench_model_info(record, tmp_path, name="Mine").read_text())
    assert info["footnote"] == ""
    assert (info["clean_acc"], info["autoattack_acc"], info["eps"]) == ("83.26", "48.91", "8/255")
    assert info["unreliable"] is False


def test_robustbench_refuses_what_was_not_measured(tmp_path):
    with pytest.raises(
        ValueError, match=r"needs natural and aa of .*iad-ext evaluate MODEL --attacks natural,aa"
    ):
        robustbench_model_info(measured_network(tmp_path), tmp_path)
