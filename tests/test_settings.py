"""Settings: what is written is what is read, and every choice moves exactly the numbers it should."""

import dataclasses
import re
import string
import time
from pathlib import Path
from typing import get_args

import pytest
import recipe_files
from hypothesis import given
from hypothesis import strategies as st

from iad_ext import objectives
from iad_ext.settings import (
    OF_DATA,
    OF_SCHEDULE,
    AttackSettings,
    DataSettings,
    ObjectiveSettings,
    Recipe,
    Schedule,
    Settings,
    TrainSettings,
    check,
    flat,
    from_command_line,
    from_yaml,
    gamma_of,
    objective_arguments,
    option,
    override,
    scaled,
    to_yaml,
    weights_of,
)
from iad_ext.units import parse_fraction, show_fraction

RECIPES = recipe_files.names()

# ------------------------------------------------------------------------------------------- YAML

_texts = st.text(string.printable.strip() + " #:-&*!|>'\"%@`é≤α~\n\t", max_size=20)
_names = st.sampled_from(["1e5", "null", "true", "0x1f", "2020-01-01", "!!python/object", "~", "- a", "a: b"])
_numbers = st.floats(allow_nan=False, allow_infinity=False)
_counts = st.integers(-(2**40), 2**40)


def _values(field):
    """A strategy for a field's annotation, as written in the source."""
    kind = str(field.type)
    if "Path" in kind:
        found = st.text(string.ascii_letters + "0123456789 .#:", min_size=1, max_size=9).map(Path)
    elif "tuple" in kind:
        found = st.lists(_counts, max_size=4).map(tuple)
    elif "float" in kind:
        found = _numbers
    elif "bool" in kind:
        found = st.booleans()
    elif "int" in kind:
        found = _counts
    else:
        found = _texts | _names
    return found | st.none() if type(None) in get_args(field.type) else found


def _group(kind):
    return st.builds(kind, **{f.name: _values(f) for f in dataclasses.fields(kind)})


_settings = st.builds(
    Settings,
    **{
        f.name: _group(f.type) if dataclasses.is_dataclass(f.type) else _values(f)
        for f in dataclasses.fields(Settings)
    },
)


@given(_settings)
def test_reading_back_what_was_written_gives_the_same_settings(settings):
    assert from_yaml(to_yaml(settings)) == settings


def test_the_strategy_reaches_every_group():
    groups = {f.name for f in dataclasses.fields(Settings) if dataclasses.is_dataclass(f.type)}
    assert groups == {"data", "student", "objective", "attack", "train", "average", "eval", "checkpoint"}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_its_yaml(name):
    settings = recipe_files.load(name).settings
    assert from_yaml(to_yaml(settings)) == settings


def test_yaml_is_for_people_nested_and_in_the_order_of_the_fields():
    text = to_yaml(Settings())
    assert [line for line in text.splitlines() if line.endswith(":")][:4] == [
        "data:",
        "student:",
        "objective:",
        "attack:",
    ]
    assert "\n  drops:\n  - 100\n  - 150\n" in text


def test_a_tag_is_refused_and_runs_nothing(tmp_path):
    target = tmp_path / "made"
    text = f"recipe: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{target}]]"
    with pytest.raises(ValueError, match="not the settings of a run"):
        from_yaml(text)
    assert not target.exists()


