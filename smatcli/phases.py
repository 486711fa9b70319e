"""Named phases of a training step: marks that cost nothing until someone measures (`recording`)."""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

PHASES = ("data", "router", "merge", "student", "teacher", "backward", "optimizer", "all-reduce")


@dataclass
class Spent:
    """What a phase took, its inner phases left out: seconds by the clock, CPU seconds of the process, bytes at its peak (if tracked)."""

    calls: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    peak: int = 0


@dataclass
class Recorder:
    """Collects phases by name. A phase inside another one is subtracted from it, whichever thread it runs in.

    On a GPU every border waits for the device (`device`), so a measured step is slower than an unmeasured one.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    phases: dict[str, Spent] = field(default_factory=dict)
    _stack: list[str] = field(default_factory=list)
    _mark: tuple[float, float] = (0.0, 0.0)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def enter(self, name: str) -> None:
        """`name` begins; what ran until now belongs to the phase around it."""
        with self._lock:
            self._charge()
            self._stack.append(name)
            self.phases.setdefault(name, Spent()).calls += 1

    def leave(self) -> None:
        """The innermost phase ends."""
        with self._lock:
            self._charge()
            self._stack.pop()

    @property
    def current(self) -> str | None:
        """The innermost phase."""
        return self._stack[-1] if self._stack else None

    def _charge(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter(), time.process_time()
        if self._stack:
            spent = self.phases[self._stack[-1]]
            spent.wall += now[0] - self._mark[0]
            spent.cpu += now[1] - self._mark[1]
        self._mark = now


_active: Recorder | None = None


@contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Phases inside are collected by `recorder`."""
    global _active
    before, _active = _active, recorder
    try:
        yield recorder
    finally:
        _active = before


def phase(name: str) -> AbstractContextManager[object]:
    """Marks what runs inside as `name`; nothing unless inside `recording`. Shows as `smat.name` in a trace of torch's profiler."""
    return nullcontext() if _active is None else _marked(_active, name)


@contextmanager
def _marked(recorder: Recorder, name: str) -> Iterator[None]:
    recorder.enter(name)
    try:
        with torch.profiler.record_function(f"smat.{name}"):
            yield
    finally:
        recorder.leave()
