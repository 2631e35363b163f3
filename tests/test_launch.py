"""The launch files of docs/launch: well-formed, and carried out by a SLURM of this test's own."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from recipe_files import ENVIRONMENT, TINY

REPOSITORY = Path(__file__).resolve().parent.parent
LAUNCH = REPOSITORY / "docs" / "launch"
BATCH = sorted(LAUNCH.glob("*.sbatch"))
SCRIPTS = [*BATCH, LAUNCH / "slurm.sh"]
CONFIGURATIONS = sorted(LAUNCH.glob("*.yaml"))

# what sbatch understands, with what it takes
OPTIONS = {
    "job-name": r"[\w-]+",
    "array": r"\d+-\d+(%\d+)?",
    "nodes": r"\d+",
    "ntasks-per-node": r"\d+",
    "gpus-per-node": r"(\w+:)?\d+",
    "cpus-per-task": r"\d+",
    "time": r"(\d+-)?\d{2}:\d{2}:\d{2}",
    "signal": r"([BR]+:)?[A-Z0-9]+(@\d+)?",
    "requeue": "",
    "open-mode": "append|truncate",
    "output": r"[\w%.-]+",
}


def name(path):
    return path.name


def options(script):
    """The #SBATCH lines as {option: value}; sbatch reads them up to the first command."""
    found = {}
    for line in script.read_text().splitlines():
        if line and not line.startswith("#"):
            break
        if line.startswith("#SBATCH"):
            match = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
            assert match, line
            assert match[1] not in found
            found[match[1]] = match[2] or ""
    assert script.read_text().count("#SBATCH") == len(found), "an option behind the first command is not read"
    return found


# --------------------------------------------------------------------------------------------------- as text


def test_there_are_some_to_test():
    assert {path.name for path in BATCH} == {
        "one_node.sbatch",
        "two_nodes.sbatch",
        "seeds.sbatch",
        "study.sbatch",
    }
    assert {path.name for path in CONFIGURATIONS} == {"one_node.yaml", "two_nodes.yaml"}


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_bash_can_read_it(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", BATCH, ids=name)
def test_sbatch_can_read_it(script):
    assert script.read_text().startswith("#!/bin/bash\n")
    found = options(script)
    for option, value in found.items():
        assert option in OPTIONS, option
        assert re.fullmatch(OPTIONS[option], value), f"--{option}={value}"
    assert found["ntasks-per-node"] == found["gpus-per-node"]  # a process for each GPU
    assert found["signal"].startswith("USR1@")  # to the processes, not to the batch shell
    assert "requeue" in found
    assert found["open-mode"] == "append"  # what was said before the requeue stays


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=name)
def test_accelerate_can_read_it(path):
    config = load_config_from_file(str(path))
    assert config.distributed_type == "MULTI_GPU"
    batch = options(path.with_suffix(".sbatch"))
    assert config.num_machines == int(batch["nodes"])
    assert config.num_processes == int(batch["nodes"]) * int(batch["gpus-per-node"])
    assert config.mixed_precision == "no"  # the recipes' own --precision decides


def test_every_file_is_explained():
    text = (LAUNCH / "README.md").read_text()
    for path in (*BATCH, *CONFIGURATIONS):
        assert f"docs/launch/{path.name}" in text


# ---------------------------------------------------------------------------------------------- carried out

SRUN = """#!{python}
import os, re, signal, subprocess, sys, time
from pathlib import Path

arguments = sys.argv[1:]
while arguments and arguments[0].startswith("-"):
    Path(os.environ["NOTES"], "srun").open("a").write(arguments.pop(0) + "\\n")
if "SRUN_RETURNS" in os.environ:
    sys.exit(int(os.environ["SRUN_RETURNS"]))
n = int(os.environ["SLURM_NTASKS"])
per_node = n // int(os.environ["SLURM_NNODES"])
tasks = []
for i in range(n):
    place = {{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i % per_node)}}
    tasks.append(subprocess.Popen(arguments, env=os.environ | place))
if "SIGNAL_WHEN" in os.environ:
    while len(list(Path(os.environ["SIGNAL_WHEN"]).glob("ready*"))) < n:
        time.sleep(0.02)
    for task in tasks:
        task.send_signal(signal.SIGUSR1)
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""

SCONTROL = """#!{python}
import os, sys
from pathlib import Path

if sys.argv[1:3] == ["show", "hostnames"]:
    assert sys.argv[3:] == [os.environ["SLURM_JOB_NODELIST"]]
    print("localhost")
    print("another-host")
else:
    Path(os.environ["NOTES"], "scontrol").open("a").write(" ".join(sys.argv[1:]) + "\\n")
    sys.exit(int(os.environ.get("SCONTROL_RETURNS", "0")))