def laughs(join):
    """Nine lines that stand for 10⁹ values, in lists or in merged mappings."""
    lines = ["a0: &a0 {x: 1}"] + [
        f"a{i}: &a{i} {join.format(', '.join([f'*a{i - 1}'] * 10))}" for i in range(1, 10)
    ]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (laughs("[{}]"), "expected plain values, got the anchor 'a0' in line 1"),
        (laughs("{{<<: [{}]}}"), "expected plain values, got the anchor 'a0' in line 1"),
        ("recipe: *nobody", "expected plain values, got the alias 'nobody' in line 1"),
        ("train: " + "[" * 10**5, "nested too deeply"),
        ("train:\n" + "".join(" " * i + "- \n" for i in range(1, 200)), "nested too deeply"),
        ("recipe: " + "a" * 2**21, "at most 1 MiB of YAML"),
    ],
    ids=["lists", "merges", "alias", "brackets", "lines", "long"],
)
def test_a_small_file_that_stands_for_a_huge_one_is_refused_at_once(text, said):
    began = time.perf_counter()
    with pytest.raises(ValueError, match=f"not the settings of a run: .*{said}"):
        from_yaml(text)
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recipe: a\nrecip: b", "unknown setting 'recip'; did you mean 'recipe'?"),
        ("train:\n  epoch: 3", "unknown setting 'train.epoch'; did you mean 'train.epochs'?"),
        ("trian:\n  epochs: 3", "unknown setting 'trian.epochs'; did you mean 'train.epochs'?"),
        ("train: 3", "unknown setting 'train'"),
        ("- a\n- b", "a YAML mapping, got list"),
        ("", "a YAML mapping, got NoneType"),
        ("train: {epochs: [1", "not the settings of a run"),
    ],
)
def test_what_is_no_settings_file_is_refused(text, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        from_yaml(text)


def test_override_changes_what_it_names_and_nothing_else():
    before = Settings()
    after = override(before, {"train.lr": 0.5, "teacher": "at"})
    changed = {name for (name, a), (_, b) in zip(flat(before), flat(after), strict=True) if a != b}
    assert changed == {"train.lr", "teacher"}
    assert (after.train.lr, after.teacher) == (0.5, "at")
    with pytest.raises(ValueError, match=r"did you mean 'train.lr'"):
        override(before, {"train.rl": 0.5})


# ------------------------------------------------------------------------------------------- numbers in words


@given(st.integers(-300, 300), st.integers(1, 300))
def test_fractions_are_what_division_says(above, below):
    assert parse_fraction(f"{above}/{below}") == above / below


@given(_numbers)
def test_decimals_are_what_python_says(number):
    assert parse_fraction(repr(number)) == number


@given(st.integers(1, 255))
def test_pixel_radii_are_shown_so_that_they_read_back_the_same(steps):
    in_tenths = {51: "0.2", 102: "0.4", 153: "0.6", 204: "0.8", 255: "1"}
    assert show_fraction(steps / 255) == in_tenths.get(steps, f"{steps}/255")
    assert parse_fraction(show_fraction(steps / 255)) == steps / 255


@pytest.mark.parametrize(("value", "shown"), [(0.1, "0.1"), (0.025, "0.025"), (0.0, "0"), (1 / 3, "85/255")])
def test_other_radii_are_shown_as_they_are(value, shown):
    assert show_fraction(value) == shown


@pytest.mark.parametrize("text", ["8/0", "", "eight", "8/", "/255", "8//255", "1e"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(ValueError, match=r"a number or a fraction such as 8/255, got "):
        parse_fraction(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (None, None),
        ("1-alpha", "1-alpha"),
        ("0.5", 0.5),
        ("4", 4.0),
        ("0:0.5,100:2", {0: 0.5, 100: 2.0}),
        ("0:1", {0: 1.0}),
    ],
)
def test_gamma_in_words(text, value):
    assert gamma_of(text) == value


@pytest.mark.parametrize("text", ["alpha", "", "0:0.5,", "0:0.5,100", "a:1", "0:b", "0:1:2", "0.5:1"])
def test_a_gamma_that_is_none_says_what_there_is(text):
    with pytest.raises(ValueError, match=r"takes 1-alpha, a number, or a schedule such as 0:0.5,100:2; got"):
        gamma_of(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (None, None),
        ("", None),
        ("label=1", {"label": 1.0}),
        ("label=1,self=0", {"label": 1.0, "self": 0.0}),
        (" label = 1/3 , natural_teacher = 2 ", {"label": 1 / 3, "natural_teacher": 2.0}),
    ],
)
def test_weights_in_words(text, value):
    assert weights_of(text) == value


@pytest.mark.parametrize("text", ["label", "label=1,", "label:1", "label=x", ","])
def test_weights_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match=r"NAME=NUMBER|a number or a fraction"):
        weights_of(text)


def test_only_the_knobs_that_are_set_reach_the_objective():
    assert objective_arguments(ObjectiveSettings(name="at")) == {}
    settings = ObjectiveSettings(name="iad1", beta=0.0, gate_teacher=False, gamma="0:1", weights="self=2")
    assert objective_arguments(settings) == {
        "beta": 0.0,
        "gate_teacher": False,
        "gamma": {0: 1.0},
        "weights": {"self": 2.0},
    }


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_gives_its_objective_only_knobs_that_it_has(name):
    settings = recipe_files.load(name).settings.objective
    assert objectives.build(settings.name, **objective_arguments(settings)).name == settings.name


# ------------------------------------------------------------------------------------------- what moves what


def _recipe(**objective):
    return Recipe(
        title="one",
        settings=Settings(
            recipe="one",
            objective=ObjectiveSettings(name="iad1", **objective),
            train=TrainSettings(epochs=200, drops=(100, 150)),
        ),
        by_data={"cifar100": {"objective.warmup_epochs": 80}},
    )


