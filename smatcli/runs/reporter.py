"""Output of engines: lines and progress, drawn by rich on a terminal and as plain lines elsewhere."""

import sys
import time
from typing import Any, Protocol, TextIO

from smatcli.safe.text import shown

Number = float | int | str


class Reporter(Protocol):
    """Receives lines of text, and the progress of one piece of work (`start`, `update`, `finish`)."""

    def line(self, text: str) -> None:
        """Print one line."""
        ...

    def start(self, total: int, what: str, done: int = 0, unit: str = "steps") -> None:
        """Start a piece of work of `total` units; an earlier process has already finished `done` of them."""
        ...

    def update(self, done: int, **numbers: Number) -> None:
        """Report that `done` units are finished, with the latest values by name."""
        ...

    def finish(self) -> None:
        """End the piece of work, also after a failure."""
        ...


def clock(seconds: float) -> str:
    """Return seconds as 0:07, 12:34 or 1:02:03."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    tail = f"{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
    return f"{hours}:{tail}" if hours else tail


def show(numbers: dict[str, Number]) -> str:
    """Return e.g. `loss 1.234 accuracy 0.567`: underscores become spaces, floats get four digits."""
    return " ".join(f"{k.replace('_', ' ')} {v:.4g}" if isinstance(v, float) else f"{k.replace('_', ' ')} {v}" for k, v in numbers.items())


class SilentReporter:
    """Prints nothing; collects the lines in `lines`."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def start(self, total: int, what: str, done: int = 0, unit: str = "steps") -> None: ...

    def update(self, done: int, **numbers: Number) -> None: ...

    def finish(self) -> None: ...


class PlainReporter:
    """Plain lines, with progress at most every `every` seconds."""

    def __init__(self, stream: TextIO | None = None, every: float = 10.0) -> None:
        self.stream = stream
        self.every = every
        self._what, self._unit, self._total, self._first = "", "steps", 0, 0
        self._began = self._shown = 0.0
        self._pending: tuple[int, dict[str, Number]] | None = None

    def line(self, text: str) -> None:
        print(shown(text), file=self.stream or sys.stderr, flush=True)

    def start(self, total: int, what: str, done: int = 0, unit: str = "steps") -> None:
        self._what, self._unit, self._total, self._first = what, unit, total, done
        self._began = self._shown = time.monotonic()
        self._pending = None

    def update(self, done: int, **numbers: Number) -> None:
        self._pending = (done, numbers)
        now = time.monotonic()
        if now - self._shown >= self.every or done >= self._total:
            self._show(now)

    def _show(self, now: float) -> None:
        if self._pending is None:
            return
        (done, numbers), self._pending, self._shown = self._pending, None, now
        rate = (done - self._first) / max(now - self._began, 1e-9)
        left = f", {clock((self._total - done) / rate)} left" if rate > 0 and done < self._total else ""
        self.line(f"{self._what} {done}/{self._total} {show(numbers)} ({rate:.3g} {self._unit}/s{left})".replace("  ", " "))

    def finish(self) -> None:
        self._show(time.monotonic())


class RichReporter:
    """Progress bar on a terminal, with lines above it."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        self._bar: Any = None
        self._task: Any = None
        self._unit, self._first, self._began = "steps", 0, 0.0

    def line(self, text: str) -> None:
        self.console.print(shown(text), markup=False, highlight=False, soft_wrap=True)

    def start(self, total: int, what: str, done: int = 0, unit: str = "steps") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.finish()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
        )
        self._bar = Progress(*columns, console=self.console, transient=False, refresh_per_second=4)
        self._unit, self._first, self._began = unit, done, time.monotonic()
        self._task = self._bar.add_task(what, total=total, completed=done, numbers="")
        self._bar.start()

    def update(self, done: int, **numbers: Number) -> None:
        if self._bar is None:
            return
        rate = (done - self._first) / max(time.monotonic() - self._began, 1e-9)
        total = self._bar.tasks[0].total or 0
        left = f", {clock((total - done) / rate)} left" if rate > 0 else ""
        self._bar.update(self._task, completed=done, numbers=f"{show(numbers)} ({rate:.3g} {self._unit}/s{left})")

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def auto_reporter() -> Reporter:
    """Return a reporter: with a progress bar on a terminal, with plain lines elsewhere."""
    return RichReporter() if sys.stderr.isatty() else PlainReporter()
