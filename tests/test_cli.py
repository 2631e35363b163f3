"""The command line: what it prints, what it writes, what it refuses and with which exit code."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from recipe_files import ENVIRONMENT, together
from run_folders import trained

from iad_ext import cli, load_network
from iad_ext.backbones import create_network, save_network
from iad_ext.evaluation import evaluate
from iad_ext.objectives import ROWS

ROOT = Path(cli.__file__).parents[1]
RECIPES = sorted(path.name for path in (ROOT / "recipes").rglob("*.py"))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def bare(run_folder, tmp_path_factory):
    """The same weights as a bare checkpoint."""
    file = tmp_path_factory.mktemp("bare") / "weights.pt"
    torch.save({"state_dict": load_network(run_folder).state_dict()}, file)
    return file


def in_process_of_its_own(*args, code=0, cwd=None, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "iad_ext", *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=cwd,
    )
    assert done.returncode == code, done.stderr
    return done


# ------------------------------------------------------------------------------------------- help


def test_help_names_every_subcommand_and_exit_code_and_imports_nothing_heavy():
    done = in_process_of_its_own("--help", PYTHONPROFILEIMPORTTIME="1")
    for name in cli.COMMANDS:
        assert f"• {name}" in done.stdout
    for code in (cli.DONE, cli.WRONG_INPUT, cli.CANNOT_WRITE, cli.STOPPED, cli.TO_MEND):
        assert f"\n  {code}  " in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "tyro" in imported
    assert not imported & {"torch", "timm", "art", "datasets", "numpy"}


def test_without_arguments_it_shows_its_help(say):
    assert say() == say("--help")


@pytest.mark.parametrize("command", cli.COMMANDS)
@pytest.mark.parametrize("width", [80, 120])
def test_every_help_fits_the_terminal_and_explains_every_option(command, width):
    out = in_process_of_its_own(command, "--help", COLUMNS=str(width), PYTHONIOENCODING="utf-8").stdout
    framed = [line for line in out.splitlines() if line.startswith(("│", "╭", "╰"))]
    assert framed
    assert max(map(len, framed)) <= width
    for option in cli._option_names(cli.COMMANDS[command]):
        assert option in out
    assert "None" not in out


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_completion_scripts_name_the_program_and_its_subcommands(say, shell):
    code, out, _ = say("completion", shell)
    assert code == 0
    assert "iad-ext" in out
    for name in cli.COMMANDS:
        assert name in out


def test_bash_completes_subcommands_and_options(tmp_path):
    script = tmp_path / "completion.bash"
    script.write_text(in_process_of_its_own("completion", "bash").stdout)
    ask = (
        f"source {script}; f=$(complete -p iad-ext | sed 's/.*-F \\([^ ]*\\).*/\\1/'); "
        "COMP_WORDS=(iad-ext {words}); COMP_CWORD={last}; $f iad-ext {word} {before}; echo ${{COMPREPLY[@]}}"
    )
    for words, answer in (("ev", "evaluate"), ("evaluate --data.p", "--data.path")):
        *before, word = ["iad-ext", *words.split()]
        line = ask.replace("{words}", words).replace("{last}", str(len(before))).replace("{word}", word)
        line = line.replace("{before}", before[-1]).replace("{{", "{").replace("}}", "}")
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        assert done.stdout.strip() == answer, done.stderr


# ------------------------------------------------------------------------------------------- what is refused

REFUSED = {
    "command": ("recips", "unknown command 'recips'; did you mean 'recipes'?"),
    "option": ("evaluate --limt 3", "unknown option of evaluate '--limt'; did you mean '--limit'?"),
    "grouped option": ("evaluate x --data.pth y", "'--data.pth'; did you mean '--data.path'?"),
    "objective": ("objectives iad3", "unknown objective 'iad3'; did you mean 'iad"),
    "shell": ("completion fsh", "unknown shell 'fsh'; did you mean 'zsh'?"),
    "attack": ("evaluate x --attacks pdg20", "'pdg20'; did you mean 'pgd20'?"),
    "no attack": ("evaluate x --attacks ,", "--attacks takes some of natural"),
    "radius": ("evaluate x --eps 8", "--eps is in pixels of [0, 1], such as 8/255; got 8"),
    "no radius": ("evaluate x --eps much", "expected a number or a fraction such as 8/255, got 'much'"),
    "limit": ("evaluate x --limit 0", "--limit must be at least 1, got 0"),
    "limit of no attack": (
        "evaluate x --attacks pgd20 --aa-limit 9",
        "--aa-limit is AutoAttack's; add aa to",
    ),
    "limit of no teacher": ("doctor --limit 9", "--limit is for reading a teacher; name one with --teacher"),
    "no probe of a teacher": ("doctor --teacher x --no-probe", "--no-probe is for looking at the machine"),
    "device": ("evaluate x --device gpu", "--device gpu: "),
    "no such file": ("evaluate nowhere.pt", "nowhere.pt, found nothing"),
    "no such network": ("evaluate cifar_resnet19", "did you mean 'cifar_resnet18'?"),
    "argument": ("evaluate x.pt --model-args depth", "--model-args takes NAME=VALUE, got 'depth'"),
    "export": ("export x y --to onx", "unknown export in --to 'onx'; did you mean 'onnx'?"),
    "no export": ("export x y --to ,", "--to takes some of timm"),
    "push to nowhere": ("export x y --push", "--push needs --repo OWNER/NAME"),
    "export of nothing": ("export nowhere/at_all y", "found nothing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_input_is_one_plain_error_and_exit_code_2(say, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    line, message = REFUSED[case]
    code, out, err = say(*line.split())
    assert code == cli.WRONG_INPUT
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_bare_checkpoint_is_answered_with_the_options_that_fit(say, bare):
    code, _, err = say("evaluate", bare, "--data.name", "digits")
    assert code == cli.WRONG_INPUT
    assert "it fits --architecture cifar_resnet8 --num-classes 10" in err
    code, _, err = say("evaluate", bare, "--architecture", "cifar_resnet8")
    assert code == cli.WRONG_INPUT
    assert "does not say which images it is for; give --data.name" in err


def test_arguments_in_messages_are_spelled_as_options():
    message = (
        "fits architecture='cifar_wrn34_10', num_classes=7, model_args={'depth': 16, 'a': False} or key=…"
    )
    expected = (
        "fits --architecture cifar_wrn34_10 --num-classes 7 --model-args depth=16 a=false or --key ENTRY"
    )
    assert cli._as_options(message) == expected
    assert (
        cli._as_options("give architecture=… and num_classes=…") == "give --architecture NAME --num-classes N"
    )


def test_classes_that_disagree_with_the_data_are_named(say, tmp_path):
    save_network(create_network("cifar_resnet8", num_classes=7, seed=0), tmp_path / "net", metadata={})
    code, _, err = say("evaluate", tmp_path / "net", "--data.name", "digits")
    assert code == cli.WRONG_INPUT
    assert "has 7 classes, digits has 10" in err


# ------------------------------------------------------------------------------------------- doctor


def test_the_doctor_prints_findings_and_its_exit_code_says_whether_to_mend(say, monkeypatch):
    from iad_ext import doctor

    monkeypatch.setattr(
        doctor, "gather", lambda *, probe: doctor.Facts(precision=("bf16", "m") if probe else None)
    )
    code, out, _ = say("doctor")
    assert code == cli.DONE
    assert "bf16 pays off" in out
    assert "precision" not in say("doctor", "--no-probe")[1]
    monkeypatch.setattr(doctor, "gather", lambda *, probe: doctor.Facts(python="3.9.1"))
    code, out, _ = say("doctor")
    assert code == cli.TO_MEND
    assert "✗ Python" in out


# ------------------------------------------------------------------------------------------- objectives, recipes


def test_objectives_shows_every_row_with_formula_and_passes(say):
    code, out, _ = say("objectives")
    assert code == 0
    unwrapped = " ".join(out.split())
    for name, constructor in ROWS.items():
        assert f"\n{name} " in f"\n{out}"
        assert constructor().formula in unwrapped
    assert "passes S(x), S(x̃), T_at(x), T_at(x̃); in warm-up (60 epochs) S(x̃), T_at(x)" in unwrapped
    assert "(Table 1; Eq. 5)" in out


def test_an_objective_is_told_in_full(say):
    code, out, _ = say("objectives", "iad2")
    assert code == 0
    assert ROWS["iad2"].__doc__.splitlines()[0] in out
    assert "--objective.natural-teacher-weight" in out
    assert any(line.split() == ["--objective.warmup-epochs", "40"] for line in out.splitlines())


def test_recipes_are_listed_and_copied(say, tmp_path):
    code, out, _ = say("recipes")
    assert code == 0
    for name in RECIPES:
        if name.count("_"):
            assert f"\n{Path(name).stem} " in f"\n{out}"
    code, out, _ = say("recipes", "--copy", tmp_path / "mine")
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "mine").rglob("*.py")) == RECIPES
    assert (tmp_path / "mine/studies/table9.yaml").is_file()
    assert (tmp_path / "mine/at_resnet18.py").read_bytes() == (ROOT / "recipes/at_resnet18.py").read_bytes()


def test_recipes_that_were_changed_are_not_replaced_unasked(say, tmp_path):
    say("recipes", "--copy", tmp_path)
    (tmp_path / "at_resnet18.py").write_text("mine")
    code, _, err = say("recipes", "--copy", tmp_path)
    assert code == cli.WRONG_INPUT
    assert "exists and" in err
    assert "--force" in err
    assert (tmp_path / "at_resnet18.py").read_text() == "mine"
    assert say("recipes", "--copy", tmp_path, "--force")[0] == 0
    assert (tmp_path / "at_resnet18.py").read_text() != "mine"


def test_a_place_that_cannot_be_written_is_exit_code_4(say, tmp_path, run_folder):
    (tmp_path / "file").write_text("")
    assert say("recipes", "--copy", tmp_path / "file" / "deep")[0] == cli.CANNOT_WRITE
    code, _, err = say("evaluate", run_folder, "--out", tmp_path / "file" / "r.json")
    assert code == cli.CANNOT_WRITE
    assert "cannot write" in err


@pytest.mark.slow
def test_a_wheel_brings_the_recipes_and_the_command(tmp_path):
    """Built for real, unpacked, and asked from there."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
        entry = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "iad-ext = iad_ext.cli:main" in archive.read(entry).decode()
    here = {"PYTHONPATH": str(tmp_path / "installed"), "cwd": tmp_path}
    assert "iad1_resnet18" in in_process_of_its_own("recipes", **here).stdout
    assert "\ntable9 " in in_process_of_its_own("study", **here).stdout
    cells = in_process_of_its_own("study", "table9", "--dry-run", **here).stdout
    assert "runs/cifar10/iad1_resnet18-at,gamma=0.5/seed0" in cells
    in_process_of_its_own("recipes", "--copy", "mine", **here)
    assert sorted(path.name for path in (tmp_path / "mine").rglob("*.py")) == RECIPES
    dry = [sys.executable, "mine/at_resnet18.py", "--dry-run", "--data.name", "digits"]
    done = subprocess.run(
        dry,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": here["PYTHONPATH"]},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------- evaluate


def test_a_run_folder_is_measured_as_the_run_measured_it(say, run_folder, tmp_path):
    out = tmp_path / "r.json"
    code, printed, _ = say("evaluate", run_folder, "--limit", "32", "--aa-limit", "2", "--out", out)
    assert code == 0
    measured = json.loads((run_folder / "results.json").read_text())["best"]
    content = json.loads(out.read_text())
    settings = yaml.safe_load((run_folder / "settings.yaml").read_text())
    assert content["data"]["name"] == settings["data"]["name"] == "digits"
    assert content["measured"]["protocol"]["eps"] == settings["eval"]["eps"] == 0.1
    assert content["measured"]["n_aa"] == 2
    assert content["environment"]["versions"]["torch"]
    assert "robust" not in content["measured"]
    for title, attack in (("natural", "natural"), ("PGD-20", "pgd20"), ("AutoAttack", "aa")):
        low, high = content["measured"]["interval"][attack]
        (row,) = [line for line in printed.splitlines() if line.startswith(title)]
        assert f"{content['measured'][attack]:.2f}%" in row
        assert f"{low:.2f} to {high:.2f}" in row
    assert measured["protocol"]["attacks"].keys() == content["measured"]["protocol"]["attacks"].keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "r.robust.safetensors"]


