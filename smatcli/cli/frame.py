"""Error handling for all verbs: every error becomes one line and an exit code, and a closed pipe ends the program silently."""

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from smatcli.errors import SmatError, UserError
from smatcli.safe.text import shown

DEBUG_VARIABLE = "SMAT_DEBUG"
CLOSED_PIPE = 128 + signal.SIGPIPE
# Newer versions of typer contain a copy of click, so its errors are taken from typer's public names.
CLICK_ERRORS: tuple[type[BaseException], ...] = (
    typer.Exit,
    typer.Abort,
    next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"),
)


class Terminated(BaseException):
    """SIGTERM or SIGHUP, received while no engine handles it."""

    def __init__(self, signum: int = signal.SIGTERM) -> None:
        super().__init__()
        self.signum = signum


def debugging() -> bool:
    """Return whether `--debug` or SMAT_DEBUG=1 is set."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def print_error(text: str) -> None:
    """Print one line on stderr, in red on a terminal; line breaks become spaces."""
    line = shown(" ".join(text.split()))
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    typer.echo(f"{typer.style('smat:', fg='red', bold=True) if colour else 'smat:'} {line}", err=True)


def describe(error: BaseException) -> tuple[str, int]:
    """Return the message line and the exit code for an error."""
    if isinstance(error, SmatError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "stopped (SIGINT)", getattr(error, "exit_code", 130)
    if isinstance(error, Terminated):
        return f"stopped ({signal.Signals(error.signum).name})", 128 + error.signum
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the device{f' for {error.filename}' if error.filename else ''}; free some space and run again", 1
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return f"{str(error.filename)[:60]}: {(error.strerror or 'cannot be opened').lower()}", 2
    if isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError | NotADirectoryError) and error.filename:
        return f"{error.filename}: {(error.strerror or 'cannot be opened').lower()}", 1
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return "a file name is not UTF-8 and cannot be written to reports and recipes; rename the file", 2
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror.lower()}", 1
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):
        return f"{str(error)[13:]}: a symbolic link that points to itself", 2
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory; use a smaller batch, fewer experts or a smaller backbone", 1
    return f"internal error: {type(error).__name__}: {error}; run again with --debug for the traceback", 1


@contextmanager
def guarded() -> Iterator[None]:
    """Turn every error except typer's own into one line and SystemExit; `--debug` prints the traceback too."""
    try:
        yield
    except CLICK_ERRORS:
        raise
    except BrokenPipeError:
        discard_output()
        raise SystemExit(CLOSED_PIPE) from None
    except (Exception, KeyboardInterrupt, Terminated) as error:
        line, code = describe(error)
        if debugging():
            import traceback

            traceback.print_exc()
        # Under torchrun all processes raise the same error, and only the first prints it.
        if not (getattr(error, "quiet", False) or (isinstance(error, UserError) and os.environ.get("RANK", "0") != "0")):
            with suppress(OSError):  # the reader of stderr may be gone
                print_error(line)
        raise SystemExit(code) from None


@contextmanager
def closed_pipes() -> Iterator[None]:
    """Exit with 141 (128 + SIGPIPE) and without a line if the reader of stdout or stderr has closed its pipe."""
    code: Any = 0
    try:
        try:
            yield
        except SystemExit as stop:
            if isinstance(stop.__context__, BrokenPipeError):  # rich and typer exit with 1
                raise stop.__context__ from None
            code = stop.code
            raise
        finally:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None and not stream.closed:
                    stream.flush()
    except BrokenPipeError:
        discard_output()
        raise SystemExit(code or CLOSED_PIPE) from None


def discard_output() -> None:
    """Redirect stdout and stderr to the null device, so that the flush at exit does not fail on a closed pipe."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)


def _terminated(signum: int, frame: FrameType | None) -> None:
    if signum == signal.SIGHUP:
        from smatcli.runs.signals import leave_terminal

        leave_terminal()
    raise Terminated(signum)


def catch_signals() -> None:
    """Make SIGTERM and SIGHUP unwind the stack, so that temporary files are removed; SIGHUP stays ignored where it was (`nohup`)."""
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _terminated)


class Root(TyperGroup):
    """The `smat` command, which handles the errors of every verb and lists the verbs in workflow order (`ORDER`)."""

    ORDER: tuple[str, ...] = ()

    def invoke(self, ctx: Any) -> Any:
        with guarded():
            return super().invoke(ctx)

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=lambda name: self.ORDER.index(name) if name in self.ORDER else len(self.ORDER))
