"""A run that is killed goes on, when the same command is given again, as if nothing had happened.

Real processes run a recipe's own file and die by a real SIGKILL. Most are forks of a process that has imported
everything, since a start of Python costs several times what the run does; the rest are whole commands.
"""

import os
import random
import shlex
import signal
import time
from pathlib import Path

import pytest
from killing import Clock, Command, Forked, ForkServer, differences, lines, recipe, stamp, unfinished, wait
from recipe_files import TINY

pytestmark = pytest.mark.slow

LONG = os.environ.get("IAD_EXT_FAULTS") == "long"

WARMUP, EPOCHS = 2, 4
SETTINGS = shlex.split(
    f"--data.limit-train 160 --train.epochs {EPOCHS} --objective.warmup-epochs {WARMUP} --checkpoint.every-steps 3 "
    # AutoAttack takes seconds where an image stays robust and no time where none does
    "--eval.attacks natural,pgd20,cw_inf,aa --eval.aa-limit 6 --eval.batch-size 4 --eval.eps "
    + ("0.15" if LONG else "0.2")
)
COMBINATIONS = [(1, "fp32"), (2, "fp32"), (1, "bf16"), (2, "bf16")]

BEFORE, WARM, AFTER = "before training", "in warm-up", "after warm-up"
WRITING, EVALUATION = "as a checkpoint is written", "in the final evaluation"
# a run is killed at each of these in turn, continued in between
COURSE = [BEFORE, WRITING, WARM, BEFORE, WRITING, AFTER, WRITING, AFTER, EVALUATION, EVALUATION]
SECOND = [WRITING, WARM, WRITING, AFTER]
SHORT_COURSE = [BEFORE, WRITING, WARM, AFTER, EVALUATION]


@pytest.fixture(scope="module")
def server():
    server = ForkServer()
    yield server
    server.close()


class World:
    """A folder with a teacher in which runs are started, and one run of each combination that was left alone."""

    def __init__(self, root, server):
        self.root, self.server, self.clocks, self.count = root, server, {}, 0
        line = [*TINY, *shlex.split("--data.limit-train 320 --train.epochs 3 --eval.attacks natural")]
        teacher = Forked(server, [recipe("at_resnet18"), *line], cwd=root, log=root / "log")
        assert wait(teacher, 120) == 0, (root / "log").read_text()

    def argv(self, out, precision, file=None):
        return [file or recipe("iad1_resnet18"), *TINY, *SETTINGS, "--precision", precision, "--out", out]

    def start(self, kind, out, processes, precision, file=None):
        settings = {"cwd": self.root, "log": self.root / f"{out}.log", "processes": processes}
        argv = self.argv(out, precision, file)
        if kind == "fork":
            return Forked(self.server, argv, **settings)
        return Command(argv, **settings, launch=kind == "accelerate launch")

    def reference(self, processes, precision):
        """The uninterrupted run, in the long variant by the command that users type."""
        name = f"whole-{processes}-{precision}"
        if name not in self.clocks:
            self.finish("accelerate launch" if LONG else "fork", name, processes, precision)
            self.clocks[name] = Clock(self.root / name, warmup=WARMUP, epochs=EPOCHS)
        return self.root / name, self.clocks[name]

    def finish(self, kind, out, processes, precision):
        code = wait(self.start(kind, out, processes, precision), 300)
        assert code == 0, (self.root / f"{out}.log").read_text()[-3000:]

    def course(self, kind, processes, precision, moments, draw):
        """Kill a run at each moment in turn, let it end, compare; returns a record of each kill."""
        reference, clock = self.reference(processes, precision)
        self.count += 1
        out, kills = f"run{self.count}", []
        folder = self.root / out
        for aimed in moments:
            begun = stamp(folder)
            process = self.start(kind, out, processes, precision)
            if not clock.reach(aimed, process, folder, begun, draw):
                assert wait(process, 60) == 0, (self.root / f"{out}.log").read_text()[-3000:]
                break  # the moment did not come, the run is finished
            code = process.kill()
            if code >= 0:
                break  # it ended by itself in the same instant
            assert code == -signal.SIGKILL
            torn = unfinished(folder)
            kills.append(
                {
                    "kind": kind,
                    "processes": processes,
                    "precision": precision,
                    "moment": clock.phase(folder, begun),
                    "while writing": [name.rpartition("/")[2] for name in torn],
                }
            )
        self.finish(kind, out, processes, precision)
        assert differences(folder, reference) == [], kills
        assert len(lines(folder)) == EPOCHS
        return kills


