"""Templates: merged messages read back as the values that went in, and nothing else."""

from __future__ import annotations

import email
import email.policy
import html as html_module
import time
from email.message import EmailMessage

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailweir.mail.skeleton import Skeleton, TemplateError, compile_template, decode

_VALUE = st.text(
    st.characters(
        exclude_categories=["Cs"], exclude_characters="".join(map(chr, [*range(32), 127]))
    ),
    max_size=200,
)
_LITERAL = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="{}"), max_size=150
)


def _bodies(raw: bytes) -> tuple[str, str, str]:
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    texts = []
    for kind in ("plain", "html"):
        part = message.get_body((kind,))
        assert part is not None
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        texts.append(payload.decode().replace("\r\n", "\n"))
    return str(message["Subject"]), texts[0], texts[1]


@settings(max_examples=300)
@given(_LITERAL, _LITERAL, _VALUE)
def test_a_merge_reads_back(before: str, after: str, value: str) -> None:
    source = f"{before}{{{{ v }}}}{after}"
    skeleton = compile_template("Hi {{ v }}", source, source)
    assert decode(skeleton.encode()) == skeleton
    raw = skeleton.merge(skeleton.check({"v": value, "unused": 1}))
    assert raw.isascii()
    assert all(len(line) <= 78 for line in raw.partition(b"\r\n\r\n")[2].split(b"\r\n"))
    _, text, html = _bodies(raw)
    assert text == f"{before}{value}{after}\n"
    assert html == f"{before}{html_module.escape(value)}{after}\n"


def test_values_with_lines_and_long_ones() -> None:
    skeleton = compile_template("s", "a {{ v }} b", "<p>{{ v }}</p>")
    value = "one \r\ntwo\n" + "x" * 5000 + " \n.\n..\nFrom me "
    _, text, _ = _bodies(skeleton.merge(skeleton.check({"v": value})))
    assert text == "a " + value.replace("\r\n", "\n") + " b\n"


@pytest.mark.parametrize(
    "source",
    [
        '{{ env "X" }}',
        "{{ ''.__class__ }}",
        "{{",
        "a }} b",
        "{{ }}",
        "{{ a | b }}",
        "{% for %}{{ a b }}",
        "{{{ a }}}",
    ],
)
def test_no_logic(source: str) -> None:  # S16
    with pytest.raises(TemplateError) as caught:
        compile_template("s", "line one\n" + source)
    assert "line 2" in str(caught.value)


def test_what_a_template_asks_for_must_be_given() -> None:
    skeleton = compile_template("{{ a }}", "{{ b }}")
    assert skeleton.names == {"a", "b"}
    for variables in (
        {"a": "1"},
        {"a": "1", "b": None},
        {"a": "x\r\nBcc: e", "b": "1"},
        {"a": "1", "b": "\0"},
    ):
        with pytest.raises(TemplateError):
            skeleton.check(variables)
    assert skeleton.check({"a": 1, "b": True, "c": "not kept"}) == {"a": 1, "b": True}


def test_html_is_escaped_and_subject_encoded() -> None:
    skeleton = compile_template("{{ a }}!", "{{ a }}", "<b>{{ a }}</b>")
    subject, text, html = _bodies(skeleton.merge({"a": '<svg onload="x">&ü'}))
    assert subject == '<svg onload="x">&ü!'
    assert text == '<svg onload="x">&ü\n'
    assert html == "<b>&lt;svg onload=&quot;x&quot;&gt;&amp;ü</b>\n"


def _ten_kib() -> Skeleton:
    text = (
        "Hello {{ name }},\n" + "a line of sixty characters or so, with an é in it somewhere\n" * 80
    )
    html = (
        "<p>Hello {{ name }}, your code is <b>{{ code }}</b></p>\n"
        + "<p class='x'>text</p>\n" * 200
    )
    return compile_template("{{ name }}, our sale", text, html)


def test_merging_ten_kib_is_quick() -> None:
    skeleton = _ten_kib()
    variables = skeleton.check({"name": "Grace", "code": "AUTUMN-1"})
    assert len(skeleton.merge(variables)) > 10_000
    best = 1.0
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(200):
            skeleton.merge(variables)
        best = min(best, (time.perf_counter() - begun) / 200)
    assert best < 100e-6, f"{best * 1e6:.0f} us"
