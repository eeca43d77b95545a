"""The mail of the benchmarks: 10 KiB, text and HTML; finished bytes, or a template with its values."""

from __future__ import annotations

from mailweir.mail.skeleton import compile_template

SIZE = 10_240
DOMAINS = 200
SENDER = "news@s.example.test"
_LINE = "The quick brown fox jumps over the lazy dog and comes back again.\n"


def recipient(number: int) -> str:
    """``user7@d7.example.test``: 200 domains in turn."""
    return f"user{number}@d{number % DOMAINS}.example.test"


def _html(greeting: str, lines: int) -> str:
    rows = "".join(f'      <p class="line">{_LINE.strip()}</p>\n' for _ in range(lines))
    return f"<html>\n  <body>\n    <h1>{greeting}</h1>\n    <div>\n{rows}    </div>\n  </body>\n</html>\n"


def finished(size: int = SIZE) -> bytes:
    """A whole message of ``size`` bytes with CRLF line ends, to be used as it is."""
    skeleton = compile_template("Our news", _LINE * 40, _html("Hello", 40))
    head = f"From: News <{SENDER}>\r\nTo: you <you@example.test>\r\n".encode()
    body = head + skeleton.merge({})
    filler = b"<!-- " + b"x" * 70 + b" -->\r\n"
    while len(body) < size - 2:
        body += filler[: max(2, size - 2 - len(body))]
    return body[: size - 2].rstrip(b"\r\n") + b"\r\n"


def template() -> bytes:
    """A compiled template whose merged message has 10 KiB, ``{{ name }}`` in subject, text and HTML."""
    made = compile_template(
        "News for {{ name }}",
        "Hello {{ name }},\n" + _LINE * 58,
        _html("Hello {{ name }}", 58),
    )
    return made.encode()
