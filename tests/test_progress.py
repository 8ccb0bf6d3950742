"""Progress: a line per finished piece in a log, and when it will be done."""

import io
import logging
import time

from rich.text import Text

from raysnap import progress


def lines_of(monkeypatch, calls: list[tuple[float, tuple]], **settings) -> list[str]:
    """Return what a log shows when progress is shown at these times."""
    stream, clock = io.StringIO(), iter([0.0, *(time_s for time_s, _ in calls)])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.show_progress(stream, **settings) as show:
        for _, call in calls:
            show(*call)
    return stream.getvalue().splitlines()


def test_a_log_has_each_step_once_with_the_time_left(monkeypatch):
    calls = [
        (10.0, ("trials", 2, 12, "two were done before")),
        (60.0, ("trials", 3, 12, "a")),
        (160.0, ("trials", 5, 12, "b")),
        (510.0, ("trials", 12, 12, "c")),
    ]
    assert lines_of(monkeypatch, calls) == [
        "[   10 s] Fine-tunes 2/12  two were done before",
        "[   60 s] Fine-tunes 3/12  a  (about 7\u00a0min\u00a030\u00a0s left)",
        "[  160 s] Fine-tunes 5/12  b  (about 5\u00a0min\u00a050\u00a0s left)",
        "[  510 s] Fine-tunes 12/12  c",
    ]


def test_a_log_leaves_out_short_rests_and_notes():
    stream = io.StringIO()
    with progress.show_progress(stream) as show:
        show("data", 0, 2, "first")
        show("data", 0, 2, "still the first")
        show("data", 1, 2, "")
    assert [line[10:] for line in stream.getvalue().splitlines()] == ["Data       0/2  first", "Data       1/2"]


def test_a_log_says_while_it_is_silent_what_it_is_at(monkeypatch):
    for name, value in {"TICK_S": 0.01, "QUIET_S": 0.05, "QUIET_GROWTH": 2, "MAX_QUIET_S": 0.4}.items():
        monkeypatch.setattr(progress, name, value)
    stream = io.StringIO()
    with progress.show_progress(stream) as show:
        time.sleep(0.1)
        show("trials", 0, 2, "")
        show("trials/001-a", 1, 3, "val 0.5")
        time.sleep(1.0)
        show("trials/001-a", 3, 3, "")
        time.sleep(0.5)
    texts = [line[10:] for line in stream.getvalue().splitlines()]
    assert texts[0] == "starting  still at it"
    assert texts[texts.index("Fine-tunes 0/2") + 1] == "Fine-tunes 0/2  still at it: 001-a 1/3 val 0.5"
    assert texts[-1] == "Fine-tunes 0/2  still at it" and len(texts) < 12, "each wait is longer than the one before"


def test_what_is_over_soon_shows_nothing_in_a_log(monkeypatch):
    calls = [(0.0, ("search", 0, 2, "a")), (4.0, ("search", 1, 2, "b")), (6.0, ("search", 2, 2, "c"))]
    assert [line[10:] for line in lines_of(monkeypatch, calls, silent_s=5)] == ["Search     2/2  c"]


def test_a_stage_that_begins_again_is_timed_from_there(monkeypatch):
    calls = [(0.0, ("search", 0, 2, "a")), (900.0, ("search", 1, 2, "b")), (1000.0, ("search", 0, 3, "c"))]
    calls.append((1010.0, ("search", 1, 3, "d")))
    assert [line[10:] for line in lines_of(monkeypatch, calls)] == [
        "Search     0/2  a",
        "Search     1/2  b  (about 15\u00a0min\u00a000\u00a0s left)",
        "Search     0/3  c",
        "Search     1/3  d",
    ]


def test_names_in_notes_stay_in_their_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    for is_terminal in (False, True):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda is_terminal=is_terminal: is_terminal)
        with progress.show_progress(stream) as show:
            show("data", 0, 2, "a\x1b]0;x\x07\nraysnap: done\u202e")
        assert r"a\x1b]0;x\x07\nraysnap: done\u202e" in stream.getvalue().replace("\x1b[2m", "")


def test_pieces_of_a_stage_are_shown_on_a_terminal_only(monkeypatch):
    calls = [("trials", 0, 2, ""), ("trials/001-a", 1, 3, "val 0.5"), ("trials/[red]b", 1, 3, "val 0.25")]

    def shown(stream) -> str:
        with progress.show_progress(stream) as show:
            for call in calls:
                show(*call)
            show("trials/001-a", 3, 3, "")
            show("trials/never-begun", 3, 3, "")
            show("trials", 1, 2, "a is done")
        return stream.getvalue()

    assert [line[10:] for line in shown(io.StringIO()).splitlines()] == ["Fine-tunes 0/2", "Fine-tunes 1/2  a is done"]
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    last = shown(terminal).split("\x1b[1A")[-1]
    text = terminal.getvalue()
    assert "a is done" in text and "[red]b" in text and "val 0.25" in text
    assert "001-a" not in last and "never-begun" not in text


def test_a_narrow_terminal_truncates_names_and_notes(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    name = "007-resnet18-shapes-orientation-a-r2"
    with progress.show_progress(terminal) as show:
        show("trials", 11, 12, f"{name} val 0.855")
        show(f"trials/{name}", 10, 30, "val 0.855")
    last = terminal.getvalue().split("\x1b[1A")[-1]
    assert "11/12" in last and "10/30" in last and "0:00:00" in last
    assert name not in last and "007-resnet18" in last
    assert all(len(Text.from_ansi(line).plain) <= 80 for line in last.splitlines())


def test_what_is_logged_is_printed_above_the_bars(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    handler = logging.StreamHandler(terminal)
    monkeypatch.setattr(logging.root, "handlers", [handler])
    with progress.show_progress(terminal) as show:
        show("trials", 0, 2, "")
        logging.getLogger("raysnap.tests").warning("waiting for [1] GPU")
        assert "waiting for [1] GPU\n" in Text.from_ansi(terminal.getvalue()).plain
    assert handler.stream is terminal
