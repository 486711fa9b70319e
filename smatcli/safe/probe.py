"""Trial reader of HDF5 files in a child process: on a damaged structure the HDF5 library can loop forever or crash.

`survives(path)` sends a path to the child, which is started on the first call and kept for the rest of the process. Files with an intact
seal (`smatcli.safe.seal`), such as the stores and results that smat writes, are opened without the child.
"""

import atexit
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

SECONDS = 20.0  # seconds per file; a results file takes milliseconds
SMALL = 2**28  # bytes of the arrays that are read
MEMORY = 4 * 2**30  # address space of the child, bytes
_ROOT = str(Path(__file__).resolve().parent.parent)
_CODE = f"import sys; sys.path.insert(0, {_ROOT!r}); from smatcli.safe.probe import serve; serve()"

_lock = Lock()
_child: tuple[int, "subprocess.Popen[bytes]"] | None = None  # with the id of its parent: a fork must not share the pipes
_results: dict[tuple[str, int, int], bool] = {}


def survives(path: Path, seconds: float | None = None) -> bool:
    """Return whether a child process survives reading all of an HDF5 file, in bounded time and memory."""
    if os.name != "posix":
        return True
    facts = path.stat()
    key = (str(path.resolve()), facts.st_size, facts.st_mtime_ns)
    with _lock:
        if key not in _results:
            _results[key] = _ask(key[0], SECONDS if seconds is None else seconds)
        return _results[key]


def _ask(path: str, seconds: float) -> bool:
    global _child
    if _child is None or _child[0] != os.getpid() or _child[1].poll() is not None:
        started = _start()
        if started is None:
            return True
        _child = os.getpid(), started
    process = _child[1]
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(path.encode("utf-8", "surrogateescape").hex().encode() + b"\n")
        process.stdin.flush()
        if _answer(process.stdout.fileno(), seconds):
            return True
    except BrokenPipeError:
        pass
    process.kill()
    process.wait()
    _child = None
    return False


def _answer(descriptor: int, seconds: float) -> bool:
    from select import select

    return bool(select([descriptor], [], [], seconds)[0]) and os.read(descriptor, 1) == b"."


def _start() -> "subprocess.Popen[bytes] | None":
    """Start the child, wait until it is ready and return it, or None if no process can be started."""
    try:  # in a new session: Ctrl-C goes to the parent, which ends the child
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CODE],
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return None
    atexit.register(_stop, os.getpid(), process)
    assert process.stdout is not None
    if _answer(process.stdout.fileno(), 600.0):
        return process
    _stop(os.getpid(), process)
    return None


def _stop(owner: int, process: "subprocess.Popen[bytes]") -> None:
    if os.getpid() == owner:
        process.kill()
        process.wait()


def serve() -> None:
    """Run the child: read a path in hexadecimal per line of stdin, write a dot to stdout per file that was read to its end."""
    import resource

    from smatcli.safe.hdf5_checks import WRONG

    soft = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if soft == resource.RLIM_INFINITY else min(MEMORY, soft), soft))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.write(1, b".")
    for line in sys.stdin:
        with suppress(*WRONG):  # the parent runs into the same error and reports it
            _read(Path(bytes.fromhex(line.strip()).decode("utf-8", "surrogateescape")))
        os.write(1, b".")


def _read(path: Path) -> None:
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        _walk(file, 0)


def _walk(group: Any, depth: int) -> None:
    """Read everything that smat may need: attributes, members, arrays of bounded size."""
    import h5py

    from smatcli.safe.hdf5_checks import WRONG, array, attributes, member

    with suppress(*WRONG):
        attributes(group)
    try:
        names = list(group)
    except WRONG:
        return
    for name in names:
        try:
            child = member(group, name)
            if isinstance(child, h5py.Group) and depth < 2:
                _walk(child, depth + 1)
            elif isinstance(child, h5py.Dataset):
                attributes(child)
                if child.id.get_offset() is None or child.dtype.kind == "O":  # a plain block is safe
                    array(group, name, SMALL)
        except WRONG:
            continue
