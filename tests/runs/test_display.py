"""What a person sees: lines into a file, a bar on a terminal, nothing when quiet."""

import io
import re

import pytest
from rich.console import Console

from matrix_ssl.runs.display import Display

TERMS = ("uniformity", "alignment")
LINE = {"loss": 1.23456, "uniformity": -0.5, "alignment": 1.7, "effective_rank": 12.34, "learning_rate": 0.1}


def console(file, **options):
    return Console(file=file, width=200, highlight=False, **options)


def run(display, *, done=0, total=4):
    with display.training(done=done, total=total) as shown:
        for step in range(done + 1, total + 1):
            shown.step(step, 256, LINE if step % 2 == 0 else None, TERMS)


def test_plain_lines_where_there_is_no_terminal():
    file = io.StringIO()
    display = Display(console(file))
    display.say("resuming [bold]now[/bold]")
    run(display)
    first, last = file.getvalue().splitlines()
    assert first == "resuming [bold]now[/bold]"
    expected = (
        r"step 4/4  [\d,]+ img/s  0:00 left  loss 1\.235  uniformity -0\.5  alignment 1\.7  effective rank 12\.34"
    )
    assert re.fullmatch(expected, last)


@pytest.mark.parametrize(
    ("images", "speeds"), [(256, ["43", "34"]), (2, ["0.33", "0.27"]), (60, ["10", "8"]), (59, ["9.8", "7.9"])]
)
def test_a_line_every_ten_seconds_with_speed_and_time_left(monkeypatch, images, speeds):
    clock = iter([100.0, 105.0, 112.0, 115.0, 130.0])  # start, then one reading a step
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    file = io.StringIO()
    with Display(console(file)).training(done=10, total=1000) as shown:
        for step in range(11, 15):
            shown.step(step, images, None, TERMS)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert lines == [
        f"step 12/1000  {speeds[0]} img/s  1:38:48 left", f"step 14/1000  {speeds[1]} img/s  2:03:15 left",
    ]  # fmt: skip


def test_a_terminal_gets_a_bar():
    file = io.StringIO()
    display = Display(console(file, force_terminal=True))
    run(display)
    display.say("done")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "4/4" in text
    assert "img/s" in text
    assert "loss 1.235" in text
    assert text.rstrip().endswith("done")


def test_names_in_brackets_are_text_on_a_bar():
    file = io.StringIO()
    with Display(console(file, force_terminal=True)).training(done=0, total=1) as shown:
        shown.step(1, 256, {"loss": 1.0, "[/bold]": 2.5}, ("[/bold]",))  # a term of a method of one's own
    assert "[/bold] 2.5" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())


def test_missing_values_are_left_out():
    file = io.StringIO()
    with Display(console(file)).training(done=0, total=1) as shown:
        shown.step(1, 8, {"loss": 2.0, "effective_rank": None}, TERMS)
    assert file.getvalue().rstrip().endswith("left  loss 2")


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_says_nothing(capfd, terminal):
    display = Display(quiet=True)
    display.say("hello")
    run(display)
    file = io.StringIO()
    silent = Display(console(file, force_terminal=terminal, quiet=True))
    silent.say("hello")
    run(silent)
    assert file.getvalue() == ""
    assert capfd.readouterr() == ("", "")


def test_writes_to_standard_error(capsys):
    display = Display()
    display.say("hello")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")
