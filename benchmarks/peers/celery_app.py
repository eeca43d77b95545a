"""The peer "Celery prefork with smtplib": finished bytes in the task, one mail a task.

Started by ``benchmarks.peers.celery``; PEER_REDIS, PEER_SINK and PEER_CACHED come from the environment.
"""

from __future__ import annotations

import base64
import os
import smtplib
import sys

from celery import Celery

from benchmarks import mails

PORT = int(os.environ["PEER_SINK"])
CACHED = os.environ["PEER_CACHED"] == "1"
app = Celery("peer", broker=f"redis+socket://{os.environ['PEER_REDIS']}")
app.conf.worker_prefetch_multiplier = 4
app.conf.task_ignore_result = True
_connection: list[smtplib.SMTP] = []


def _open() -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", PORT, local_hostname="peer.example.test", timeout=30)


@app.task(name="peer.send")  # type: ignore[untyped-decorator]  # Celery ships no types
def send(recipient: str, body: str) -> None:
    """Deliver one mail."""
    data = base64.b64decode(body)
    if not CACHED:
        with _open() as connection:
            connection.sendmail(mails.SENDER, [recipient], data)
        return
    if not _connection:
        _connection.append(_open())
    _connection[0].sendmail(mails.SENDER, [recipient], data)


def main() -> None:
    """Enqueue as many mails as the first argument says."""
    body = base64.b64encode(mails.finished()).decode()
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(sys.argv[1])):
        send.delay(mails.recipient(number), body)
    print("done", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
