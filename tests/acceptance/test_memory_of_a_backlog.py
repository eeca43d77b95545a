"""200,000 waiting jobs are rows: router and workers stay as small as they were."""

from __future__ import annotations

from pathlib import Path

from mailweir.contracts.ids import new_ids
from mailweir.contracts.job import Bucket, Content, ContentKind, JobMeta, NewJob, NewMessage
from mailweir.spool.store import Spool
from tests.acceptance.house import POLICY, House, house

JOBS = 200_000
PER_MESSAGE = 500
LESS_THAN = 50 * 1024  # KiB
SLOW = POLICY.replace("gmail: {rate: 60000/min", "gmail: {rate: 60/min")
PROCESSES = (
    "run router --buckets marketing",
    "run router --buckets transactional",
    "run worker --queues marketing",
    "run worker --queues transactional",
)


def resident(pids: dict[str, int]) -> dict[str, int]:
    """KiB of resident memory by process."""
    found = {}
    for name, pid in pids.items():
        status = Path(f"/proc/{pid}/status").read_text()
        found[name] = int(status.partition("VmRSS:")[2].split()[0])
    return found


def backlog(home: House) -> None:
    """Commit the jobs as a door would, many to a message."""
    database = home.database()
    spool = Spool(database)
    body = b"Subject: s\r\n\r\n" + b"x" * 1000
    for start in range(0, JOBS, PER_MESSAGE):
        ids = new_ids(PER_MESSAGE + 2)
        jobs = tuple(
            NewJob(ids[i], f"user{start + i}@gmail.com", "a@acme.example", "gmail")
            for i in range(PER_MESSAGE)
        )
        content = Content(ids[-1], ContentKind.MIME, body, b"0" * 32)
        meta = JobMeta(sending_domain="acme.example")
        message = NewMessage(ids[-2], "default", Bucket.BULK, 5, content, meta, jobs, 0.0, None)
        spool.accept([message])
    database.close()


def test_memory_of_a_backlog(tmp_path: Path) -> None:
    with house(tmp_path, policy=SLOW) as home:
        # once through every part, so that lazily loaded code does not count
        home.send(["a@gmail.com"], "bulk")
        home.send(["b@gmail.com"])
        home.wait_ended(2)
        pids = {name: home.pids(name)[0] for name in PROCESSES}
        before = resident(pids)
        most = dict(before)

        def sent(mails: int) -> bool:
            for name, kib in resident(pids).items():
                most[name] = max(most[name], kib)
            return len(home.witness()) >= mails

        backlog(home)
        home.wait("mail in spite of the backlog", lambda: sent(20))
        (job,) = home.send(["c@outlook.com"])
        home.wait("a transactional mail past the backlog", lambda: home.state_of(job) == "sent")
        home.wait("more of the backlog", lambda: sent(60))
        grown = {name: most[name] - before[name] for name in PROCESSES}
        print(f"grown by KiB: {grown}")
        assert all(kib < LESS_THAN for kib in grown.values()), grown
        assert home.states()["sent"] < JOBS / 2  # they still wait
