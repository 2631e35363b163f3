"""Imports everything once, then runs recipe files in forks of itself: a start costs a moment instead of seconds.

A fork is a process of its own that runs the recipe's own file as `python FILE ARGUMENTS` would, and can be killed like
any other. Reads one JSON object a line: a job to start (answers its pid) or a pid to look after (answers its exit
code, negative for a signal, null while it runs).
"""

import json
import os
import runpy
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed

import iad_ext.backbones
import iad_ext.evaluation
import iad_ext.run  # noqa: F401 (imported for the forks)


def become(job):
    """Turn this fork into the recipe's process; never returns."""
    code = 1
    try:
        os.setsid()
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.chdir(job["cwd"])
        os.environ.update(job["env"])
        sys.argv = job["argv"]
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main():
    torch.set_num_threads(1)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if isinstance(asked, dict):
            answer = os.fork()
            if answer == 0:
                become(asked)
        else:
            pid, status = os.waitpid(asked, os.WNOHANG)
            answer = None if pid == 0 else os.waitstatus_to_exitcode(status)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