def test_what_it_writes_is_what_evaluate_returns(say, bare, tmp_path):
    from iad_ext.data import load_splits

    line = "--architecture cifar_resnet8 --data.name digits --attacks natural,pgd10 --limit 20 --eps 16/255 --seed 5"
    code, printed, _ = say("evaluate", bare, *line.split(), "--out", tmp_path / "r.json")
    assert code == 0
    assert "L∞ radius 16/255, seed 5" in printed
    test = load_splits("digits").test
    network = load_network(bare, "cifar_resnet8")
    expected = evaluate(
        network, test.images[:20], test.labels[:20], attacks=("natural", "pgd10"), eps=16 / 255, seed=5
    )
    measured = json.loads((tmp_path / "r.json").read_text())["measured"]
    assert {name: measured[name] for name in ("natural", "pgd10", "n")} == {
        name: expected[name] for name in ("natural", "pgd10", "n")
    }


@pytest.mark.slow
def test_processes_share_a_measurement_and_one_of_them_speaks(run_folder, tmp_path):
    line = ["--attacks", "natural,pgd10", "--limit", "20", "--batch-size", "4", "--curve-limit", "8"]
    in_process_of_its_own("evaluate", run_folder, *line, "--out", tmp_path / "alone.json")
    done = subprocess.run(
        [*together(2), "-m", "iad_ext", "evaluate", run_folder, *line, "--out", tmp_path / "two.json"],
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("PGD-10") == done.stdout.count("results   ") == 1
    alone, two = (
        json.loads((tmp_path / f"{name}.json").read_text())["measured"] for name in ("alone", "two")
    )
    for name in ("natural", "pgd10", "interval", "curve", "flags", "n"):
        assert alone[name] == two[name]


def test_signs_of_masking_are_told_in_plain_words(say, run_folder, monkeypatch):
    flag = {
        "flag": "found_nothing",
        "attack": "pgd20",
        "detail": "pgd20 broke none of the 30 images",
        "images": 30,
    }

    def flagged(*args, **kwargs):
        return evaluate(*args, **kwargs) | {"flags": [flag]}

    monkeypatch.setattr("iad_ext.evaluation.evaluate", flagged)
    code, out, _ = say("evaluate", run_folder, "--attacks", "natural,pgd20", "--limit", "8")
    assert code == 0
    assert "! found_nothing (PGD-20): pgd20 broke none of the 30 images." in out
    assert "No sign of masked gradients" not in out
    monkeypatch.undo()


@pytest.mark.slow
def test_a_signal_stops_it_with_code_5_and_the_same_command_goes_on(say, tmp_path, run_folder):
    line = ["evaluate", run_folder, "--attacks", "natural,pgd20", "--limit", "64", "--batch-size", "8"]
    stop = (
        "import os, signal, sys; sys.argv[0] = 'iad-ext'\n"
        "from iad_ext import attacks, cli\n"
        "forward, calls = attacks.PGD.forward, []\n"
        "def stopping(self, *args, **kwargs):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return forward(self, *args, **kwargs)\n"
        "attacks.PGD.forward = stopping\n"
        "cli.main(sys.argv[1:])\n"
    )
    out = tmp_path / "r.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [*map(str, line), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", stop, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == cli.STOPPED, done.stderr
    assert "error: stopped by a signal" in done.stderr
    assert not out.exists()
    assert (tmp_path / ".r.json.parts").is_dir()
    assert say(*arguments)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "r.robust.safetensors"]
    assert say(*line, "--out", tmp_path / "whole.json")[0] == 0
    verdicts = [(tmp_path / f"{name}.robust.safetensors").read_bytes() for name in ("r", "whole")]
    assert verdicts[0] == verdicts[1]
    whole, continued = (json.loads(path.read_text())["measured"] for path in (tmp_path / "whole.json", out))
    assert {k: v for k, v in whole.items() if k != "protocol"} == {
        k: v for k, v in continued.items() if k != "protocol"
    }


