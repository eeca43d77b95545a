"""What a remote host wrote is shown as it is: never as markup, never as a command to the terminal."""

from __future__ import annotations

import pytest

from console.output import print_rows


def test_a_reply_is_neither_markup_nor_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(("reply",), [["550 [/b] [red]no\x1b[2J\x00\x9b"], ["two\nlines"]])
    shown = capsys.readouterr().out
    assert "550 [/b] [red]no" in shown
    assert not any(c in shown for c in "\x1b\x00\x9b")
    assert [line.strip() for line in shown.splitlines()[-2:]] == ["two", "lines"]
