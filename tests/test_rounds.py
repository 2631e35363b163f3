"""A study in calls on a machine that is lent: bundles, what is done when, and the whole way rehearsed on a CPU."""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from recipe_files import ENVIRONMENT, RECIPES
from safetensors import safe_open
from safetensors.torch import load_file
from study_runs import fake_run

from iad_ext import load_network, settings, studies
from iad_ext.backbones import create_network, save_network
from iad_ext.evaluation import gallery
from iad_ext.plan import Plan, load_data
from iad_ext.provenance import digest
from iad_ext.studies import overrides, rounds, runner
from iad_ext.studies.runner import Outcome, has_results, is_finished

ROOT = RECIPES.parent
TINY = (
    "--data.name digits --student.name cifar_resnet8 --data.limit-train 64 --data.limit-test 16 "
    "--train.batch-size 16 --precision fp32 --eval.aa-limit 2 --train.epochs 1 --eval.attacks natural,pgd20,aa"
)


NO_AA = TINY.replace(",aa", "")


def grid_of(only=None, root=Path("runs"), line=TINY):
    _, given = overrides.from_command_line(shlex.split(line))
    data = (given["all"].pop("data.name"),)
    return studies.expand(
        studies.read("one-gpu"), studies.Choices(settings=given, data=data, only=only, root=root)
    )


def with_networks(cell, *, seed=0):
    for which in ("best", "last"):
        save_network(
            create_network("cifar_resnet8", num_classes=10, seed=seed), cell.folder / which, metadata={}
        )


def trained(cell, *, seed=0):
    """A run that is trained and not measured, best and last of different epochs."""
    fake_run(rounds.measured_by(cell, ("natural",)), 0.5)
    with_networks(cell, seed=seed)
    save_network(
        create_network("cifar_resnet8", num_classes=10, seed=seed + 1), cell.folder / "last", metadata={}
    )


@pytest.fixture
def in_folder(tmp_path):
    with contextlib.chdir(tmp_path):
        yield tmp_path


def test_weights_travel_in_half_precision_and_come_out_as_they_are_measured(tmp_path):
    network = create_network("cifar_resnet8", num_classes=10, seed=3)
    save_network(network, tmp_path / "whole", metadata={"a": 1})
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    content = rounds.in_half(tmp_path / "whole/model.safetensors")
    (tmp_path / "half/model.safetensors").write_bytes(content)
    assert len(content) < 0.56 * (tmp_path / "whole/model.safetensors").stat().st_size
    kinds = {(t.ndim >= 2, t.dtype) for t in load_file(tmp_path / "half/model.safetensors").values()}
    assert kinds >= {(True, torch.float16), (False, torch.float32)}
    travelled, there = load_network(tmp_path / "half"), rounds.rounded(load_network(tmp_path / "whole"))
    for name, tensor in there.state_dict().items():
        assert torch.equal(tensor, travelled.state_dict()[name]), name
        assert tensor.dtype in (torch.float32, torch.int64)
    # packed once more it is the same
    assert set(map(str, load_file(tmp_path / "half/model.safetensors"))) == set(
        map(str, load_file(tmp_path / "whole/model.safetensors"))
    )
    again = load_file(tmp_path / "half/model.safetensors")
    (tmp_path / "twice").write_bytes(rounds.in_half(tmp_path / "half/model.safetensors"))
    assert all(torch.equal(tensor, load_file(tmp_path / "twice")[name]) for name, tensor in again.items())


@pytest.mark.parametrize("content", [b"", b"a", b"ab", b"abc", bytes(range(256)) * 3])
def test_what_is_squeezed_comes_out_as_it_was(content):
    assert rounds.unsqueezed(rounds.squeezed(content)) == content


def test_two_networks_of_the_study_fit_into_what_is_carried(tmp_path):
    """AKD2's two teachers, or the best and the last of a run that is not measured; 3 MiB are for everything else."""
    save_network(create_network("cifar_resnet18", num_classes=10, seed=0), tmp_path, metadata={})
    content = rounds.in_half(tmp_path / "model.safetensors")
    travels = rounds.squeezed(content)
    assert rounds.unsqueezed(travels) == content
    assert 2 * len(travels) < (rounds.Prepare.carry - 3) * rounds.MEBIBYTE < 2 * len(content)


