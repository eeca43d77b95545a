"""The accept process: rows through ``Spool.accept``, as a door of ours writes them.

    python -m benchmarks.feed finished|merged|shared COUNT [--rate N]

Says ``ready`` when everything is loaded, begins at the first line on its input, prints one line of JSON when
all is committed, and stays until its input ends (so that its CPU time can be read). ``finished``: a message
of its own for every job; ``merged``: one template and a hundred recipients with values per message;
``shared``: one finished message for a hundred recipients. A commit has 100 jobs; with ``--rate`` one, at its
appointed time, transactional.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator

from benchmarks import mails
from mailweir.contracts.ids import format_id, new_id, new_ids
from mailweir.contracts.job import Bucket, Content, ContentKind, JobMeta, NewJob, NewMessage
from mailweir.mail.providers import lane_of
from mailweir.plumbing.bell import Bell
from mailweir.plumbing.redis import connect
from mailweir.plumbing.settings import load
from mailweir.spool.store import Spool, open_spool

COMMIT = 100


def _message(
    kind: ContentKind, body: bytes, jobs: tuple[NewJob, ...], bucket: Bucket, priority: int
) -> NewMessage:
    number = new_id()
    digest = hashlib.sha256(body).digest()
    name = format_id(number)
    prepend = f"Message-ID: <{name}@s.example.test>\r\nDate: Sun, 06 Sep 2026 08:00:00 +0000\r\n"
    meta = JobMeta(
        tags=("news",), campaign="autumn", sending_domain="s.example.test", prepend=prepend
    )
    return NewMessage(
        number, "default", bucket, priority, Content(new_id(), kind, body, digest), meta, jobs,
        time.time(), None, f"bench-{name}", digest,
    )  # fmt: skip


def finished(first: int, count: int, body: bytes, prefix: str, bucket: Bucket) -> list[NewMessage]:
    """A message of its own for every recipient; ``prefix`` stands before the recipient's domain."""
    priority = 1 if bucket is Bucket.TRANSACTIONAL else 5
    out = []
    for number, job_id in zip(range(first, first + count), new_ids(count), strict=True):
        address = mails.recipient(number).replace("@", f"@{prefix}")
        job = NewJob(job_id, address, mails.SENDER, lane_of(address.rpartition("@")[2]))
        own = body[:-12] + b"%010d\r\n" % number
        out.append(_message(ContentKind.MIME, own, (job,), bucket, priority))
    return out


def many(first: int, count: int, body: bytes, kind: ContentKind) -> list[NewMessage]:
    """One message for all these recipients."""
    jobs = []
    for number, job_id in zip(range(first, first + count), new_ids(count), strict=True):
        address = mails.recipient(number)
        lane = lane_of(address.rpartition("@")[2])
        values = {"name": f"Jane {number}"} if kind is ContentKind.SKELETON else None
        jobs.append(NewJob(job_id, address, mails.SENDER, lane, values, f"To: {address}\r\n"))
    return [_message(kind, body, tuple(jobs), Bucket.BULK, 5)]


def batches(mode: str, total: int) -> Iterator[list[NewMessage]]:
    """Everything, a commit at a time."""
    body = mails.template() if mode == "merged" else mails.finished()
    for first in range(0, total, COMMIT):
        count = min(COMMIT, total - first)
        if mode == "finished":
            yield finished(first, count, body, "", Bucket.BULK)
        else:
            kind = ContentKind.SKELETON if mode == "merged" else ContentKind.MIME
            yield many(first, count, body, kind)


def steadily(spool: Spool, bell: Bell, total: int, rate: float) -> list[tuple[str, float, float]]:
    """One commit a message at appointed times: recipient, appointed and committed time."""
    body = mails.finished()
    began = time.time()
    out = []
    for number in range(total):
        due = began + number / rate
        wait = due - time.time()
        if wait > 0:
            time.sleep(wait)
        messages = finished(number, 1, body, "tx", Bucket.TRANSACTIONAL)
        spool.accept(messages)
        bell.ring()
        out.append((messages[0].jobs[0].recipient, due, time.time()))
    return out


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=("finished", "merged", "shared"))
    parser.add_argument("count", type=int)
    parser.add_argument("--rate", type=float, help="transactional, one a commit")
    args = parser.parse_args()
    settings = load()
    spool = open_spool(settings)
    bell = Bell(connect(settings)) if args.rate else None
    with spool.database.read() as conn:
        conn.exec_driver_sql("SELECT count(*) FROM policies").scalar()
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.time()
    accepted: list[tuple[str, float, float]] = []
    if bell is not None:
        accepted = steadily(spool, bell, args.count, args.rate)
    else:
        for batch in batches(args.mode, args.count):
            spool.accept(batch)
    print(json.dumps({"began": began, "ended": time.time(), "accepted": accepted}), flush=True)
    sys.stdin.read()
    if bell is not None:
        bell.close()
    spool.database.close()


if __name__ == "__main__":
    main()
