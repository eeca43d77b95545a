"""A campaign of large mails: a worker holds no more of it at once than its setting says."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from mailweir.contracts.ids import new_ids
from mailweir.contracts.job import Bucket, Content, ContentKind, JobMeta, NewJob, NewMessage
from mailweir.spool.store import Spool
from tests.acceptance.house import House, house

MIB = 1024 * 1024
JOBS = 150
EACH = 3 * MIB
HELD = 24 * MIB
# stored bytes, their composed mail, and what the socket and the allocator keep of them
LESS_THAN = 4 * HELD
WORKER = "run worker --queues marketing"


def peak(home: House) -> int:
    """Bytes of the worker's largest resident size."""
    status = Path(f"/proc/{home.pids(WORKER)[0]}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def campaign(home: House) -> None:
    """Commit the jobs as a door would, each with a mail of its own."""
    database = home.database()
    spool = Spool(database)
    line = b"x" * 70 + b"\r\n"
    for number in range(JOBS):
        job, content, message = new_ids(3)
        body = b"Subject: %d\r\n\r\n" % number + line * (EACH // len(line))
        spool.accept(
            [
                NewMessage(
                    message,
                    "default",
                    Bucket.BULK,
                    5,
                    Content(content, ContentKind.MIME, body, sha256(body).digest()),
                    JobMeta(sending_domain="acme.example"),
                    (NewJob(job, f"user{number}@gmail.com", "a@acme.example", "gmail"),),
                    0.0,
                    None,
                )
            ]
        )
    database.close()


def test_memory_of_large_mail(tmp_path: Path) -> None:
    with house(tmp_path, env={"MAILWEIR_WORKER__HELD_BYTES": str(HELD)}) as home:
        home.send(["a@gmail.com"], "bulk")  # lazily loaded code does not count
        home.wait_ended(1)
        before = peak(home)
        campaign(home)
        assert home.wait_ended(1 + JOBS, longest=240) == {"sent": 1 + JOBS}
        grown = peak(home) - before
        print(f"the worker grew by {grown / MIB:.0f} MiB at most")
        assert grown < LESS_THAN, f"{grown / MIB:.0f} MiB"