def test_a_bundle_is_in_parts_and_a_damaged_one_is_refused(in_folder, monkeypatch):
    monkeypatch.setattr(rounds, "PART", 40_000)
    grid = grid_of(only="AT")
    (cell,) = grid.cells
    fake_run(cell, 0.5)
    with_networks(cell)
    packed = rounds.pack(grid.cells, Path("runs"), Path("back"), most=2**30, have={}, all_networks=True)
    assert len(packed.parts) > 3
    assert max(part.stat().st_size for part in packed.parts) <= 40_000
    assert packed.left_out == ()
    rounds.unpack(Path("back"), Path("there"))
    where = Path("there", *cell.folder.parts[1:])
    assert (where / "results.json").read_bytes() == (cell.folder / "results.json").read_bytes()
    assert load_network(where / "best").num_classes == 10
    assert not (where / "last").exists()  # it is measured: nobody needs its last network
    packed.parts[1].write_bytes(b"x" * 40_000)
    with pytest.raises(ValueError, match=r"bundle-01\.part is missing or not what was packed"):
        rounds.unpack(Path("back"), Path("elsewhere"))
    packed.parts[1].unlink()
    with pytest.raises(ValueError, match=r"bundle-01\.part is missing"):
        rounds.unpack(Path("back"), Path("elsewhere"))
    assert not Path("elsewhere").exists()


def test_parts_are_below_15_million_bytes(in_folder):
    """What carries them back may count in either unit."""
    grid = grid_of(only="AT")
    fake_run(grid.cells[0], 0.5)
    (grid.cells[0].folder / "history.jsonl").write_bytes(bytes(31_000_000))
    packed = rounds.pack(grid.cells, Path("runs"), Path("back"), most=2**30, have={}, all_networks=True)
    sizes = [part.stat().st_size for part in packed.parts]
    assert sum(sizes) > 31_000_000
    assert max(sizes) < 15_000_000


def test_what_would_be_too_much_is_left_out_networks_first(in_folder):
    grid = grid_of(only="AT")
    fake_run(grid.cells[0], 0.5)
    with_networks(grid.cells[0])
    packed = rounds.pack(grid.cells, Path("runs"), Path("back"), most=60_000, have={}, all_networks=True)
    assert [name.rpartition("/")[2] for name in packed.left_out] == ["model.safetensors"]
    assert packed.size < 70_000
    assert any(name.endswith("results.json") for name in packed.files)


def test_what_the_other_side_has_does_not_travel_back(in_folder):
    grid = grid_of(only="AT")
    fake_run(grid.cells[0], 0.5)
    with_networks(grid.cells[0])
    rounds.pack(grid.cells, Path("runs"), Path("back"), most=2**30, have={}, all_networks=True)
    have = rounds.unpack(Path("back"), Path("there/runs"))
    with contextlib.chdir("there"):
        again = rounds.pack(grid.cells, Path("runs"), Path("back"), most=2**30, have=have, all_networks=True)
    assert again.files == ()


def test_originals_and_other_runs_are_left_as_they_are(in_folder, caplog):
    grid = grid_of(only="AT")
    (cell,) = grid.cells
    fake_run(cell, 0.5)
    with_networks(cell)
    rounds.pack(grid.cells, Path("runs"), Path("back"), most=2**30, have={}, all_networks=True)
    whole = (cell.folder / "best/model.safetensors").read_bytes()
    (cell.folder / "results.json").write_text("older")
    rounds.unpack(Path("back"), Path("runs"))
    assert (cell.folder / "best/model.safetensors").read_bytes() == whole
    assert json.loads((cell.folder / "results.json").read_text())["selection"] == "holdout"
    (cell.folder / "environment.json").write_text('{"time": "another"}')
    (cell.folder / "results.json").write_text("mine")
    rounds.unpack(Path("back"), Path("runs"))
    assert (cell.folder / "results.json").read_text() == "mine"
    assert "is another run than the bundle's" in caplog.text


