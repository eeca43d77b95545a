"""The console in the browser: overview, messages, one job's timeline, paths, policy. Server-rendered.

Everything shown may be hostile (subjects, replies): autoescaped, and the content policy allows no script
at all. Pages that change something take POST with a CSRF token.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from console.operate import BadSubject, Operator
from console.reading import Reader
from console.session import COOKIE, Sessions
from mailweir.contracts.ids import InvalidId, format_id, parse_id
from mailweir.contracts.lifecycle import State
from mailweir.mail.address import InvalidAddress, canonical
from mailweir.plumbing.telemetry import mask_address

HERE = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

MAX_FORM = 8192  # bytes; no form of ours is larger
LONGEST_PAUSE = 30 * 1440  # minutes

Page = Callable[[Request], Awaitable[Response]]


class Pages:
    """Routes of the console."""

    def __init__(self, reader: Reader, operator: Operator, sessions: Sessions) -> None:
        self._reader = reader
        self._operator = operator
        self._sessions = sessions
        self._env = Environment(
            loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined
        )
        self._env.filters["json"] = lambda data: msgspec.json.format(
            msgspec.json.encode(data)
        ).decode()
        self._env.filters["time"] = _time
        self._env.filters["id"] = format_id
        self._env.filters["mask"] = mask_address
        self._env.filters["age"] = _age

    def routes(self) -> list[BaseRoute]:
        """To be mounted by the web process."""
        guard = self._guarded
        return [
            Route("/", guard(self.overview)),
            Route("/login", self.login, methods=["GET", "POST"]),
            Route("/logout", guard(self.logout), methods=["POST"]),
            Route("/messages", guard(self.messages)),
            Route("/jobs/{job}", guard(self.job)),
            Route("/paths", guard(self.paths)),
            Route("/policy", guard(self.policy)),
            Route("/pauses", guard(self.pauses)),
            Route("/pause", guard(self.pause), methods=["POST"]),
            Route("/resume", guard(self.resume), methods=["POST"]),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ]

    # --- pages

    async def overview(self, request: Request) -> Response:
        """What is going on now; refreshes itself."""
        status = await run_in_threadpool(self._reader.status)
        queues = await run_in_threadpool(self._reader.queues)
        pauses = await run_in_threadpool(self._operator.overrides)
        return self._page(request, "overview.html", status=status, queues=queues, pauses=pauses)

    async def messages(self, request: Request) -> Response:
        """Search by recipient, campaign, state or id."""
        query = request.query_params
        recipient, error = query.get("recipient", "").strip(), ""
        jobs: list[Any] = []
        try:
            if query.get("id"):
                number = parse_id(query["id"])
                one = await run_in_threadpool(self._reader.spool.job, number)
                jobs = [one] if one else await run_in_threadpool(self._reader.spool.jobs_of, number)
            else:
                jobs = await run_in_threadpool(
                    lambda: self._reader.spool.search(
                        recipient=canonical(recipient) if recipient else None,
                        campaign=query.get("campaign") or None,
                        state=State(query["state"]) if query.get("state") in set(State) else None,
                        limit=100,
                    )
                )
        except InvalidId as bad:
            error = f"not an id: {bad}"
        except InvalidAddress as bad:
            error = f"not an address: {bad}"
        return self._page(request, "messages.html", jobs=jobs, query=query, error=error)

    async def job(self, request: Request) -> Response:
        """One job from accept to its end."""
        try:
            number = parse_id(request.path_params["job"])
        except InvalidId:
            return self._page(request, "missing.html", status_code=404, what="job")
        job = await run_in_threadpool(self._reader.spool.job, number)
        if job is None:
            return self._page(request, "missing.html", status_code=404, what="job")
        trace = await run_in_threadpool(self._reader.trace, job)
        return self._page(request, "job.html", trace=trace)

    async def paths(self, request: Request) -> Response:
        """Scores, weights, caps, breakers per path, with reasons."""
        rows = await run_in_threadpool(self._reader.paths)
        return self._page(request, "paths.html", paths=rows)

    async def policy(self, request: Request) -> Response:
        """The policy in force and its history."""
        history, text = await run_in_threadpool(self._reader.policy)
        return self._page(request, "policy.html", history=history, text=text)

    # --- actions

    async def pauses(self, request: Request) -> Response:
        """What is paused, and the form for more: a page that does not refresh what is being typed."""
        return await self._pauses(request, {}, "")

    async def pause(self, request: Request) -> Response:
        """Pause a bucket, pool, source, provider or tenant, with a reason and an end."""
        form = await _form(request)
        minutes, reason = form.get("minutes", ""), form.get("reason", "").strip()
        if not (minutes.isdecimal() and 0 < float(minutes) <= LONGEST_PAUSE):
            return await self._pauses(request, form, f"minutes: 1 to {LONGEST_PAUSE}")
        if not reason:
            return await self._pauses(request, form, "say why: others will ask")
        seconds = float(minutes) * 60
        try:
            await run_in_threadpool(
                self._operator.pause, form.get("subject", "").strip(), seconds, "console", reason
            )
        except BadSubject as bad:
            return await self._pauses(request, form, str(bad))
        return RedirectResponse("/pauses", 303)

    async def resume(self, request: Request) -> Response:
        """End a pause."""
        form = await _form(request)
        try:
            await run_in_threadpool(self._operator.resume, form.get("subject", ""), "console")
        except BadSubject as bad:
            return await self._pauses(request, {}, str(bad))
        return RedirectResponse("/pauses", 303)

    async def _pauses(self, request: Request, wish: dict[str, str], error: str) -> Response:
        pauses = await run_in_threadpool(self._operator.overrides)
        status = 422 if error else 200
        return self._page(
            request, "pauses.html", status_code=status, pauses=pauses, wish=wish, error=error
        )

    # --- who is there

    async def login(self, request: Request) -> Response:
        """Ask for the password."""
        error = ""
        if request.method == "POST":
            form = await _form(request)
            if self._sessions.locked():
                error = "too many wrong passwords; wait five minutes"
            elif self._sessions.check_password(form.get("password") or ""):
                answer = RedirectResponse("/", 303)
                answer.set_cookie(
                    COOKIE,
                    self._sessions.new(),
                    httponly=True,
                    samesite="strict",
                    secure=request.url.scheme == "https",
                )
                return answer
            else:
                error = "wrong password"
        html = self._env.get_template("login.html").render(error=error)
        return HTMLResponse(html, 403 if error else 200, HEADERS)

    async def logout(self, _: Request) -> Response:
        """Forget the session."""
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE)
        return answer

    def _guarded(self, page: Page) -> Page:
        async def guarded(request: Request) -> Response:
            cookie = request.cookies.get(COOKIE)
            if cookie is None or not self._sessions.valid(cookie):
                return RedirectResponse("/login", 303)
            if request.method == "POST":
                form = await _form(request)
                if not self._sessions.csrf_valid(cookie, form.get("csrf") or ""):
                    return self._page(request, "missing.html", status_code=403, what="permission")
            return await page(request)

        return guarded

    def _page(
        self, request: Request, template: str, *, status_code: int = 200, **values: Any
    ) -> Response:
        csrf = self._sessions.csrf(request.cookies[COOKIE])
        html = self._env.get_template(template).render(
            **values, csrf=csrf, here=request.url.path, now=self._reader.now()
        )
        return HTMLResponse(html, status_code, HEADERS)


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form of ours (application/x-www-form-urlencoded)."""
    body = await request.body()  # kept by the request: the guard and the page both read it
    return dict(parse_qsl(body[:MAX_FORM].decode("utf-8", "replace")))


def _time(at: float | None) -> str:
    if at is None:
        return ""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} s"
