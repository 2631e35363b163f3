"""Settings from a YAML file: what it says, over the recipe's and under the command line's."""

import shlex
from pathlib import Path

import pytest
import recipe_files
import yaml
from recipe_files import TINY, call

from iad_ext.plan import Plan
from iad_ext.settings import from_command_line, from_yaml, override, to_yaml
from iad_ext.spelling import with_file

LINES = {
    "iad1_resnet18": "--objective.gamma 0:0.5,100:2 --train.flip --train.drops 3 7 --train.epochs 9 --data.path /data",
    "rslad_resnet18": "--objective.introspect --objective.igdm 20 --objective.class-temperature 3:2 --train.awp 0.01",
    "adr_resnet18": "--average.name ema --train.augment idbh_weak --train.cutmix 0.5 --train.no-flip",
    "at_resnet18": "--teacher-architecture None --train.rates cyclic --train.drops --eval.limit 100 --out runs/mine",
}


def read(recipe, line):
    recipe = recipe_files.load(recipe)
    return from_command_line(recipe, with_file(recipe, shlex.split(line) if isinstance(line, str) else line))


@pytest.mark.parametrize("recipe", LINES)
def test_a_run_s_own_file_gives_its_settings(recipe, tmp_path):
    """Whatever of the recipe's own depends on data and epochs: the file says all."""
    settings = read(recipe, LINES[recipe])
    (tmp_path / "settings.yaml").write_text(to_yaml(settings))
    for spelt in (
        ["--settings", str(tmp_path / "settings.yaml")],
        [f"--settings={tmp_path / 'settings.yaml'}"],
    ):
        assert read(recipe, spelt) == override(settings, {"out": None})  # another folder than that run's


def test_a_run_s_file_gives_no_orders_and_one_s_own_does(tmp_path):
    orders = "out: mine\nresume: never\naccept_changes: true\ndry_run: true\n"
    for recipe, given in (("recipe: at_resnet18\n", False), ("", True)):
        (tmp_path / "settings.yaml").write_text(recipe + orders + "train.lr: 0.05\n")
        found = read("at_resnet18", f"--settings {tmp_path / 'settings.yaml'}")
        assert found.train.lr == 0.05
        asked = (found.out, found.resume, found.accept_changes, found.dry_run)
        assert asked == ((Path("mine"), "never", True, True) if given else (None, "auto", False, False))


def test_the_command_line_has_the_last_word(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "train:\n  epochs: 30\n  flip: false\n  lr: 1/20\nobjective.beta: 0.5\nattack.eps: 4/255\n"
    )
    line = f"--train.epochs 60 --settings {file} --objective.gamma 2 --train.flip"
    found = read("iad1_resnet18", line)
    same = "--train.epochs 60 --train.flip --train.lr 0.05 --objective.beta 0.5 --attack.eps 4/255 --objective.gamma 2"
    assert found == read("iad1_resnet18", same)
    assert found.objective.warmup_epochs == 18  # the recipe's own follows the epochs, wherever they are said
    assert read("iad1_resnet18", f"--settings {file}").objective.warmup_epochs == 9