@pytest.mark.parametrize("command", ["prepare one-gpu --folder travel", "merge one-gpu --back back"])
def test_a_folder_with_another_run_is_refused_before_anything_is_made_of_it(in_folder, capsys, command):
    """A trial of two epochs in a cell's folder: no teacher of the next round, and never in the table."""
    grid = grid_of(only="AT")
    (cell,) = grid.cells
    fake_run(cell, 0.5)
    rounds.pack(grid.cells, Path("runs"), Path("back"), most=2**30, have={}, all_networks=True)
    trial = settings.override(cell.settings, {"train.epochs": 2, "eval.aa_limit": 8})
    (cell.folder / "settings.yaml").write_text(settings.to_yaml(trial))
    (cell.folder / "environment.json").write_text('{"time": "another"}')
    assert rounds.main(shlex.split(f"{command} --only AT {TINY}")) == 2
    said = capsys.readouterr().err
    assert f"{cell.folder} was begun with other settings" in said
    assert "--train.epochs: 2 before, 1 now" in said
    assert not grid.folder.exists()
    assert not Path("travel").exists()


def test_a_call_refuses_to_go_on_from_another_run(in_folder, doing):
    grid = grid_of(only="AT")
    (cell,) = grid.cells
    fake_run(cell, 0.5)
    trial = settings.override(cell.settings, {"train.epochs": 2})
    (cell.folder / "settings.yaml").write_text(settings.to_yaml(trial))
    with pytest.raises(ValueError, match="was begun with other settings"):
        rounds.call(grid, carried=None, back=Path("back"), minutes=60, most=2**30, say=print)
    assert doing == []
    assert not Path("back").exists()


def test_images_elsewhere_are_no_other_run(in_folder):
    """On the machine they are in the folder that travels."""
    (cell,) = grid_of(only="AT").cells
    fake_run(cell, 0.5)
    there = settings.override(
        cell.settings, {"data.path": Path("travel/data/digits"), "eval.attacks": "natural"}
    )
    (cell.folder / "settings.yaml").write_text(settings.to_yaml(there))
    assert runner.begun_otherwise(cell) == []


def test_teachers_of_what_is_not_trained_and_what_is_not_measured_travel(in_folder):
    grid = grid_of(only="ARD (AT),AKD2 (AT)")
    at, ard, st, _ = grid.cells
    for cell in (at, st):
        fake_run(cell, 0.5)
    fake_run(rounds.measured_by(ard, ("natural",)), 0.5)
    wanted = list(rounds.networks_wanted(grid.cells))
    assert wanted == [at.folder / "best", st.folder / "best", ard.folder / "best", ard.folder / "last"]


def test_teachers_go_before_networks_that_are_only_measured(in_folder):
    """An AT that is not measured yet needs its last network less than AKD2 needs its second teacher."""
    at, st, _ = cells = grid_of(only="AKD2 (AT),AT").cells
    fake_run(rounds.measured_by(at, ("natural",)), 0.5)
    fake_run(st, 0.5)
    wanted = list(rounds.networks_wanted(cells))
    assert wanted == [at.folder / "best", st.folder / "best", at.folder / "last"]


def test_the_teacher_of_what_is_measured_travels_last_for_its_gallery(in_folder):
    at, ard = cells = grid_of(only="ARD (AT)").cells
    fake_run(at, 0.5)
    fake_run(rounds.measured_by(ard, ("natural",)), 0.5)
    wanted = list(rounds.networks_wanted(cells))
    assert wanted == [ard.folder / "best", ard.folder / "last", at.folder / "best"]


def test_a_teacher_that_is_too_large_to_travel_is_trained_again_there(in_folder, capsys):
    grid = grid_of(only="AKD2 (AT)")
    for cell in grid.cells[:2]:
        fake_run(cell, 0.5)
        with_networks(cell)
    size = len(rounds.in_half(grid.cells[0].folder / "best/model.safetensors"))
    line = f"prepare one-gpu --folder travel --only AKD2* --carry {1.6 * size / rounds.MEBIBYTE} {TINY}"
    assert rounds.main(shlex.split(line)) == 0
    assert "too large  runs/digits/st_resnet18" in capsys.readouterr().out
    rounds.unpack(Path("travel"), Path("there/runs"))
    with contextlib.chdir("there"):
        assert [has_results(cell.folder) for cell in grid.cells] == [True, False, False]
        assert load_network(grid.cells[0].folder).num_classes == 10


