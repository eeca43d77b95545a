"""Laws of classification that hold for any line: what is added, where it stands and who hands it on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mailweir.contracts.events import BounceClass, Classification
from mailweir.mail import classify_rules
from mailweir.mail.classify import classify
from mailweir.mail.confusion import Line, read_lines

ROOT = Path(__file__).parents[3]
REPLIES = ROOT / "tests" / "data" / "replies"
LINES = read_lines(sorted(REPLIES.glob("*.jsonl")))

ABOUT_US = (
    " (Client host [192.0.2.1] blocked using zen.spamhaus.org)",
    " - too many messages from your IP, rate limit exceeded",
    "; rejected for policy reasons",
    " your IP has a poor reputation",
    ". This message was classified as spam",
)


def said(line: Line, reply: str | None = None) -> Classification:
    return classify(reply or line.reply, provider=line.provider, stage=line.stage)


def meaning(found: Classification) -> tuple[str, BounceClass]:
    return found.category, found.cls


@pytest.mark.parametrize("words", ABOUT_US)
def test_words_about_us_never_make_a_line_hard(words):
    for line in LINES:
        if said(line).cls is not BounceClass.HARD:
            assert said(line, line.reply + words).cls is not BounceClass.HARD, line


@pytest.mark.parametrize("code", ["421", "450", "451", "452"])
def test_a_temporary_reply_is_never_hard_and_suppresses_nobody(code):
    for line in LINES:
        temporary = re.sub(r"^5\d\d(?=[ -])", code, line.reply)
        if temporary.startswith(code):
            found = said(line, temporary)
            assert found.cls is not BounceClass.HARD, line
            assert found.suppress is None or found.suppress.scope == "pair", line


def test_case_and_blanks_say_nothing():
    for line in LINES:
        wide = "  " + line.reply.replace(" ", "  ") + " \r\n"
        assert said(line, wide).category == said(line).category, line
        if "\\" not in line.reply:  # \N is no escaped line end
            assert meaning(said(line, line.reply.upper())) == meaning(said(line)), line


def test_who_handed_a_reply_on_says_nothing():
    for line in LINES:
        if line.reply[:3].isdigit():
            handed = f"host mx.example.com[192.0.2.1] said: {line.reply}"
            assert meaning(said(line, handed)) == meaning(said(line)), line


def test_what_a_remote_said_outranks_whom_it_quotes():
    inner = "host mx.example.org[192.0.2.2] said: 550 5.1.1 User unknown"
    found = classify(f"450 4.1.7 <a@example.com>: Sender address rejected: {inner}")
    assert meaning(found) == ("sender_rejected", BounceClass.BLOCK)


WRAPPINGS = (
    "to=<u@example.com>, relay=mx.example.com[2001:db8::1]:25, delay=0.8, dsn=5.0.0, status=bounced "
    "(host mx.example.com[2001:db8::1] said: {reply} (in reply to RCPT TO command))",
    "NOQUEUE: reject: RCPT from mail.example.net[192.0.2.5]: {reply}; from=<a@example.net> "
    "to=<u@example.com> proto=ESMTP helo=<mail.example.net>",
    "2025-02-17 17:59:47 1tk2b3-006Xtp-0N ** u@example.com R=dnslookup T=remote_smtp H=mx.example.com "
    "[192.0.2.2] CV=yes: SMTP error from remote mail server after RCPT TO:<u@example.com>: {reply}",
    "... while talking to mx.example.com.:\n>>> RCPT To:<u@example.com>\n<<< {reply}",
    "<u@example.com>:\n192.0.2.1 does not like recipient.\nRemote host said: {reply}\n"
    "Giving up on 192.0.2.1.",
    "mx.example.com #<mx.example.com #5.0.0 smtp; {reply}> #SMTP#",
    "Diagnostic-Code: smtp; {reply}",
    "smtplib.SMTPRecipientsRefused: {{'u@example.com': ({code}, b'{text}')}}",
    'Expected response code "250" but got code "{code}", with message "{reply}".',
    "SMTP Error: data not accepted.SMTP server error: DATA END command failed Detail: {text} "
    "SMTP code: {code}",
    "Error: Can't send mail - all recipients were rejected: {reply}",
    "javax.mail.SendFailedException: Invalid Addresses;\n  nested exception is:\n"
    "\tcom.sun.mail.smtp.SMTPAddressFailedException: {reply}",
    'delay=1s result="PermFail" stat="{reply}"',
    "Error Type: SMTP\nhMailServer sent: RCPT TO:<u@example.com>\nRemote server replied: {reply}",
    "Google tried to deliver your message, but it was rejected.\n\n"
    "The error that the other server returned was:\n{reply}",
    '{{"code": {code}, "message": "{text}", "description": ""}}',
    '{{"email":"u@example.com","event":"bounce","ip":"192.0.2.1","reason":"{reply}","status":"{enhanced}",'
    '"tls":1,"type":"blocked"}}',
    '{{"notificationType":"Bounce","bounce":{{"bounceType":"Permanent","bouncedRecipients":[{{"action":"failed",'
    '"status":"{enhanced}","diagnosticCode":"smtp; {reply}"}}],"reportingMTA":"dns; mx.example.com"}}}}',
    '{{"RecordType":"Bounce","Type":"HardBounce","Description":"The server was unable to deliver your message '
    '(ex: unknown user, mailbox not found).","Details":"smtp;{reply}","Email":"u@example.com"}}',
    "Failed to add recipient: u@example.com [SMTP: Invalid response code received from server "
    "(code: {code}, response: {text})]",
    "(host 'mx.example.com' rejected command 'RCPT TO:<u@example.com>' with code {code} ({enhanced}) "
    "'{text}')",
)


@pytest.mark.parametrize("wrapping", WRAPPINGS, ids=lambda text: text[:24])
def test_programs_that_wrap_a_reply_change_nothing(wrapping):
    plain = [
        line
        for line in LINES[::3]
        if re.match(r"[45]\d\d[ -]", line.reply) and not re.search("[\n'\"]|said:|->", line.reply)
    ]
    other = []
    for line in plain:
        enhanced = re.match(r"\d{3}.(\d\.\d+\.\d+)", line.reply)
        wrapped = wrapping.format(
            reply=line.reply,
            code=line.reply[:3],
            text=line.reply[4:],
            enhanced=enhanced[1] if enhanced else "0.0.0",
        )
        stage = line.stage or "rcpt"
        before = classify(line.reply, provider=line.provider, stage=stage)
        after = classify(wrapped, provider=line.provider, stage=stage)
        if meaning(after) != meaning(before):
            other.append((meaning(before), meaning(after), line.reply))
    assert len(plain) > 500
    assert len(other) <= len(plain) / 200, other


@pytest.mark.parametrize("reply", (REPLIES / "hostile.txt").read_text().splitlines())
def test_words_of_a_missing_mailbox_in_replies_about_us_are_not_hard(reply):
    for stage in (None, "rcpt", "dot"):
        assert classify(reply, stage=stage).cls is not BounceClass.HARD, stage


@pytest.mark.parametrize("code", [530, 534, 535, 538])
def test_codes_of_a_login_are_about_ours(code):
    assert classify(f"{code} 5.7.8 no such user").category == "relay_denied"
    assert classify(f"{code} account disabled").cls is BounceClass.BLOCK
    assert classify("550 user unknown", stage="auth").category == "relay_denied"


def test_every_veto_is_asked_only_beside_its_words():
    assert all(words for words, _ in classify_rules.rules().vetoes)


def test_a_line_says_the_same_as_json_and_as_text():
    lines = [line for line in LINES[::40] if not re.search("[\n\r]|^{", line.reply)]
    sent = [line.reply for line in lines] + [json.dumps({"reply": line.reply}) for line in lines]
    done = subprocess.run(
        [sys.executable, "-m", "console", "classify", "-o", "json"],
        input="\n".join(sent).encode(),
        capture_output=True,
        cwd="/",
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        check=True,
    )
    answers = done.stdout.decode().splitlines()
    assert len(answers) == 2 * len(lines)
    assert answers[: len(lines)] == answers[len(lines) :]