# ------------------------------------------------------------------------------------------- export


def test_export_writes_all_that_was_asked_for_and_says_so(say, run_folder, tmp_path):
    folder = tmp_path / "student"
    code, out, _ = say(
        "export",
        run_folder,
        folder,
        "--to",
        "timm,onnx,robustbench",
        "--repo",
        "me/student",
        "--license",
        "mit",
    )
    assert code == 0
    written = [
        "README.md",
        "config.json",
        "model.onnx",
        "model.safetensors",
        "model_info",
        "robustbench_loader.py",
    ]
    assert sorted(path.name for path in folder.iterdir()) == written
    unwrapped = " ".join(out.split())
    assert "would be uploaded to me/student; --push does it" in unwrapped
    assert "the model card, with its measurements" in unwrapped
    assert "license: mit" in (folder / "README.md").read_text()


def test_a_foreign_network_is_measured_then_exported_with_its_figures(say, bare, tmp_path):
    network = ["--architecture", "cifar_resnet8"]
    results = tmp_path / "r.json"
    say(
        "evaluate",
        bare,
        *network,
        "--data.name",
        "digits",
        "--attacks",
        "natural",
        "--limit",
        "16",
        "--out",
        results,
    )
    code, _, _ = say("export", bare, tmp_path / "net", *network, "--results", results)
    assert code == 0
    natural = json.loads(results.read_text())["measured"]["natural"]
    assert f"| natural | {natural:.2f} |" in (tmp_path / "net/README.md").read_text()
    code, _, err = say(
        "export", bare, tmp_path / "other", *network, "--to", "robustbench", "--results", results
    )
    assert code == cli.WRONG_INPUT
    assert "needs aa of" in err
    assert not (tmp_path / "other").exists()