@pytest.mark.parametrize(
    ("epochs", "drops", "warmup"),
    [
        (200, (100, 150), 60),
        (100, (50, 75), 30),
        (400, (200, 300), 120),
        (20, (10, 15), 6),
        (3, (2, 2), 1),
        (1, (1, 1), 0),  # a drop at epoch 0 would be a lower first rate
    ],
)
def test_epochs_move_drops_and_warm_up_in_proportion(epochs, drops, warmup):
    settings = from_command_line(_recipe(warmup_epochs=60), ["--train.epochs", str(epochs)])
    assert (settings.train.epochs, settings.train.drops) == (epochs, drops)
    assert settings.objective.warmup_epochs == warmup


@given(st.integers(1, 2000))
def test_scaled_drops_stay_in_order_within_the_run_and_off_epoch_0(epochs):
    settings = scaled(_recipe(warmup_epochs=60).settings, epochs)
    first, second = settings.train.drops
    assert 1 <= first <= second <= max(1, epochs)
    assert 0 <= settings.objective.warmup_epochs <= epochs


def test_without_a_warm_up_there_is_none_to_scale():
    assert scaled(_recipe().settings, 20).objective.warmup_epochs is None


def test_what_the_command_line_gives_is_taken_as_given():
    line = "--train.epochs 20 --train.drops 7 9 --objective.warmup-epochs 11"
    settings = from_command_line(_recipe(warmup_epochs=60), line.split())
    assert (settings.train.drops, settings.objective.warmup_epochs) == ((7, 9), 11)
    settings = from_command_line(_recipe(warmup_epochs=60), ["--train.drops", "7", "--train.epochs", "20"])
    assert (settings.train.drops, settings.objective.warmup_epochs) == ((7,), 6)


@pytest.mark.parametrize("epochs", ["0", "-3"])
def test_a_run_without_epochs_is_refused(epochs):
    with pytest.raises(ValueError, match=r"--train.epochs must be at least 1, got"):
        from_command_line(_recipe(), ["--train.epochs", epochs])


def test_the_data_set_moves_the_recipe_s_values_for_it_and_the_epochs_scale_those():
    recipe = _recipe(warmup_epochs=60)
    assert from_command_line(recipe, ["--data.name", "cifar100"]).objective.warmup_epochs == 80
    line = ["--data.name", "cifar100", "--train.epochs", "50"]
    assert from_command_line(recipe, line).objective.warmup_epochs == 20
    assert from_command_line(recipe, ["--data.name=cifar100"]).objective.warmup_epochs == 80


def test_digits_have_their_own_radius_and_no_mirror_images():
    settings = from_command_line(_recipe(), ["--data.name", "digits"])
    assert settings.attack == AttackSettings(eps=0.1, step=0.025)
    assert (settings.eval.eps, settings.train.flip, settings.train.padding) == (0.1, False, 1)
    settings = from_command_line(_recipe(), ["--data.name", "digits", "--attack.eps", "8/255"])
    assert settings.attack == AttackSettings(eps=8 / 255, step=0.025)


def test_a_data_set_of_the_hub_has_the_recipe_s_values():
    settings = from_command_line(_recipe(warmup_epochs=60), ["--data.name", "someone/birds"])
    assert settings == override(_recipe(warmup_epochs=60).settings, {"data.name": "someone/birds"})


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("paper", {}),
        ("released", {}),
        ("gairat", {"train.epochs": 120, "train.drops": (60, 90, 110)}),
        ("sec5_1", {"train.epochs": 200, "train.drops": (100, 150), "train.weight_decay": 2e-4}),
    ],
)
def test_a_schedule_s_name_moves_exactly_its_own_numbers(schedule, expected):
    recipe = Recipe(
        title="t",
        settings=Settings(train=TrainSettings(epochs=100, drops=(50, 80), weight_decay=5e-4)),
    )
    settings = from_command_line(recipe, ["--train.schedule", schedule])
    assert settings == override(recipe.settings, {"train.schedule": schedule, **expected})


def test_every_schedule_has_an_entry():
    assert set(OF_SCHEDULE) == set(get_args(Schedule))


def test_a_schedule_s_drops_scale_with_the_epochs_that_are_asked_for():
    line = ["--train.schedule", "gairat", "--train.epochs", "60"]
    assert from_command_line(_recipe(), line).train.drops == (30, 45, 55)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("data", list(OF_DATA))
