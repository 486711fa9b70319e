"""Bounds around one reading: nothing but SmatError comes out, no hang, no more than 500 MB beyond what was there."""

import faulthandler
import resource
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from smatcli.errors import SmatError
from smatcli.safe import probe as safe_probe

SECONDS = 60  # of one reading; the process ends with a traceback beyond it, since a loop in C hears nothing
MEMORY = 500 * 2**20
safe_probe.SECONDS = 3.0  # files of a few kilobytes


@contextmanager
def bounded(memory: int = MEMORY, seconds: int = SECONDS) -> Iterator[None]:
    """Ends the process when the block hangs; allocations beyond `memory` raise MemoryError in it (Linux)."""
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
    """Whether `read` raised SmatError, in one line; anything else that it raises comes through."""
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
    """Bytes of address space of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0
