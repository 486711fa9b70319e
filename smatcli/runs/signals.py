"""SIGHUP, SIGINT, SIGTERM and SIGUSR1: finish the step, save a checkpoint, exit with 129, 130, 143 or 138 (128 + the signal's number)."""

import os
import signal
import stat
import threading
from types import FrameType
from typing import Any

from smatcli.errors import SmatError

# Slurm sends SIGUSR1 before the time limit or a pre-emption (--signal=USR1@120).
CAUGHT = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def _hangup_ignored() -> bool:
    return signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def leave_terminal() -> None:
    """Redirect stdout and stderr to the null device if their terminal was closed, where every write would fail."""
    for descriptor in (1, 2):
        try:
            closed = stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor)
        except OSError:
            continue
        if closed:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)


class Interrupted(SmatError):
    """Raised after a signal, once the run has saved its state; `exit_code` is 128 + the signal's number."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum


class StopNow(KeyboardInterrupt):
    """Raised by a second signal, to exit at once without a new checkpoint; `exit_code` is 128 + the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped at once by a second {signal.Signals(signum).name}; continue with --resume from the last checkpoint")
        self.signum = signum
        self.exit_code = 128 + signum


class StopRequest:
    """Context in which a first SIGHUP, SIGINT, SIGTERM or SIGUSR1 only sets `signum`; a second one raises `StopNow`.

    A second SIGHUP changes nothing, and SIGHUP stays ignored where it was (`nohup`).

    Outside the main thread, where Python does not allow signal handlers, it has no effect.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._on_signal) for s in CAUGHT if s != signal.SIGHUP or not _hangup_ignored()}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGHUP:
            leave_terminal()
            self.signum = self.signum or signum  # a closed terminal sends it twice: by the shell and by the kernel
            return
        if self.signum is not None:
            raise StopNow(signum)
        self.signum = signum

    def __bool__(self) -> bool:
        return self.signum is not None

    def agreed(self, signum: int) -> bool:
        """Take over a signal that any of the run's processes received (0: none), and return whether to stop."""
        self.signum = signum or self.signum
        return self.signum is not None

    def interrupted(self, where: str) -> Interrupted:
        """Return the error to raise once the checkpoint is written; `where` names the step."""
        assert self.signum is not None
        name = signal.Signals(self.signum).name
        return Interrupted(self.signum, f"stopped by {name} at {where}; everything so far is kept, continue with --resume")
