"""The bad policy corpus: every file is refused, at the line its first comment names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from router.policy.loader import load, load_checked
from router.policy.problems import PolicyRefused, Severity

CORPUS = Path(__file__).parents[2] / "data" / "policies"
FILES = sorted(CORPUS.glob("*.yaml"))
GOOD = """\
sources: {tx: {ip: 192.0.2.1}, news: {ip: 192.0.2.2}}
pools: {tx: {sources: [tx]}, news: {sources: [news]}}
rules:
  - {match: {bucket: transactional}, action: {pool: tx}}
  - {action: {pool: news}}
"""


def test_the_corpus_is_large_enough():
    assert len(FILES) >= 40


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_refused_with_its_line_and_what_would_be_right(path: Path):
    text = path.read_bytes()
    line, fragment = re.match(rb"# expect (\d+): (.*)", text).groups()
    loaded = load(text, file=path.name)
    assert not loaded.ok
    first = loaded.errors[0]
    assert (first.line, first.file) == (int(line), path.name), str(first)
    assert fragment.decode() in str(first)
    assert first.right
    assert b"hunter22" not in str(loaded.problems).encode()
    with pytest.raises(PolicyRefused, match=re.escape(f"{path.name}:{int(line)}:")):
        load_checked(text, file=path.name)


@pytest.mark.parametrize(
    ("data", "line", "fragment"),
    [
        (b"", 1, "empty"),
        (b"   \n# nothing\n", 1, "empty"),
        (GOOD.encode() + b"# caf\xe9\n", 6, "not UTF-8"),
        (b"\xff\xfe\x00\x00", 1, "not UTF-8"),
        (GOOD.encode() + b"#" * 10_000_000, 1, "bytes"),
        (GOOD.encode() + b"regions: [e\x00u]\n", 6, "not YAML"),
        (b"[" * 5000, 1, "nested deeper"),
    ],
    ids=["empty", "comment only", "latin-1", "utf-16", "10 MB", "NUL", "5,000 brackets"],
)
def test_unreadable_files_are_refused(data: bytes, line: int, fragment: str):
    loaded = load(data)
    assert not loaded.ok
    assert loaded.errors[0].line == line
    assert fragment in loaded.errors[0].message


def test_the_good_form_of_the_corpus_is_accepted():
    loaded = load(GOOD)
    assert loaded.problems == ()
    assert [r.name for r in loaded.policy.rules] == ["rule 10", "rule 20"]


def test_anchors_and_merges_are_read():
    text = GOOD.replace(
        "pools: {tx: {sources: [tx]}, news: {sources: [news]}}",
        "pools:\n  tx: &base {sources: [tx], limits: {gmail: 10/s}}\n"
        "  news: {<<: *base, sources: [news]}",
    )
    loaded = load(text)
    assert loaded.problems == ()
    assert str(loaded.policy.pools["news"].limits["gmail"]) == "10/s"


def test_every_error_of_a_file_is_reported_at_once():
    text = GOOD.replace("192.0.2.1", "nowhere").replace("action", "acton")
    loaded = load(text)
    assert {p.line for p in loaded.errors} >= {1, 4, 5}
    assert all(p.severity is Severity.ERROR for p in loaded.errors)