@pytest.fixture(scope="module")
def world(tmp_path_factory, server):
    return World(tmp_path_factory.mktemp("kills"), server)


def _courses(world, combination, *, courses, record_property, kind="fork"):
    """Courses of kills, and more of them where a run was faster than its kill; all recorded."""
    draw = random.Random(f"{combination}")
    kills = []
    for _ in range(2 * len(courses)):
        if len(kills) >= sum(map(len, courses)):
            break
        kills += world.course(kind, *combination, courses[0], draw)
        courses = [*courses[1:], courses[0]]
    for kill in kills:
        record_property("kill", kill)
    return kills


if LONG:

    @pytest.mark.parametrize("combination", COMBINATIONS)
    def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(world, record_property, combination):
        kills = _courses(world, combination, courses=[COURSE, SECOND], record_property=record_property)
        assert len(kills) >= 13
        assert {kill["moment"] for kill in kills} == {BEFORE, WARM, AFTER, EVALUATION}
        assert [kill for kill in kills if kill["while writing"]]

    @pytest.mark.parametrize("combination", COMBINATIONS)
    def test_the_whole_command_goes_on_too(world, record_property, combination):
        kind = "python" if combination[0] == 1 and combination[1] == "fp32" else "accelerate launch"
        course = [WARM, WRITING, AFTER, EVALUATION]
        kills = _courses(world, combination, courses=[course], record_property=record_property, kind=kind)
        assert len(kills) >= 3

else:

    @pytest.mark.parametrize("combination", [(1, "bf16"), (2, "fp32")])
    def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(world, record_property, combination):
        kills = _courses(world, combination, courses=[SHORT_COURSE], record_property=record_property)
        assert len(kills) >= 4


def _ends_with_its_launcher(process, seconds=60):
    began = time.monotonic()
    code = wait(process, seconds)
    assert code != 0
    while process.pids():
        assert time.monotonic() - began < seconds, "a worker outlives its launcher"
        time.sleep(0.05)
    return time.monotonic() - began


def test_one_of_two_workers_is_killed(world, record_property):
    """The launcher says so and ends, nothing hangs, and the run goes on with the same command."""
    reference, clock = world.reference(2, "fp32")
    process = world.start("accelerate launch", "half", 2, "fp32")
    assert clock.reach(AFTER if LONG else WARM, process, world.root / "half", None, random.Random(0))
    os.kill(process.workers()[1], signal.SIGKILL)
    seconds = _ends_with_its_launcher(process)
    moment = clock.phase(world.root / "half", None)
    kill = {"kind": "one of two workers", "processes": 2, "precision": "fp32", "moment": moment}
    record_property("kill", kill | {"while writing": [], "launcher ended after s": round(seconds, 1)})
    world.finish("fork", "half", 2, "fp32")
    assert differences(world.root / "half", reference) == []


def test_one_of_two_workers_fails(world, record_property):
    """An exception in a step of one process ends both; its traceback is shown."""
    file = str(Path(__file__).with_name("raising_recipe.py"))
    process = world.start("accelerate launch", "failing", 2, "fp32", file)
    seconds = _ends_with_its_launcher(process)
    record_property("failure", {"one of two workers raised: launcher ended after s": round(seconds, 1)})
    assert "rank 1 fails here" in (world.root / "failing.log").read_text()
    assert not (world.root / "failing/results.json").exists()
