"""A child process that reads HDF5 files first: the HDF5 library can loop for ever, or crash, on a damaged structure.

`survives(path)` asks the child, which is started with the first question and serves the whole process. Files with an unbroken seal
(`smatcli.safe.seal`) need not be asked about.
"""

import atexit
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

SECONDS = 20.0  # for one file; a results file takes milliseconds
SMALL = 2**28  # bytes of the arrays that are read
MEMORY = 4 * 2**30  # address space of the child, bytes
_ROOT = str(Path(__file__).resolve().parent.parent)
_CODE = f"import sys; sys.path.insert(0, {_ROOT!r}); from smatcli.safe.probe import serve; serve()"

_lock = Lock()
_child: tuple[int, "subprocess.Popen[bytes]"] | None = None  # with the process that started it: a fork must not share the pipes
_known: dict[tuple[str, int, int], bool] = {}


def survives(path: Path, seconds: float | None = None) -> bool:
    """Whether a child process comes back from reading all of an HDF5 file, whatever it finds in it."""
    if os.name != "posix":
        return True
    facts = path.stat()
    key = (str(path.resolve()), facts.st_size, facts.st_mtime_ns)
    with _lock:
        if key not in _known:
            _known[key] = _ask(key[0], SECONDS if seconds is None else seconds)
        return _known[key]


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
    """The child once it is ready; None where no process can be started, which is no fault of any file."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    try:  # a session of its own: Ctrl-C is for the parent, which takes the child with it
        process = subprocess.Popen([sys.executable, "-P", "-c", _CODE], start_new_session=True, **pipes)  # type: ignore[call-overload]
    except OSError:
        return None
    atexit.register(_stop, os.getpid(), process)
    if _answer(process.stdout.fileno(), 600.0):  # type: ignore[union-attr]
        return process
    _stop(os.getpid(), process)
    return None


def _stop(owner: int, process: "subprocess.Popen[bytes]") -> None:
    if os.getpid() == owner:
        process.kill()
        process.wait()


def serve() -> None:
    """The child: a path in hexadecimal a line on stdin, a dot on stdout for each file that was read to its end."""
    import resource

    from smatcli.safe.hdf5_checks import WRONG

    soft = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if soft == resource.RLIM_INFINITY else min(MEMORY, soft), soft))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.write(1, b".")
    for line in sys.stdin:
        with suppress(*WRONG):  # the parent meets it again, and says so
            _read(Path(bytes.fromhex(line.strip()).decode("utf-8", "surrogateescape")))
        os.write(1, b".")


def _read(path: Path) -> None:
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        _walk(file, 0)


def _walk(group: Any, depth: int) -> None:
    """Everything that a reader may ask for: attributes, members, arrays of a bounded size."""
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
            found = member(group, name)
            if isinstance(found, h5py.Group) and depth < 2:
                _walk(found, depth + 1)
            elif isinstance(found, h5py.Dataset):
                attributes(found)
                if found.id.get_offset() is None or found.dtype.kind == "O":  # a plain block cannot lead astray
                    array(group, name, SMALL)
        except WRONG:
            continue
