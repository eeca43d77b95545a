"""One request in the asyncio pool: accepted, run, limited in time, answered or cancelled.

The contract, from ``celery.worker.request`` (5.7): ``accept_callback`` when a slot is really taken; then
exactly one of ``callback`` with ``(failed, value, seconds)``, ``timeout_callback`` for the hard limit, or
nothing at all when the request itself had us cancelled (its message then goes back, or was revoked).
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import structlog
from billiard.einfo import ExceptionInfo
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

log = structlog.get_logger(__name__)

_request: ContextVar[Mapping[str, Any] | None] = ContextVar("mailweir_request", default=None)


def current_request() -> Mapping[str, Any]:
    """The headers and delivery info of the message the running task serves.

    Celery's own ``self.request`` is kept per thread, so it cannot tell tasks of one loop apart. Raises
    :class:`LookupError` outside a task.
    """
    request = _request.get()
    if request is None:
        raise LookupError("no task runs here")
    return request


class PoolJob:
    """A request on its way through the pool. Celery keeps a weak reference and calls ``terminate``."""

    def __init__(
        self,
        *,
        token: int,
        app: Any,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        callback: Callable[[tuple[int, Any, float]], None],
        accept_callback: Callable[[int, float], None],
        timeout_callback: Callable[[bool, float], None],
        soft: float | None,
        hard: float | None,
    ) -> None:
        self.token = token
        self.task: asyncio.Task[None] | None = None
        self._app = app
        self._target = target
        self._args = args
        self._callback = callback
        self._accepted = accept_callback
        self._timed_out = timeout_callback
        self._soft = soft
        self._hard = hard
        self._silent = False
        self._cancelled = False
        self._soft_hit = False

    def terminate(self, signal: object = None) -> None:
        """Nothing: a started job is ended by ``terminate_job``, a waiting one when it is accepted."""

    def stop(self) -> None:
        """Cancel without any answer (loop thread): the request has been told its end already."""
        self._silent = True
        self.cancel()

    def cancel(self) -> None:
        """Cancel (loop thread). Who ends in order nevertheless is answered; else the message goes back."""
        self._cancelled = True
        if self.task is not None:
            self.task.cancel()

    async def run(self) -> None:
        """The whole life of the job in its slot."""
        self._accepted(self.token, time.monotonic())
        began = time.monotonic()
        limits = self._arm()
        try:
            try:
                answer = (0, await self._work(), time.monotonic() - began)
            finally:
                for handle in limits:
                    handle.cancel()
        except asyncio.CancelledError:
            if self._cancelled:
                return
            answer = self._failed(
                SoftTimeLimitExceeded(self._soft) if self._soft_hit else None, began
            )
        except (Reject, Ignore, Retry):
            answer = (1, ExceptionInfo(internal=True), time.monotonic() - began)
        except Exception as error:
            answer = self._failed(error, began)
        if not self._silent:
            self._callback(answer)

    async def _work(self) -> Any:
        name, _, request = self._args[:3]
        task = self._app.tasks[name]
        if inspect.iscoroutinefunction(task.run):
            _request.set(request)
            return repr(await task.run(*request["args"], **request["kwargs"]))[:200]
        loop = asyncio.get_running_loop()
        # Celery's tracer runs a plain function, and answers with the same triple
        failed, value, _ = await loop.run_in_executor(None, self._target, *self._args)
        if failed:
            raise _TracedError(value)
        return value

    def _failed(self, error: Exception | None, began: float) -> tuple[int, Any, float]:
        """The answer for a failure, which is also logged here: nobody else sees it."""
        if isinstance(error, _TracedError):
            return (1, error.info, time.monotonic() - began)
        try:
            raise error or asyncio.CancelledError("the task cancelled itself")
        except BaseException as raised:
            log.error("task_failed", task=self._args[0], id=self._args[1], exc_info=raised)
            return (1, ExceptionInfo(), time.monotonic() - began)

    def _arm(self) -> list[asyncio.TimerHandle]:
        loop = asyncio.get_running_loop()
        armed = []
        if self._soft:
            armed.append(loop.call_later(self._soft, self._on_soft))
        if self._hard:
            armed.append(loop.call_later(self._hard, self._on_hard))
        return armed

    def _on_soft(self) -> None:
        """Cancel once: the task may clean up and even succeed; else it fails with the soft limit."""
        self._soft_hit = True
        self._timed_out(True, self._soft or 0.0)
        if self.task is not None:
            self.task.cancel()

    def _on_hard(self) -> None:
        self._timed_out(False, self._hard or 0.0)
        self.stop()


class _TracedError(Exception):
    """A plain function's failure, as Celery's tracer described it."""

    def __init__(self, info: Any) -> None:
        super().__init__()
        self.info = info