"""


@pytest.fixture
def slurm(tmp_path):
    """Run a batch script as SLURM does, from a copy elsewhere; returns what it did and what it asked of SLURM."""
    tools, notes = tmp_path / "tools", tmp_path / "notes"
    for folder in (tools, notes):
        folder.mkdir()
    for tool, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / tool).write_text(text.format(python=sys.executable))
        (tools / tool).chmod(0o755)

    def run(script, *args, tasks=2, nodes=1, **environment):
        copy = tmp_path / "slurm_script"
        shutil.copy(LAUNCH / script, copy)
        own = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "NOTES": str(notes),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(REPOSITORY),
            "SLURM_SUBMIT_DIR": str(REPOSITORY),
            "SLURM_JOB_ID": str(10_000 + os.getpid()),  # makes the port
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_NTASKS": str(tasks),
            "SLURM_NNODES": str(nodes),
            "SLURM_CPUS_PER_TASK": "1",
        }
        done = subprocess.run(
            ["bash", copy, *map(str, args)],
            env=ENVIRONMENT | own | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        asked = {note.name: note.read_text().splitlines() for note in notes.iterdir()}
        return done, asked

    return run


@pytest.mark.slow
@pytest.mark.parametrize("script", ["one_node.sbatch", "two_nodes.sbatch"])
def test_two_processes_train_one_network(slurm, tmp_path, script):
    nodes = int(options(LAUNCH / script)["nodes"])
    out = tmp_path / "run"
    done, asked = slurm(script, "recipes/at_resnet18.py", *TINY, "--out", out, nodes=nodes)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "environment.json").read_text())["processes"] == 2
    assert set(json.loads((out / "results.json").read_text())) >= {"best", "last"}
    assert "scontrol" not in asked


@pytest.mark.slow
def test_a_seed_is_a_process_of_its_own(slurm, tmp_path):
    out = tmp_path / "run"
    arguments = ("recipes/st_resnet18.py", *TINY, "--train.epochs", 1, "--out", out)
    done, _ = slurm("seeds.sbatch", *arguments, tasks=1, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="3")
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "environment.json").read_text())["processes"] == 1
    assert "  seed: 3\n" in (out / "settings.yaml").read_text()


# what SLURM tells a task of an array
ARRAY = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}


def test_a_share_of_a_study_is_a_task_of_an_array(slurm, tmp_path):
    arguments = ("recipes/studies/run.py", "table2", "--data.name", "cifar10", "--out", tmp_path, "--dry-run")
    done, _ = slurm("study.sbatch", *arguments, tasks=1, **ARRAY)
    assert done.returncode == 0, done.stderr
    # the fourth of eight shares of eleven cells
    assert "1 cells: 1 waiting" in done.stdout
    assert f"{tmp_path}/cifar10/akd2_resnet18-at/seed0" in done.stdout


TASK = """
import os, signal, sys, time
from pathlib import Path

signal.signal(signal.SIGUSR1, lambda *_: sys.exit(5))
said = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS")]
Path(sys.argv[1], f"ready{os.environ['RANK']}").write_text(" ".join([*said, *sys.argv[2:]]))
time.sleep(60)
"""


def test_the_signal_reaches_the_processes_and_the_job_goes_back_into_the_queue(slurm, tmp_path):
    (tmp_path / "task.py").write_text(TASK)
    done, asked = slurm(
        "two_nodes.sbatch",
        tmp_path / "task.py",
        tmp_path,
        "two words",
        tasks=4,
        nodes=2,
        SIGNAL_WHEN=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    said = [(tmp_path / f"ready{rank}").read_text() for rank in range(4)]
    assert said == [f"{rank} {rank % 2} 4 localhost 1 two words" for rank in range(4)]
    assert asked["scontrol"] == [f"requeue {10_000 + os.getpid()}"]


def test_a_process_that_ends_first_does_not_have_the_others_killed(slurm):
    _, asked = slurm("one_node.sbatch", "recipes/at_resnet18.py", SRUN_RETURNS="0")
    assert asked["srun"] == ["--kill-on-bad-exit=0", "--wait=0"]


@pytest.mark.parametrize("script", BATCH, ids=name)
@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 137])
def test_only_a_run_that_was_stopped_and_saved_is_queued_again(slurm, script, code):
    array = ARRAY if script.stem in ("seeds", "study") else {}
    done, asked = slurm(script.name, "recipes/at_resnet18.py", SRUN_RETURNS=str(code), **array)
    if code == 5:
        job = "7_3" if array else str(10_000 + os.getpid())
        assert asked["scontrol"] == [f"requeue {job}"]
        assert done.returncode == 0
    else:
        assert "scontrol" not in asked
        assert done.returncode == code


def test_a_requeue_that_is_refused_is_not_passed_over(slurm):
    done, _ = slurm("one_node.sbatch", "recipes/at_resnet18.py", SRUN_RETURNS="5", SCONTROL_RETURNS="1")
    assert done.returncode == 5


@pytest.mark.parametrize("script", BATCH, ids=name)
def test_without_a_recipe_nothing_is_started(slurm, script):
    done, asked = slurm(script.name)
    assert done.returncode == 2
    assert "usage: sbatch docs/launch/" in done.stderr
    assert asked == {}
