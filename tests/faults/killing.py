"""Runs as processes that can be killed at a moment: starting them, watching them, comparing what they leave."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import torch
from recipe_files import ENVIRONMENT, RECIPES
from safetensors import SafetensorError
from safetensors.torch import load_file

HERE = Path(__file__).parent
# what torchrun and accelerate say to the processes of a launch on a CPU
ON_CPU = {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no", "HF_HUB_OFFLINE": "1"}
LAUNCH = [str(Path(sys.executable).parent / "accelerate"), "launch"]
TWO = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


# ------------------------------------------------------------------------------------------- processes


class Command:
    """`accelerate launch FILE ARGUMENTS` or `python FILE ARGUMENTS`, with every process that comes of it."""

    def __init__(self, argv, *, cwd, log, processes=1, launch=True):
        before = (
            [*LAUNCH, *(TWO if processes > 1 else ["--num_processes", "1"])] if launch else [sys.executable]
        )
        self.kind = "accelerate launch" if launch else "python"
        self.mark = f"IAD_EXT_FAULTS={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        environment = ENVIRONMENT | {name: value} | ({"ACCELERATE_USE_CPU": "true"} if processes > 1 else {})
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [*before, *argv], cwd=cwd, env=environment, stdout=out, stderr=out, start_new_session=True
            )

    def code(self):
        """The launcher's exit code, None while it runs."""
        return self.process.poll()

    def pids(self):
        """The launcher first, then its workers: all that carry the mark in their environment."""
        found = []
        for folder in Path("/proc").iterdir():
            with suppress(OSError):
                if folder.name.isdigit() and self.mark.encode() in (folder / "environ").read_bytes().split(
                    b"\0"
                ):
                    found.append(int(folder.name))
        return sorted(found, key=lambda pid: (pid != self.process.pid, pid))

    def workers(self):
        """The processes that run the recipe itself, by rank."""
        ranks = {}
        for pid in self.pids():
            with suppress(OSError):
                of_process = (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0")
                ranks |= {int(said[5:]): pid for said in of_process if said.startswith(b"RANK=")}
        return [ranks[rank] for rank in sorted(ranks)]

    def kill(self):
        """SIGKILL to every process, until none is left."""
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
        return self.process.wait(timeout=30)


class ForkServer:
    """Starts recipes as forks of one process that has imported everything."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "fork_server.py")],
            env=ENVIRONMENT | ON_CPU,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.ready = False

    def ask(self, question):
        if not self.ready:
            assert json.loads(self.process.stdout.readline()) == "ready"
            self.ready = True
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


class Forked:
    """A recipe in one fork, or in one for each rank as torchrun would start them."""

    kind = "fork"

    def __init__(self, server, argv, *, cwd, log, processes=1):
        self.server, self.codes = server, {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(processes):
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            env = {name: str(value) for name, value in ranks.items()} if processes > 1 else {}
            pid = server.ask({"argv": argv, "cwd": str(cwd), "log": str(log), "env": env})
            self.codes[pid] = None

    def code(self):
        """0 when all ended well, the first other code when all ended, None while one runs."""
        for pid, code in self.codes.items():
            if code is None:
                self.codes[pid] = self.server.ask(pid)
        if None in self.codes.values():
            return None
        return next((code for code in self.codes.values() if code), 0)

    def kill(self):
        for pid, code in self.codes.items():
            if code is None:
                os.kill(pid, signal.SIGKILL)
        return wait(self, 30)


def wait(process, seconds):
    """The exit code; kills what has not ended after `seconds` and says so."""
    deadline = time.monotonic() + seconds
    while (code := process.code()) is None:
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"not ended after {seconds} s")
        time.sleep(0.01)
    return code


# ------------------------------------------------------------------------------------------- moments


def lines(folder):
    """The records of metrics.jsonl without what depends on the clock and on the process."""
    path = folder / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    records = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [{k: v for k, v in record.items() if not k.startswith(("time/", "memory/"))} for record in records]


def stamp(folder):
    """When the run in `folder` was last begun or continued."""
    with suppress(FileNotFoundError):
        return (folder / "environment.json").stat().st_mtime_ns
    return None


def unfinished(folder):
    """The files that are being written aside, or were when the run was killed."""
    # os.walk, unlike rglob, does not mind a folder that goes while it looks
    return sorted(
        Path(parent, name).relative_to(folder).as_posix()
        for parent, *names in os.walk(folder)
        for name in [*names[0], *names[1]]
        if name.startswith(".") and name.endswith((".tmp", ".part"))
    )


class Clock:
    """How long the parts of a run take here, from one that was left alone; and when to kill, drawn from that."""

    def __init__(self, reference, *, warmup, epochs):
        at = {name: (reference / name).stat().st_mtime for name in ("environment.json", "last/config.json")}
        train = at["last/config.json"] - at["environment.json"]
        measured = (reference / "results.json").stat().st_mtime - at["last/config.json"]
        self.warmup, self.epochs = warmup, epochs
        self.start = {"fork": 1.0, "python": 6.0, "accelerate launch": 9.0}
        self.seconds = {
            "in warm-up": train * warmup / epochs,
            "after warm-up": train * (epochs - warmup) / epochs,
            # one that goes on has less to do than the whole
            "in the final evaluation": measured / 3,
        }

    def phase(self, folder, begun):
        """Where the run is, by what lies in its folder; `begun` is its stamp before this process."""
        if stamp(folder) == begun:
            return "before training"
        done = len(lines(folder))
        if done == self.epochs and (folder / "last/config.json").exists():
            return "in the final evaluation"
        return "in warm-up" if done < self.warmup else "after warm-up"

    def reach(self, moment, process, folder, begun, random):
        """Wait for the moment; False if the run ended before."""
        if moment == "as a checkpoint is written":
            known = set(unfinished(folder))
            skip = random.randrange(4)
            while process.code() is None:
                now = set(unfinished(folder))
                new = {name for name in now - known if name.startswith("checkpoints")}
                known = now
                skip -= bool(new)
                if new and skip < 0:
                    time.sleep(random.uniform(0, 0.004))
                    return process.code() is None
            return False
        began = time.monotonic()
        if moment == "before training":
            end = began + random.uniform(0, self.start[process.kind])
            while process.code() is None and time.monotonic() < end and stamp(folder) == begun:
                time.sleep(0.002)
            if stamp(folder) != begun:  # it starts faster than we thought
                self.start[process.kind] = 0.9 * (time.monotonic() - began)
            return process.code() is None
        order = ["before training", *self.seconds]
        while process.code() is None and order.index(self.phase(folder, begun)) < order.index(moment):
            time.sleep(0.002)
        end = time.monotonic() + random.uniform(0, self.seconds[moment])
        while process.code() is None and time.monotonic() < end:
            time.sleep(0.002)
        return process.code() is None


# ------------------------------------------------------------------------------------------- comparison


def differences(one, other):
    """What two finished run folders differ in, clocks and versions aside; empty if it is the same run."""
    found = [
        f"{which}/{name}"
        for which in ("best", "last")
        for name in ("model.safetensors", "config.json")
        if not _same_bytes(one / which / name, other / which / name)
    ]
    newest = [max(path for path in (run / "checkpoints").iterdir()) for run in (one, other)]
    groups = [{path.name for path in folder.glob("*.safetensors")} for folder in newest]
    if newest[0].name != newest[1].name or groups[0] != groups[1]:
        found.append(f"checkpoints: {newest[0].name} {groups[0]}, {newest[1].name} {groups[1]}")
    else:
        found += [name for name in groups[0] if not same_tensors(newest[0] / name, newest[1] / name)]
    found += [] if lines(one) == lines(other) else ["metrics.jsonl"]
    results = [
        timeless(json.loads((run / "results.json").read_text(encoding="utf-8"))) for run in (one, other)
    ]
    found += [] if results[0] == results[1] else ["results.json"]
    robust = "robust.safetensors"
    found += [] if same_tensors(one / robust, other / robust) else [robust]
    found += [f"left over: {name}" for name in unfinished(one)]
    return found


def _same_bytes(one, other):
    return one.is_file() and one.read_bytes() == other.read_bytes()


def same_tensors(one, other):
    try:
        left, right = load_file(one), load_file(other)
    except (OSError, SafetensorError):
        return False
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and torch.equal(bits(left[name]), bits(right[name]))
        for name in left
    )


def _results(folder):
    try:
        return timeless(json.loads((folder / "results.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        return repr(error)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def timeless(value):
    """Without seconds and versions, at any depth."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in ("seconds", "versions")}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def recipe(name):
    return str(RECIPES / f"{name}.py")
