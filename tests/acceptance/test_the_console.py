"""The console in a running house: every page behind its password, a job's whole story, a pause and its end."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.acceptance.house import House, house

PAGES = ("/", "/messages", "/paths", "/pauses", "/policy")


@contextmanager
def inside(home: House) -> Iterator[httpx.Client]:
    """A visitor who knows the password."""
    with httpx.Client(base_url=f"http://127.0.0.1:{home.port}", timeout=30) as visitor:
        password = (home.data / "console.password").read_text().strip()
        assert visitor.post("/login", data={"password": password}).status_code == 303
        yield visitor


def shown(visitor: httpx.Client, path: str) -> str:
    """What a page says."""
    page = visitor.get(path)
    assert page.status_code == 200, (path, page.text)
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    return html.unescape(page.text)


def form(visitor: httpx.Client, path: str, **fields: str) -> httpx.Response:
    """Send a form of the pauses page."""
    token = re.search(r'name="csrf" value="(\w+)"', shown(visitor, "/pauses"))
    assert token is not None
    return visitor.post(path, data={"csrf": token[1], **fields})


def test_the_console(tmp_path: Path) -> None:
    with house(tmp_path) as home:
        with httpx.Client(base_url=f"http://127.0.0.1:{home.port}", timeout=30) as stranger:
            for path in PAGES:
                assert stranger.get(path).headers["Location"] == "/login"
            assert stranger.post("/login", data={"password": "guess"}).status_code == 403
            refused = stranger.post("/pause", data={"subject": "bucket:bulk"})
            assert refused.headers["Location"] == "/login"

        with inside(home) as visitor:
            for path in PAGES:
                shown(visitor, path)
            home.behave("gmail", greylist=600.0)
            (first,) = home.send(["jane@gmail.com"])
            (unknown,) = home.send(["nouser1@outlook.com"])
            home.wait("the greylisting", lambda: home.state_of(first) == "deferred")
            home.wait_settled([unknown])

            story = shown(visitor, f"/jobs/{first}")
            for word in ("accepted", "routed", "deferred", "451", "RCPT TO:<j***@gmail.com>"):
                assert word in story
            assert "jane@" not in story
            assert '"outcome": "routed"' in story
            assert "\\u00" not in story, "escaped twice"
            assert "550" in shown(visitor, f"/jobs/{unknown}")
            assert visitor.get("/jobs/none").status_code == 404
            found = shown(visitor, "/messages?state=bounced")
            assert unknown in found
            assert first not in found
            assert "not an id" in shown(visitor, "/messages?id=none")
            home.wait("the path", lambda: "tx-1" in shown(visitor, "/paths"))

            # what is typed into a form must not be refreshed away
            assert 'http-equiv="refresh"' in shown(visitor, "/")
            assert 'http-equiv="refresh"' not in shown(visitor, "/pauses")
            for subject, minutes, reason in (
                ("everything", "60", "why not"),
                ("bucket:bulk", "soon", "why not"),
                ("bucket:bulk", "60", " "),
            ):
                bad = form(visitor, "/pause", subject=subject, minutes=minutes, reason=reason)
                assert bad.status_code == 422
                assert f'value="{subject}"' in bad.text
            assert visitor.post("/pause", data={"subject": "bucket:bulk"}).status_code == 403
            assert "Nothing is paused" in shown(visitor, "/pauses")

            done = form(visitor, "/pause", subject="bucket:bulk", minutes="60", reason="a <test>")
            assert done.headers["Location"] == "/pauses"
            assert "bucket:bulk" in shown(visitor, "/")
            assert "a &lt;test&gt;" in visitor.get("/pauses").text
            (pause,) = json.loads(home.run("pauses", "-o", "json").stdout)
            assert pause["subject"] == "bucket:bulk"
            assert pause["author"] == "console"
            assert form(visitor, "/resume", subject="nothing").status_code == 422
            assert form(visitor, "/resume", subject="bucket:bulk").status_code == 303
            assert json.loads(home.run("pauses", "-o", "json").stdout) == []
