"""Named phases of a training step. They cost nothing outside of `recording`."""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

PHASES = ("data", "router", "merge", "student", "teacher", "backward", "optimizer", "all-reduce")


@dataclass
class PhaseCost:
    """Cost of a phase, excluding its inner phases: calls, wall-clock seconds, CPU seconds of the process, peak bytes (if tracked)."""

    calls: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    peak: int = 0


@dataclass
class Recorder:
    """Collect the cost of phases by name. The cost of an inner phase is subtracted from the outer one, in whichever thread it runs.

    On a GPU the start and the end of each phase wait for `device`, so a recorded step is slower than an ordinary one.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    phases: dict[str, PhaseCost] = field(default_factory=dict)
    _stack: list[str] = field(default_factory=list)
    _mark: tuple[float, float] = (0.0, 0.0)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def enter(self, name: str) -> None:
        """Begin the phase `name`; the time until now is charged to the outer phase."""
        with self._lock:
            self._charge()
            self._stack.append(name)
            self.phases.setdefault(name, PhaseCost()).calls += 1

    def leave(self) -> None:
        """End the innermost phase."""
        with self._lock:
            self._charge()
            self._stack.pop()

    @property
    def current(self) -> str | None:
        """Name of the innermost phase, or None."""
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
    """Collect the phases inside the block in `recorder`."""
    global _active
    before, _active = _active, recorder
    try:
        yield recorder
    finally:
        _active = before


def phase(name: str) -> AbstractContextManager[object]:
    """Mark the block as the phase `name`; no effect outside of `recording`. torch's profiler shows it as `smat.name`."""
    return nullcontext() if _active is None else _marked(_active, name)


@contextmanager
def _marked(recorder: Recorder, name: str) -> Iterator[None]:
    recorder.enter(name)
    try:
        with torch.profiler.record_function(f"smat.{name}"):
            yield
    finally:
        recorder.leave()
