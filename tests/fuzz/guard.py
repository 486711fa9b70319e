"""Limits for reading one file: only SmatError may be raised, within a time limit and 500 MB of additional memory."""

import faulthandler
import resource
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from smatcli.errors import SmatError
from smatcli.safe import probe as safe_probe

SECONDS = 60  # per file; then the process ends with a traceback, because a loop in C ignores signals
MEMORY = 500 * 2**20
safe_probe.SECONDS = 3.0  # files of a few kilobytes


@contextmanager
def bounded(memory: int = MEMORY, seconds: int = SECONDS) -> Iterator[None]:
    """End the process if the block hangs; allocations beyond `memory` raise MemoryError inside it (Linux)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = _address_space()
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
    try:
        if now:
            resource.setrlimit(resource.RLIMIT_AS, (now + memory, hard))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        faulthandler.cancel_dump_traceback_later()


def refused(read: Callable[[], object]) -> bool:
    """Return whether `read` raised SmatError with a one-line message; other exceptions propagate."""
    try:
        with bounded():
            read()
    except SmatError as error:
        line = str(error)
        assert line.strip(), line
        assert "\n" not in line.strip(), line
        assert len(line) < 2000, line
        return True
    return False


def _address_space() -> int:
    """Bytes of address space of this process; 0 if the system does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0
