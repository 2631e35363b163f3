"""Signals that ask for an end: noticed at once, obeyed where nothing is lost."""

import os
import signal
import threading
from types import FrameType
from typing import Any

# what schedulers and people send: SLURM's --signal=USR1@120 and scancel, Kubernetes, Ctrl-C
ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interrupted(Exception):  # noqa: N818 (it is what happened)
    """A signal asked for the end; what was done is saved, and the same command goes on from there."""


class Stop:
    """Whether somebody asked for the end; listens for SIGTERM, SIGUSR1 and SIGINT inside its `with` block.

    The first signal is only noted. SIGINT after it, whoever sent the first, is a KeyboardInterrupt at once.
    Python lets only a program's main thread listen; elsewhere nothing is ever asked.

    Attributes:
        asked_by: name of the signal that came first; empty while none has.
    """

    def __init__(self) -> None:
        self.asked_by = ""
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return bool(self.asked_by)

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._before = {asking: signal.signal(asking, self._note) for asking in ASKING}
        return self

    def __exit__(self, *_: object) -> None:
        for asking, handler in self._before.items():
            signal.signal(asking, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        name = signal.Signals(number).name
        if self.asked_by:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.asked_by = name
        # print is not for signal handlers: the interrupted code may be inside the same buffer
        os.write(2, f"\n{name}: stopping after this step; Ctrl-C to force\n".encode())
