import io

import pytest

from smatcli.runs import reporter as module
from smatcli.runs.reporter import PlainReporter, RichReporter, SilentReporter, auto_reporter, clock, show


@pytest.fixture
def time(monkeypatch):
    class Time:
        now = 100.0

        def monotonic(self):
            return self.now

    fake = Time()
    monkeypatch.setattr(module, "time", fake)
    return fake


@pytest.mark.parametrize(("seconds", "text"), [(7, "0:07"), (754, "12:34"), (3723, "1:02:03"), (-1, "0:00")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_show():
    assert show({"loss": 0.123456, "epoch": 3, "time_left": "1:00"}) == "loss 0.1235 epoch 3 time left 1:00"


def test_plain_lines_come_now_and_then_with_rate_and_time_left(time):
    stream = io.StringIO()
    plain = PlainReporter(stream, every=10)
    plain.start(100, "train", done=20)
    for done in range(21, 61):
        time.now += 1
        plain.update(done, loss=0.5)
    plain.finish()
    plain.finish()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "train 30/100 loss 0.5 (1 steps/s, 1:10 left)"
    assert [line.split()[1] for line in lines] == ["30/100", "40/100", "50/100", "60/100"]


def test_the_last_update_is_always_shown(time):
    stream = io.StringIO()
    plain = PlainReporter(stream)
    plain.start(2, "eval", unit="episodes")
    time.now += 0.5
    plain.update(1)
    plain.finish()
    assert stream.getvalue() == "eval 1/2 (2 episodes/s, 0:00 left)\n"


def test_rich_shows_brackets_as_they_are_and_ends_twice():
    from rich.console import Console

    rich = RichReporter()
    stream = io.StringIO()
    rich.console = Console(file=stream, force_terminal=True, width=120)
    rich.update(3)
    rich.start(10, "train")
    rich.update(4, loss=0.25, name="[red]x")
    rich.line("data [split] a")
    rich.finish()
    rich.finish()
    text = stream.getvalue()
    assert "data [split] a" in text
    assert "loss 0.25" in text
    assert "[red]x" in text
    assert "4/10" in text


def test_auto_is_plain_without_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert isinstance(auto_reporter(), PlainReporter)


def test_silent_keeps_the_lines():
    silent = SilentReporter()
    silent.start(1, "x")
    silent.update(1, a=1)
    silent.finish()
    silent.line("done")
    assert silent.lines == ["done"]