def test_prepare_says_which_networks_it_leaves_behind(in_folder, capsys):
    (cell,) = grid_of(only="AT").cells
    trained(cell)
    size = len(rounds.squeezed(rounds.in_half(cell.folder / "best/model.safetensors")))
    line = f"prepare one-gpu --folder travel --only AT --carry {1.6 * size / rounds.MEBIBYTE} {TINY}"
    assert rounds.main(shlex.split(line)) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    where = cell.folder.relative_to("runs")
    assert [line.partition(": ")[0] for line in said] == [f"left out   {where}/last/model.safetensors"]


@pytest.mark.parametrize("stored", ["whole", "as it travelled"])
def test_merge_says_whose_teacher_is_not_the_stored_one(in_folder, capsys, stored):
    """AKD2's second teacher was trained again on another machine: its student is not the stored one's."""
    at, st, akd2 = cells = grid_of(only="AKD2 (AT)").cells
    for seed, cell in enumerate(cells):
        fake_run(cell, 0.5)
        with_networks(cell, seed=seed)
    digests = {}
    for role, cell in (("teacher", at), ("natural_teacher", st)):
        network = rounds.rounded(load_network(cell.folder / "best"))
        digests[role] = {"digest": digest(network.state_dict())}
        if stored == "as it travelled":
            rounds.round_kept(cell)

    def merged(teachers):
        environment = json.loads((akd2.folder / "environment.json").read_text())
        (akd2.folder / "environment.json").write_text(json.dumps(environment | {"teachers": teachers}))
        rounds.pack([], Path("runs"), Path("back"), most=2**30, have={}, all_networks=True)
        assert rounds.main(shlex.split(f"merge one-gpu --back back --only AKD2* {TINY}")) == 0
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("other ")]

    assert merged(digests) == []
    (said,) = merged(digests | {"natural_teacher": {"digest": "0" * 64}})
    assert f"{akd2.folder} was taught by another network than {st.folder / 'best'}" in said
    assert merged({}) == []  # of an earlier version, whose runs do not say


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("prepare one-gpu --folder travel --wheels nowhere", "there is no folder nowhere"),
        ("prepare one-gpu --folder travel --wheels empty", "--wheels: empty holds no packages (*.whl)"),
        ("merge one-gpu --back back", "there is no back/bundle.json; give the folder that came back"),
    ],
)
def test_a_folder_that_is_not_there_costs_nothing(in_folder, capsys, line, said):
    Path("empty").mkdir()
    assert rounds.main(shlex.split(f"prepare one-gpu --folder travel {TINY}")) == 0
    before = sorted(Path("travel").rglob("*"))
    assert rounds.main(shlex.split(f"{line} {TINY}")) == 2
    assert said in capsys.readouterr().err
    assert sorted(Path("travel").rglob("*")) == before


def words_there(travel):
    """The study and the options that round.sh gives to rounds.py, with the folder that travelled for $here."""
    line = (travel / "round.sh").read_text().partition("rounds.py run ")[2].replace("\\\n", "")
    study, *words = shlex.split(line.replace('"$here"', shlex.quote(str(travel.absolute()))))
    return study, words[words.index("--most") + 2 :]


def test_a_study_of_one_s_own_travels_along(in_folder):
    file = Path("my own; study.yaml")
    rows = "rows: [{label: AT, method: at}]"
    file.write_text(f"title: own\ndata: digits\nstudent: resnet18\n{rows}\n")
    assert rounds.main(["prepare", str(file), "--folder", "travel", *shlex.split(TINY)]) == 0
    study, _ = words_there(Path("travel"))
    assert Path(study).read_text() == file.read_text()
    assert studies.read(study) == studies.read(str(file))
    # an edited copy of one of the package's is not the package's
    Path("one-gpu.yaml").write_text(file.read_text())
    for _ in range(2):  # also from the folder that is emptied
        assert rounds.main(["prepare", "one-gpu.yaml", "--folder", "travel", *shlex.split(TINY)]) == 0
        assert [row.label for row in studies.read(words_there(Path("travel"))[0]).rows] == ["AT"]