def test_a_checkpoint_with_arguments_becomes_a_folder_that_needs_none(say, tmp_path):
    network = create_network("cifar_wrn34_10", num_classes=7, depth=10, width=1, seed=0).eval()
    torch.save(network.state_dict(), tmp_path / "t.pt")
    arguments = (
        "--architecture cifar_wrn34_10 --model-args depth=10 width=1 mean=[0.4,0.5,0.6] std=[0.2,0.2,0.3]"
    )
    assert say("export", tmp_path / "t.pt", tmp_path / "net", *arguments.split())[0] == 0
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ([0.4, 0.5, 0.6], [0.2, 0.2, 0.3]))
    with torch.inference_mode():
        got, expected = load_network(tmp_path / "net")(pixels), network((pixels - mean) / std)
    assert torch.allclose(got, expected, atol=1e-5)


def test_a_folder_in_use_is_not_written_into_unasked(say, run_folder, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    code, _, err = say("export", run_folder, tmp_path)
    assert code == cli.WRONG_INPUT
    assert "is not empty; give another folder, or --force" in err
    assert (tmp_path / "README.md").read_text() == "mine"
    assert say("export", run_folder, tmp_path, "--force")[0] == 0
    (tmp_path / "file").write_text("")
    assert "is a file; give a folder" in say("export", run_folder, tmp_path / "file")[2]


def test_push_is_passed_on_only_when_it_is_given(say, run_folder, tmp_path, monkeypatch):
    asked = []

    def push_to_hub(folder, repo, *, push, private):
        asked.append((folder.name, repo, push, private))
        return ["README.md"]

    monkeypatch.setattr("iad_ext.export.push_to_hub", push_to_hub)
    for name, flags in (("a", ()), ("b", ("--push",)), ("c", ("--push", "--public"))):
        assert say("export", run_folder, tmp_path / name, "--repo", "me/net", *flags)[0] == 0
    assert asked == [("a", "me/net", False, True), ("b", "me/net", True, True), ("c", "me/net", True, False)]
    monkeypatch.undo()