def test_every_plug_in_is_there_by_file(tmp_path):
    values = {
        "objective": {"introspect": True, "beta": 0.3, "warmup-epochs": 4, "igdm": 20, "target": "swap"},
        "objective.sample_weight": "entropy_correct",
        "average": {"name": "swa", "start": 5, "batchnorm": "average"},
        "train.awp": 0.005,
        "train.augment": "cropshift",
        "train.cutmix": 0.5,
        "train.rates": "cosine",
        "data": {"extra": "made.npz", "extra_share": 0.7},
        "attack.name": "rslad",
    }
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(values))
    line = (
        "--objective.introspect --objective.beta 0.3 --objective.warmup-epochs 4 --objective.igdm 20 "
        "--objective.target swap --objective.sample-weight entropy_correct --average.name swa --average.start 5 "
        "--average.batchnorm average --train.awp 0.005 --train.augment cropshift --train.cutmix 0.5 "
        "--train.rates cosine --data.extra made.npz --data.extra-share 0.7 --attack.name rslad"
    )
    found, spelt = (read("rslad_resnet18", one) for one in (f"--settings {tmp_path / 'all.yaml'}", line))
    assert found == spelt
    assert repr(Plan.of(found).objective) == repr(Plan.of(spelt).objective)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("train.epoch: 3", "unknown setting 'train.epoch'; did you mean 'train.epochs'?"),
        ("train:\n  epoch: 3", "unknown setting 'train.epoch'; did you mean 'train.epochs'?"),
        ("train.epochs: many", "--train.epochs takes int, got 'many'"),
        ("train.epochs: 2.5", "--train.epochs takes int, got 2.5"),
        ("train.epochs:", "--train.epochs needs a value"),
        ("train.epochs: 3\ntrain:\n  epochs: 4", "sets train.epochs twice"),
        ("recipe: at_resnet18", "is of the recipe at_resnet18, this is iad1_resnet18; launch that one"),
        ("objective.class_temperature: 3:2", "got the number 182: YAML reads 3:2 without quotes as 182"),
        ("- train.epochs", "must hold a mapping, such as train.epochs: 30; got list"),
        ("a: !!python/object:os.system {}", "expected plain values"),
        ("a: [", "holds no settings"),
    ],
)
def test_what_is_not_understood_is_said(content, said, tmp_path):
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"bad\.yaml|--train|--objective") as raised:
        read("iad1_resnet18", f"--settings {tmp_path / 'bad.yaml'}")
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--settings", "--settings takes a YAML file, such as a run's settings.yaml; none is named"),
        ("--settings --train.flip", "none is named"),
        ("--settings=", "none is named"),
        ("--settings a.yaml --settings b.yaml", "takes one file; got a.yaml and b.yaml"),
        ("--settings nowhere.yaml", "cannot read nowhere.yaml: No such file"),
        ("--settings .", "cannot read .: Is a directory"),
    ],
)
def test_a_file_that_is_none_is_said(line, said):
    with pytest.raises(ValueError, match="settings") as raised:
        read("iad1_resnet18", line)
    assert said in str(raised.value)


def test_a_run_is_trained_by_its_file_again_to_the_same_bits(tmp_path, capsys):
    assert call("at_resnet18", *TINY, "--train.epochs", "1", "--out", tmp_path / "one") == 0
    file = tmp_path / "one/settings.yaml"
    assert call("at_resnet18", "--settings", file, "--out", tmp_path / "two") == 0
    for name in ("last/model.safetensors", "best/model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    written = [from_yaml((tmp_path / run / "settings.yaml").read_text()) for run in ("one", "two")]
    assert written[0].train == written[1].train
    capsys.readouterr()
    (tmp_path / "bad.yaml").write_text("train.epoch: 1")
    assert call("at_resnet18", "--settings", tmp_path / "bad.yaml") == 2
    assert "did you mean 'train.epochs'?" in capsys.readouterr().err


def test_a_run_s_file_and_another_seed_train_it_again_beside_it(tmp_path, monkeypatch):
    """As docs/command-line.md says; whatever the first command line asked for is not asked for again."""
    monkeypatch.chdir(tmp_path)
    assert call("at_resnet18", *TINY, "--train.epochs", "1", "--out", "mine", "--resume", "never") == 0
    before = {file: file.read_bytes() for file in Path("mine").rglob("*") if file.is_file()}
    written = from_yaml(Path("mine/settings.yaml").read_text())
    assert (written.out, written.resume) == (Path("mine"), "auto")
    assert call("at_resnet18", "--settings", "mine/settings.yaml", "--train.seed", "1") == 0
    assert {file: file.read_bytes() for file in Path("mine").rglob("*") if file.is_file()} == before
    assert Path("runs/digits/at_resnet18/seed1/results.json").is_file()


def test_help_mentions_it(capsys):
    assert call("at_resnet18", "--help") == 0
    assert "--settings FILE" in capsys.readouterr().out