@pytest.mark.parametrize("data", ["digits, cifar10", "cifar10"])
def test_the_images_are_found_there_where_the_study_looks_for_them(in_folder, data):
    Path("images/cifar10").mkdir(parents=True)
    Path("own.yaml").write_text(
        f"title: own\ndata: [{data}]\nstudent: resnet18\nrows: [{{label: AT, method: at}}]\n"
    )
    assert rounds.main(["prepare", "own.yaml", "--folder", "travel", "--data.path", "images"]) == 0
    study, words = words_there(Path("travel"))
    _, given = overrides.from_command_line(words)
    grid = studies.expand(studies.read(study), studies.Choices(settings=given))
    paths = {cell.settings.data.name: cell.settings.data.path for cell in grid.cells}
    assert paths.pop("digits", None) is None
    assert paths == {"cifar10": Path("travel/data/cifar10").absolute()}


def test_the_time_that_a_run_needs_follows_from_another_s(in_folder):
    grid = grid_of(only="ARD (AT),IAD-I (AT)")
    at, ard, iad = grid.cells
    assert rounds.seconds_needed(ard, grid.cells) == 0
    fake_run(at, 0.5, epochs=5, seconds=22.0)
    passes = {cell.recipe: Plan.of(cell.settings).forward_passes(0)[0] for cell in grid.cells}
    expected = {
        cell.recipe: 22.02 / passes["at_resnet18"] * passes[cell.recipe] * rounds.MARGIN + rounds.STARTING
        for cell in (ard, iad)
    }
    for cell in (ard, iad):
        assert rounds.seconds_needed(cell, grid.cells) == pytest.approx(expected[cell.recipe], rel=0.01)


def test_a_run_is_measured_with_the_images_that_its_page_shows(in_folder):
    """As its recipe would: of the best network, with the teacher's trust."""
    teacher, student = grid_of(only="ARD (AT)", line=NO_AA).cells
    trained(teacher, seed=5)
    trained(student)
    rounds.measure(student)
    with safe_open(student.folder / "gallery.safetensors", "pt") as held:
        assert json.loads(held.metadata()["about"])["network"] == "best"
        trust = held.get_tensor("distrusted/trust")
    assert {"gallery.safetensors"} <= {
        file.name for file in rounds._files_wanted([student], all_networks=False)
    }
    images = load_data(student.settings).test
    kept = gallery.pick(
        rounds.rounded(load_network(student.folder / "best")),
        images.images,
        images.labels,
        teacher=rounds.rounded(load_network(teacher.folder / "best")),
        eps=student.settings.eval.eps,
        batch_size=student.settings.eval.batch_size,
    )
    assert torch.equal(trust, kept["distrusted/trust"])


def test_without_its_teacher_a_run_has_its_worst_images(in_folder):
    teacher, student = grid_of(only="ARD (AT)", line=NO_AA).cells
    trained(teacher)
    trained(student)
    shutil.rmtree(teacher.folder / "best")
    rounds.measure(student)
    groups = {name.partition("/")[0] for name in load_file(student.folder / "gallery.safetensors")}
    assert groups == {"worst"}


def test_merging_makes_a_page_of_every_run_and_the_study_s_leads_to_it(in_folder):
    grid = grid_of(only="AT")
    (cell,) = grid.cells
    fake_run(cell, 0.5)
    (cell.folder / "settings.yaml").write_text(settings.to_yaml(cell.settings))
    rounds.pack(grid.cells, Path("runs"), Path("back"), most=2**30, have={}, all_networks=True)
    shutil.rmtree("runs")
    assert rounds.main(shlex.split(f"merge one-gpu --back back --only AT {TINY}")) == 0
    assert "AT on digits" in (cell.folder / "report.html").read_text()
    link = quote(os.path.relpath(cell.folder / "report.html", grid.folder))
    assert f'href="{link}"' in (grid.folder / "report.html").read_text()


