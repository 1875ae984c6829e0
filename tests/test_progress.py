import io

from rich.console import Console

from stemwise import progress


def shown(monkeypatch, items, terminal, what="song"):
    out = io.StringIO()
    make = lambda **options: Console(file=out, force_terminal=terminal, width=200)  # noqa: E731
    monkeypatch.setattr(progress, "Console", make)
    assert list(progress.track(items, what=what, total=4)) == [0, 1, 2, 3]
    return out.getvalue()


def test_a_name_with_brackets_is_no_markup(monkeypatch):
    assert "Song [live] [/b] {0}" in shown(monkeypatch, range(4), True, "Song [live] [/b] {0}")


def test_quick_work_is_silent_where_nobody_watches(monkeypatch):
    assert shown(monkeypatch, range(4), False) == ""


def test_slow_work_says_how_far_it_is_and_how_long_it_takes(monkeypatch):
    now = iter(range(0, 1000, 6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    lines = shown(monkeypatch, range(4), False).splitlines()
    assert lines[0] == "song: 0/4"
    assert lines[-1].startswith("song: 4/4 in ")
    assert any(line.endswith(" s left") for line in lines[1:-1])


def test_a_pipe_is_no_terminal_whatever_the_environment_says(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(progress.track(range(4), what="song", total=4)) == [0, 1, 2, 3]
    assert capsys.readouterr() == ("", "")