def test_every_recipe_has_usable_values_for_every_data_set(name, data):
    recipe = recipe_files.load(name)
    for schedule in get_args(Schedule):
        settings = recipe.defaults(data=data, schedule=schedule)
        check(settings)
        assert settings.data == dataclasses.replace(recipe.settings.data, name=data)
        assert settings.recipe == name
        objectives.build(settings.objective.name, **objective_arguments(settings.objective))


# ------------------------------------------------------------------------------------------- command line


def test_without_arguments_a_recipe_is_itself():
    recipe = _recipe(warmup_epochs=60)
    assert from_command_line(recipe, []) == recipe.settings


def test_every_setting_can_be_given():
    """Its option is its dotted name; `recipe` alone belongs to the file."""
    recipe = _recipe()
    for name, value in flat(Settings()):
        if name == "recipe" or isinstance(value, bool):
            continue
        given = {
            "data.selection": "test",
            "attack.mode": "eval",
            "precision": "bf16",
            "diagnostics": "off",
        }.get(name)
        if given is None:
            given = {
                "train.non_finite": "skip",
                "train.bn_order": "faithful",
                "compile": "step",
                "train.schedule": "released",
                "objective.name": "at",
                "attack.name": "trades",
                "objective.trust": "margin",
                "objective.target": "swap",
                "objective.sample_weight": "entropy",
                "train.rates": "cosine",
                "average.name": "ema",
                "average.batchnorm": "average",
                "train.augment": "cropshift",
            }.get(name)
        given = given or ("True" if name.endswith(("gate_teacher", "detach_target")) else "1")
        got = dict(flat(from_command_line(recipe, [option(name), given])))
        assert str(got[name]) in {given, f"{given}.0", f"({given},)"}, name


def test_switches():
    line = ["--train.no-flip", "--student.normalize", "--dry-run"]
    settings = from_command_line(_recipe(), line)
    assert (settings.train.flip, settings.student.normalize, settings.dry_run) == (False, True, True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--objective.betta 3", "--objective.beta"),
        ("--train.epoch 3", "--train.epochs"),
        ("--train.epochs three", "three"),
        ("--attack.mode traim", "traim"),
        ("--attack.eps 8/0", "8/255, got '8/0'"),
        ("--recipe other", "--recipe"),
    ],
)
def test_what_is_wrong_on_the_command_line_ends_with_2_and_says_what_is_near(line, said, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stopped:
        from_command_line(_recipe(), line.split())
    assert stopped.value.code == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


# ------------------------------------------------------------------------------------------- ranges


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.epochs", 0),
        ("train.batch_size", 0),
        ("train.accumulation", 0),
        ("train.padding", -1),
        ("train.seed", -1),
        ("attack.steps", 0),
        ("attack.eps", 0.0),
        ("attack.eps", 8.0),
        ("attack.eps", float("nan")),
        ("attack.step", 1.0),
        ("eval.eps", -0.1),
        ("eval.limit", 0),
        ("eval.aa_limit", 0),
        ("eval.validation_limit", 0),
        ("eval.every", 0),
        ("eval.batch_size", 0),
        ("checkpoint.keep", 0),
        ("checkpoint.every_epochs", 0),
        ("checkpoint.every_steps", 0),
        ("train.lr", 0.0),
        ("train.lr", float("inf")),
        ("train.lr", float("nan")),
        ("train.drop_factor", 0.0),
        ("train.momentum", float("nan")),
        ("train.weight_decay", -1e-4),
    ],
)
def test_a_number_out_of_range_is_refused_by_its_option_s_name(name, value):
    with pytest.raises(ValueError, match=f"{option(name)} (must be|is in pixels of)"):
        check(override(Settings(), {name: value}))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("eval.of", "beast", "--eval.of takes best, last or best,last; got 'beast'"),
        ("eval.of", "", "--eval.of takes"),
        ("precision", "fp8", "unknown precision 'fp8'"),
        ("train.accumulation", 129, "larger than --train.batch-size"),
    ],
)
def test_a_word_out_of_range_is_refused(name, value, said):
    with pytest.raises(ValueError, match=said):
        check(override(Settings(), {name: value}))


def test_the_defaults_are_in_range():
    check(Settings())
    check(override(Settings(), {"eval.of": " last , best ", "train.accumulation": 128}))


def test_a_setting_cannot_be_changed_behind_a_run_s_back():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().train.epochs = 3  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        DataSettings().name = "x"  # type: ignore[misc]