def test_one_network_is_measured_where_the_other_is_not(in_folder):
    """What the two calls find is what one call with both networks finds."""
    (cell,) = grid_of(only="AT", line=NO_AA).cells
    trained(cell)
    shutil.copytree("runs", "both")
    shutil.move(cell.folder / "last", "last")
    rounds.measure(cell)
    results = json.loads((cell.folder / "results.json").read_text())
    assert "pgd20" in results["best"]
    assert "last" not in results  # what its training said of it is no part of this measurement
    assert not is_finished(cell)
    assert rounds.left_to_measure(cell) == ["last"]
    assert set(rounds.networks_wanted([cell])) == {cell.folder / "last"}
    assert list(rounds.remaining(grid_of(only="AT", line=NO_AA))) == [
        f"to measure {cell.folder} (last: the network is not here)"
    ]
    shutil.move(cell.folder / "best", "best")
    shutil.move("last", cell.folder / "last")
    rounds.measure(cell)
    assert is_finished(cell)
    apart = json.loads((cell.folder / "results.json").read_text())
    flags = load_file(cell.folder / "robust.safetensors")
    (together,) = grid_of(only="AT", line=NO_AA, root=Path("both")).cells
    rounds.measure(together)
    whole = json.loads((together.folder / "results.json").read_text())
    for which in ("best", "last"):
        assert {name: apart[which][name] for name in ("natural", "pgd20", "n")} == {
            name: whole[which][name] for name in ("natural", "pgd20", "n")
        }
    expected = load_file(together.folder / "robust.safetensors")
    assert flags.keys() == expected.keys()
    assert all(torch.equal(flags[name], expected[name]) for name in flags)
    assert apart["evaluation"] == whole["evaluation"]


def test_a_last_network_that_is_the_best_is_measured_and_travels_once(in_folder, monkeypatch):
    (cell,) = grid_of(only="AT", line=NO_AA).cells
    fake_run(rounds.measured_by(cell, ("natural",)), 0.5, epochs=1)
    with_networks(cell)
    assert list(rounds.networks_wanted([cell])) == [cell.folder / "best"]
    times = []
    measured = rounds.run_.measure
    monkeypatch.setattr(rounds.run_, "measure", lambda *a, **k: times.append(1) or measured(*a, **k))
    rounds.measure(cell)
    assert len(times) == 1
    assert is_finished(cell)
    results = json.loads((cell.folder / "results.json").read_text())
    assert results["best"] == results["last"]


@pytest.fixture
def doing(monkeypatch):
    """What is trained and measured, in order, by stand-ins that take no time."""
    done = []

    class Trains:
        def __init__(self, cells, *, budget, say):
            self.cells = cells

        def run(self):
            for cell in self.cells:
                done.append(("train", cell.recipe))
                fake_run(cell, 0.5, epochs=1, seconds=6.0)
                with_networks(cell)
            return Outcome(finished=list(self.cells))

    def measure(cell, after_batch=None):
        done.append(("measure", cell.recipe))
        fake_run(cell, 0.5, epochs=1, seconds=6.0)

    monkeypatch.setattr(rounds, "Runner", Trains)
    monkeypatch.setattr(rounds, "measure", measure)
    return done


def test_a_call_trains_what_fits_and_measures_in_what_is_left(in_folder, doing):
    grid = grid_of()
    rounds.call(grid, carried=None, back=Path("back"), minutes=60, most=2**30, say=lambda line: None)
    methods = ("at", "ard", "iad1", "st", "akd2", "iad2")
    assert [what for what, _ in doing] == ["train"] * 6 + ["measure"] * 5
    assert [recipe.partition("_")[0] for _, recipe in doing[:6]] == list(methods)
    assert {recipe for what, recipe in doing if what == "measure"} == {
        f"{method}_resnet18" for method in methods if method != "st"
    }
    assert all(is_finished(cell) for cell in grid.cells if cell.labels)
    # students of this call have the teacher that those of later ones will have
    for which in ("best", "last"):
        held = load_file(grid.cells[0].folder / which / "model.safetensors")
        assert {tensor.dtype for tensor in held.values() if tensor.ndim >= 2} == {torch.float16}


