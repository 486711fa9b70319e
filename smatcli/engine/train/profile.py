"""`smat train --profile`: a table of the time per phase over some updates, and a trace for chrome://tracing or Perfetto."""

import csv
import os
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import torch

from smatcli.phases import PHASES, Recorder, recording
from smatcli.runs.reporter import Reporter
from smatcli.safe.files import atomic_path

WARMUP, UPDATES, TRACED = 1, 5, 1


class StepProfile:
    """Measures updates `WARMUP` + 1 to `WARMUP` + `updates`. Call `after_update` after each update, and `close` at the end.

    Writes `phases.csv` (wall and CPU seconds per update, share of the wall time) and `trace.json` (of one further update, because tracing
    is slow) into `folder`. Time outside the phases (logging, bookkeeping) is in the row `other`.
    """

    def __init__(self, folder: Path, device: torch.device, reporter: Reporter, updates: int = UPDATES) -> None:
        self.folder, self.reporter, self.updates = folder, reporter, updates
        self.recorder = Recorder(device)
        self._stack = ExitStack()
        self._trace: Any = None
        self._done = 0

    def after_update(self) -> None:
        """Count an update, and start or end a measurement if it is due."""
        self._done += 1
        if self._done == WARMUP:
            self._begin(recording(self.recorder))
            self.recorder.enter("other")
        elif self._done == WARMUP + self.updates:
            self._end()
            self._begin(recording(Recorder(self.recorder.device)))
            os.environ.setdefault("KINETO_LOG_LEVEL", "5")
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self.recorder.device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._trace = self._stack.enter_context(torch.profiler.profile(activities=activities))
        elif self._done == WARMUP + self.updates + TRACED:
            self._end()

    def close(self) -> None:
        """Write the measurements so far, if training ended early."""
        if WARMUP <= self._done < WARMUP + self.updates + TRACED:
            self._end()
        if self._done <= WARMUP:
            self.reporter.line(f"--profile: {self._done} updates are too few to measure; the first {WARMUP} only warm up")

    def _begin(self, context: AbstractContextManager[object]) -> None:
        self._stack.enter_context(context)

    def _end(self) -> None:
        measured = min(self._done - WARMUP, self.updates)
        self._stack.close()
        if self._trace is not None:
            with atomic_path(self.folder / "trace.json") as temporary:
                self._trace.export_chrome_trace(str(temporary))
            self._trace = None
        elif measured > 0:
            self.recorder.leave()
            self._write(measured)

    def _write(self, updates: int) -> None:
        rows = table(self.recorder, updates)
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / "phases.csv") as temporary, open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["phase", "wall_s", "cpu_s", "share"])
            writer.writerows((name, f"{wall:.6f}", f"{cpu:.6f}", f"{share:.4f}") for name, wall, cpu, share in rows)
        say = self.reporter.line
        say(f"{updates} updates measured; seconds per update:")
        say(f"  {'phase':12} {'clock':>9} {'CPU':>9} {'share':>7}")
        for name, wall, cpu, share in rows:
            say(f"  {name:12} {wall:9.4f} {cpu:9.4f} {100 * share:6.1f}%")
        say(f"written: {self.folder}/phases.csv (and trace.json after the next update)")


def table(recorder: Recorder, updates: int) -> list[tuple[str, float, float, float]]:
    """Return rows (phase, wall seconds per update, CPU seconds per update, share of the wall time) in execution order, then `total`."""
    phases = recorder.phases
    order = [*PHASES, *(name for name in phases if name not in PHASES)]
    rows = [(n, phases[n].wall / updates, phases[n].cpu / updates) for n in order if n in phases]
    total = ("total", sum(wall for _, wall, _ in rows), sum(cpu for _, _, cpu in rows))
    return [(name, wall, cpu, wall / total[1] if total[1] else 0.0) for name, wall, cpu in [*rows, total]]
