"""The frame of the command line: start-up, help, exit codes, one line per error."""

import errno
import os
import resource
import signal
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from smatcli.cli import VERBS, app
from smatcli.cli.frame import Root, Terminated, describe
from smatcli.errors import SmatError, UserError

HEAVY = ("torch", "timm", "matplotlib", "pandas", "h5py", "numpy", "scipy", "PIL", "pydantic.main")


def smat(*args, **kwargs):
    return subprocess.run([sys.executable, "-m", "smatcli.cli", *args], capture_output=True, text=True, timeout=120, **kwargs)


def test_help_imports_nothing_heavy():
    code = (
        "import sys, smatcli.cli as cli\n"
        "from typer.testing import CliRunner\n"
        "runner = CliRunner()\n"
        "for words in ([], *([verb] for verb in cli.VERBS)):\n"
        "    assert runner.invoke(cli.app, [*words, '--help']).exit_code == 0, words\n"
        f"print([name for name in {HEAVY[:-1]} if name in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]", found.stdout


def test_help_is_quick():
    best = 9.0
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert smat("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Processor time: the wall clock would measure what else runs on the machine.
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best < 0.4


def walk(command, path=()):
    yield path, command
    for name in sorted(getattr(command, "commands", {})):
        yield from walk(command.commands[name], (*path, name))


def test_every_command_and_parameter_has_help():
    root = typer.main.get_command(app)
    found = dict(walk(root))
    assert {path[0] for path in found if len(path) == 1} == set(VERBS)
    for path, command in found.items():
        text = command.get_short_help_str(200)
        assert text, (path, text)
        assert text[0].isupper(), (path, text)
        assert len(text) > 10, (path, text)
        for parameter in command.params:
            assert getattr(parameter, "help", None), (path, parameter.name)


def test_verbs_are_listed_in_the_order_of_the_flow():
    command = typer.main.get_command(app)
    assert isinstance(command, Root)
    assert command.list_commands(None) == list(VERBS)


def test_version():
    from smatcli.version import __version__

    assert smat("--version").stdout == f"smat {__version__}\n"


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["nosuchverb"], "nosuchverb"),
        (["train", "--nosuchoption"], "nosuchoption"),
        (["recipes", "cp", "quickstart/smat", "a", "b"], "b"),
    ],
)
def test_usage_errors(args, part):
    done = smat(*args)
    assert done.returncode == 2
    assert part in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["train", "pretrain", "sweep", "eval", "report"])
def test_verbs_without_arguments_show_their_help(verb):
    done = smat(verb)
    assert done.returncode == 2
    assert "Usage" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def one_line(done, code):
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("smat: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_bad_recipes_are_one_line(recipe_file, tmp_path):
    assert "did you mean" in one_line(smat("train", str(recipe_file()), "train.stpes=1"), 2)
    assert "this recipe does not exist" in one_line(smat("train", str(tmp_path / "none.yaml")), 2)
    assert "run it with `smat train" in one_line(smat("pretrain", str(recipe_file())), 2)


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (UserError("bad recipe"), 2, "bad recipe"),
        (SmatError("failed run"), 1, "failed run"),
        (KeyboardInterrupt(), 130, "SIGINT"),
        (Terminated(), 143, "SIGTERM"),
        (Terminated(signal.SIGHUP), 129, "SIGHUP"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1, "no space left on the device for /x/y"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "/x: permission denied"),
        (MemoryError(), 1, "out of memory"),
        (ValueError("two\nlines"), 1, "internal error: ValueError: two"),
    ],
)
def test_errors_become_a_line_and_a_code(error, code, part):
    line, found = describe(error)
    assert found == code
    assert part in line


def make_app(error):
    probe = typer.Typer(cls=Root, pretty_exceptions_enable=False)

    @probe.command()
    def fail():
        raise error

    @probe.command()
    def other(): ...

    return probe


def test_guard(monkeypatch):
    monkeypatch.delenv("SMAT_DEBUG", raising=False)
    done = CliRunner().invoke(make_app(ZeroDivisionError("a\nb")), ["fail"])
    assert done.exit_code == 1
    assert done.stderr == "smat: internal error: ZeroDivisionError: a b; run again with --debug for the traceback\n"
    monkeypatch.setenv("SMAT_DEBUG", "1")
    done = CliRunner().invoke(make_app(ZeroDivisionError("a")), ["fail"])
    assert done.exit_code == 1
    assert "Traceback" in done.stderr
    assert CliRunner().invoke(make_app(typer.Exit(7)), ["fail"]).exit_code == 7


def test_debug_anywhere_shows_the_traceback(recipe_file):
    done = smat("train", str(recipe_file()), "foo=1", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "unknown key 'foo'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("options", [[], ["--help"]])
@pytest.mark.parametrize("closed", ["stdout", "both"])
def test_a_closed_pipe_ends_every_verb_with_141_and_without_a_line(closed, options, tmp_path):
    verbs = (
        [["--version"], *([verb] for verb in VERBS)]
        if options
        else [["recipes", "ls"], ["recipes", "validate", "quickstart/smat"], ["env"]]
    )
    source = (
        "import os, sys\n"
        "from smatcli.cli import main\n"
        f"for words in {verbs!r}:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        f"        sys.argv = ['smat', *words, *{options!r}]\n"
        "        main()\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *words, file=report)\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    report, errors = tmp_path / "report", tmp_path / "errors"
    with errors.open("wb") as stderr:
        subprocess.run(
            [sys.executable, "-c", f"report = open({str(report)!r}, 'a', buffering=1)\n{source}"],
            stdout=writer, stderr=writer if closed == "both" else stderr, timeout=120,
        )  # fmt: skip
    os.close(writer)
    assert report.read_text().splitlines() == [f"141 {' '.join(words)}" for words in verbs]
    assert errors.read_text() == ""


def test_an_error_keeps_its_code_when_its_readers_are_gone():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "smatcli.cli", "train", "none.yaml"], stdout=writer, stderr=writer, timeout=120)
    os.close(writer)
    assert done.returncode in (2, 141)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_signals(signum, code):
    source = (
        "import sys, time, typer, smatcli.cli as cli\n"
        "@cli.app.command('wait', help='Wait.')\n"
        "def wait():\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "sys.argv = ['smat', 'wait']\n"
        "cli.main()\n"
    )

    # A shell's background job inherits an ignored SIGINT, and so would its tests.
    def listens():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listens
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signum)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert errors.count("\n") == 1
    assert errors.startswith("smat: stopped")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_installs(tmp_path, shell):
    env = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = smat("--install-completion", shell, env=env)
    assert done.returncode == 0, done.stderr
    assert any("smat" in p.name or "smat" in p.read_text() for p in tmp_path.rglob("*") if p.is_file())