def test_where_nothing_fits_it_measures_first(in_folder, doing):
    grid = grid_of()
    # a minute is for a run's start: the second run does not fit into this call
    rounds.call(grid, carried=None, back=Path("back"), minutes=1.2, most=2**30, say=lambda line: None)
    assert doing[:3] == [("train", "at_resnet18"), ("measure", "at_resnet18"), ("train", "ard_resnet18")]


def test_whatever_goes_wrong_what_is_finished_goes_back(in_folder, doing, monkeypatch):
    def breaks(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(rounds, "measure", breaks)
    with pytest.raises(RuntimeError, match="no such kernel"):
        rounds.call(grid_of(), carried=None, back=Path("back"), minutes=60, most=2**30, say=print)
    about = json.loads(Path("back/bundle.json").read_text())
    assert sum(name.endswith("results.json") for name in about["files"]) == 6


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("prepare one-gpus --folder travel", "unknown study 'one-gpus'; did you mean 'one-gpu'?"),
        ("merge one-gpu --back nowhere", "nowhere/bundle.json"),
        ("prepare one-gpu --folder full", "full is not empty and not of an earlier round"),
        ("prepare one-gpu --folder travel --trian.epochs 1", "did you mean '--train.epochs'?"),
    ],
)
def test_wrong_words_are_told(in_folder, capsys, line, said):
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("")
    assert rounds.main(shlex.split(line)) == 2
    assert said in capsys.readouterr().err
    assert Path("full/thesis.tex").exists()


# ------------------------------------------------------------------------------------------- the whole way


def machine(folder, travel):
    """A machine that has what travels: the source tree and the prepared folder."""
    folder.mkdir()
    for name in ("iad_ext", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(travel, folder / "travel")
    python = str(Path(sys.executable).parent)
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        ["bash", "travel/round.sh", "back"],
        cwd=folder,
        env={**environment, "PATH": f"{python}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_rounds_on_two_machines_make_one_study(tmp_path):
    """The teacher comes back from the first machine, travels to the second, and teaches there."""
    host, options = tmp_path / "host", shlex.split(TINY)
    host.mkdir()
    with contextlib.chdir(host):
        assert rounds.main(["prepare", "one-gpu", "--folder", "travel", "--only", "AT", *options]) == 0
        first = machine(tmp_path / "one", host / "travel")
        assert "measured   runs/digits/at_resnet18" in first
        assert rounds.main(["merge", "one-gpu", "--back", str(tmp_path / "one/back"), *options]) == 0
        # the machine of the second round has nothing of the first
        assert rounds.main(["prepare", "one-gpu", "--folder", "travel", "--only", "ARD*", *options]) == 0
        second = machine(tmp_path / "two", host / "travel")
        assert "finished   runs/digits/ard_resnet18-at" in second
        assert "at_resnet18,batch" not in second.replace("ard_resnet18-at", "")
        assert rounds.main(["merge", "one-gpu", "--back", str(tmp_path / "two/back"), *options]) == 0
        grid = grid_of(only="AT,ARD*")
        assert all(is_finished(cell) for cell in grid.cells)
        student = next(cell for cell in grid.cells if cell.recipe == "ard_resnet18")
        assert has_results(student.folder)
        results = json.loads((student.folder / "results.json").read_text())
        assert results["weights"] == "rounded to half precision"
        assert set(results["best"]) >= {"natural", "pgd20", "aa", "n_aa"}
        (table,) = Path("runs/studies").glob("one-gpu-*/study.json")
        rows = {row["label"]: row for row in json.loads(table.read_text())["rows"]}
        assert rows["ARD (AT)"]["checkpoints"]["best"]["aa"]["n"] == 2
        taught_by = json.loads((student.folder / "environment.json").read_text())["teachers"]["teacher"]
        stored = load_network(grid.cells[0].folder / "best").state_dict()
        assert taught_by["digest"] == digest(stored)
        assert "distrusted/images" in load_file(student.folder / "gallery.safetensors")
        assert "Most distrusted images" in (student.folder / "report.html").read_text()
        assert rows["IAD-I (AT)"]["checkpoints"]["best"] == {}
    assert max(file.stat().st_size for file in (tmp_path / "two/back").iterdir()) < 15_000_000
