"""SIGHUP: a closed terminal stops a run with its checkpoint, and `nohup` keeps it running."""

import os
import pty
import signal
import subprocess
import sys
import time

from smatcli.runs.signals import StopRequest

CHILD = """
import sys, time
from smatcli.runs.signals import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while not stop:
        time.sleep(0.01)
    for stream in (sys.stdout, sys.stderr):  # the terminal is gone
        print("a line", file=stream, flush=True)
    open(sys.argv[1], "w").write(str(stop.interrupted("step 1").exit_code))
"""


def test_a_closed_terminal_stops_a_run_although_it_can_print_no_more(tmp_path):
    controller, terminal = pty.openpty()
    command = [sys.executable, "-c", CHILD, str(tmp_path / "saved")]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True)
    os.close(terminal)
    assert os.read(controller, 100).startswith(b"ready")
    time.sleep(0.5)  # until the child has returned from its print
    os.close(controller)
    time.sleep(0.1)
    for _ in range(2):  # as the shell and the kernel do
        process.send_signal(signal.SIGHUP)
        time.sleep(0.05)
    assert process.wait(60) == 0
    assert (tmp_path / "saved").read_text() == "129"


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)
