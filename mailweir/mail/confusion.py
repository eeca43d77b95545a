"""The confusion table of classification over reply lines with known meaning, as Markdown.

``python -m mailweir.mail.confusion FILE.jsonl...`` prints it; ``docs/classification.md`` holds it for the lines
in ``tests/data/replies``, and a test says when it is out of date.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from mailweir.mail.classify import classify

BEGIN = "<!-- confusion: made by python -m mailweir.mail.confusion -->"
END = "<!-- end of confusion -->"


class Line(msgspec.Struct):
    """One reply with its meaning; ``also_ok`` names other categories a reader could defend."""

    reply: str
    category: str
    cls: str = msgspec.field(name="class")
    source: str
    provider: str | None = None
    stage: str | None = None
    also_ok: list[str] = []


def read_lines(files: list[Path]) -> list[Line]:
    """The lines of JSONL files. Raises ``msgspec.DecodeError`` for a bad one."""
    return [
        msgspec.json.decode(raw, type=Line, strict=False)
        for file in files
        for raw in file.read_bytes().splitlines()
        if raw.strip()
    ]


def table(lines: list[Line]) -> str:
    """Figures and the table wanted x got, only rows and columns that occur."""
    pairs: Counter[tuple[str, str]] = Counter()
    right = hard_right = false_hard = 0
    for line in lines:
        found = classify(line.reply, provider=line.provider, stage=line.stage)
        good = found.category == line.category or found.category in line.also_ok
        right += good
        hard_right += (found.cls == "hard") == (line.cls == "hard")
        false_hard += found.cls == "hard" and line.cls != "hard"
        pairs[line.category, line.category if good else found.category] += 1
    wrong = sorted((w, g, n) for (w, g), n in pairs.items() if w != g)
    total = len(lines)
    out = [
        f"{total} lines: category right {right / total:.1%}, hard or not right "
        f"{hard_right / total:.1%}, false hard {false_hard}.",
        "",
        "| meant | lines | right | taken for |",
        "|---|---:|---:|---|",
    ]
    for category in sorted({w for w, _ in pairs}):
        count = sum(n for (w, _), n in pairs.items() if w == category)
        taken = ", ".join(f"{g} {n}" for w, g, n in wrong if w == category)
        out.append(f"| {category} | {count} | {pairs[category, category]} | {taken} |")
    return "\n".join(out)


def main(arguments: Any) -> None:
    """Print the table."""
    sys.stdout.write(table(read_lines([Path(name) for name in arguments])) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
