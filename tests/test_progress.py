"""Progress bars: a terminal's moves, a file gets few and whole lines, and nothing when it is not wanted."""

import io
import time
from typing import Any

import pytest

from diffusion_var import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, **options: Any) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    with progress.progress_bar(200, "work\x1b[31m\n", "image", **options) as bar:
        for _ in range(200):
            bar.update()
            time.sleep(0.002)  # 0.4 s: four moves of a bar on a terminal
    return stream.getvalue()


def test_a_file_gets_the_first_and_the_last_state_as_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, io.StringIO())
    first, last = text.splitlines()
    assert "0/200" in first
    assert "200/200" in last
    assert text.endswith("\n")
    assert "\r" not in text


def test_a_file_gets_a_line_whenever_the_time_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.1)
    start = time.monotonic()
    lines = shown(monkeypatch, io.StringIO()).splitlines()
    took = time.monotonic() - start  # 0.4 s, and more on a busy machine
    assert 3 <= len(lines) <= 3 + took / 0.1


def test_a_terminal_gets_a_bar_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, Terminal()).count("\r") > 2


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["file", "terminal"])
def test_titles_hold_no_escape_sequence(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    assert r"work\x1b[31m\n" in shown(monkeypatch, stream).replace("\x1b[A", "")
    assert "\x1b[31m" not in stream.getvalue()


def test_unwanted_bars_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, Terminal(), shown=False) == ""
    with progress.quiet():
        assert shown(monkeypatch, Terminal()) == ""
    with progress.quiet(), progress.quiet(False):
        assert shown(monkeypatch, Terminal()) == ""
    with progress.quiet(False):
        assert shown(monkeypatch, Terminal()) != ""
