"""Runs the peers: enqueueing beside delivery, first message in to last 250, CPU of all but the sink."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.machine import Meter, wait_quiet
from benchmarks.rows import Failed, Figures, wait_count
from benchmarks.servers import redis_server
from benchmarks.sinks import Missing, SmtpSink
from simulator.ports import free_port

HERE = Path(__file__).parent
Started = dict[str, subprocess.Popen[bytes]]


@contextmanager
def _children() -> Iterator[Started]:
    started: Started = {}
    try:
        yield started
    finally:
        for process in started.values():
            if process.stdin is not None:
                process.stdin.close()
            process.terminate()
        for process in started.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    if line != b"ready\n":
        raise Failed(f"a peer's process did not start: {line!r}")


def _measure(
    name: str,
    messages: int,
    sink: SmtpSink,
    roots: dict[str, int],
    go: Callable[[], None],
    promise: str,
) -> Figures:
    wait_quiet(roots, 0.35)
    meter = Meter(roots)
    began = time.time()
    go()
    ended = wait_count(sink, messages, lambda: None)
    wait_quiet(roots, 0.35)
    cpu = meter.stop()
    if sink.count() != messages:
        raise Failed(f"{name}: the sink has {sink.count()} of {messages}")
    return Figures(
        name,
        messages,
        ended - began,
        {part: seconds * 1000 / messages for part, seconds in cpu.items()},
        {part: size / 2**20 for part, size in meter.peak.items()},
        promise,
    )


def celery(messages: int, *, cached: bool, concurrency: int = 8) -> Figures:
    """Celery prefork + smtplib, finished bytes as base64 in the task, acknowledged early (the default)."""
    with (
        tempfile.TemporaryDirectory(prefix="mw-peer-") as name,
        redis_server(Path(name)) as server,
        _children() as children,
    ):
        folder = Path(name)
        sink = SmtpSink(folder)
        try:
            env = os.environ | {
                "PEER_REDIS": server.url,
                "PEER_SINK": str(sink.port),
                "PEER_CACHED": str(int(cached)),
            }
            with (folder / "worker.log").open("wb") as log:
                children["worker"] = subprocess.Popen(
                    [sys.executable, "-m", "celery", "-A", "benchmarks.peers.celery_app", "worker",
                     "-P", "prefork", "-c", str(concurrency), "-l", "INFO", "--without-gossip",
                     "--without-mingle"],
                    env=env, stdout=log, stderr=log,
                )  # fmt: skip
            end = time.monotonic() + 60
            while b" ready." not in (folder / "worker.log").read_bytes():
                if time.monotonic() > end:
                    raise Failed("the Celery worker did not start")
                time.sleep(0.05)
            children["producer"] = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.peers.celery_app", str(messages)],
                env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            _ready(children["producer"])
            go = children["producer"].stdin
            assert go is not None

            def start() -> None:
                go.write(b"go\n")
                go.flush()

            roots = {n: p.pid for n, p in children.items()} | {"redis": server.pid}
            how = "one cached connection a process" if cached else "a connection a message"
            return _measure(
                f"Celery prefork -c {concurrency} + smtplib, {how}", messages, sink, roots, start,
                "acknowledged before sending: a killed worker loses what it had fetched; "
                "AOF everysec: a power loss loses a second",
            )  # fmt: skip
        finally:
            sink.close()


MAIN_CF = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/maillog
maillog_file_prefixes = {folder}
myhostname = relay.example.test
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
smtp_dns_support_level = disabled
smtpd_peername_lookup = no
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_client_connection_rate_limit = 0
smtpd_client_connection_count_limit = 0
relayhost = [127.0.0.1]:{sink}
default_destination_concurrency_limit = 100
initial_destination_concurrency = 50
default_process_limit = 100
qmgr_message_active_limit = 50000
smtp_connection_cache_destinations = [127.0.0.1]:{sink}
in_flow_delay = 0
"""
MASTER_CF = """
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


def postfix(messages: int) -> Figures:
    """Postfix as relay, tuned, fed by smtp-source over 20 connections. Root only."""
    source = shutil.which("smtp-source") or "/usr/sbin/smtp-source"
    if shutil.which("postfix") is None or not Path(source).exists():
        raise Missing("Postfix (Debian: postfix)")
    if os.geteuid() != 0:
        raise Missing("root, which Postfix starts as")
    folder = Path(tempfile.mkdtemp(prefix="mw-peer-"))
    folder.chmod(0o755)
    sink = SmtpSink(folder)
    command = ["postfix", "-c", str(folder)]
    try:
        for name in ("queue", "data"):
            (folder / name).mkdir()
        os.chown(folder / "data", pwd.getpwnam("postfix").pw_uid, -1)
        port = free_port()
        (folder / "main.cf").write_text(MAIN_CF.format(folder=folder, sink=sink.port))
        (folder / "master.cf").write_text(MASTER_CF.format(port=port))
        subprocess.run([*command, "start"], check=True, capture_output=True)
        try:
            master = int((folder / "queue/pid/master.pid").read_text())
            with _children() as children:
                # the shell stays as the injector's parent, so that its CPU time can be read
                inject = [source, "-s", "20", "-m", str(messages), "-l", "10240", "-d",
                          "-f", "news@s.example.test", "-t", "user@d1.example.test", "-N",
                          f"127.0.0.1:{port}"]  # fmt: skip
                children["injector"] = subprocess.Popen(
                    ["sh", "-c", 'read go; "$@"; read end', "sh", *inject], stdin=subprocess.PIPE
                )
                go = children["injector"].stdin
                assert go is not None

                def start() -> None:
                    go.write(b"go\n")
                    go.flush()

                roots = {"postfix": master, "injector": children["injector"].pid}
                return _measure(
                    "Postfix relay, tuned", messages, sink, roots, start,
                    "queue file with fsync before 250; a mail whose dot was sent may go twice",
                )  # fmt: skip
        finally:
            subprocess.run([*command, "stop"], capture_output=True, timeout=60)
    finally:
        sink.close()
        shutil.rmtree(folder, ignore_errors=True)


def bullmq(messages: int, *, workers: int = 2, concurrency: int = 50) -> Figures:
    """BullMQ + Nodemailer, pooled connections, finished bytes as raw. Needs node, npm and a registry."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise Missing("node and npm")
    with (
        tempfile.TemporaryDirectory(prefix="mw-peer-") as name,
        redis_server(Path(name)) as server,
        _children() as children,
    ):
        folder = Path(name)
        for file in ("package.json", "worker.js", "produce.js"):
            shutil.copy(HERE / "bullmq" / file, folder / file)
        done = subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--silent"],
            cwd=folder, capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        if done.returncode:
            raise Missing(
                f"BullMQ and Nodemailer (npm install failed: {done.stderr.strip()[-200:]})"
            )
        (folder / "mail.eml").write_bytes(_eml())
        sink = SmtpSink(folder)
        try:
            env = os.environ | {
                "PEER_REDIS": server.url,
                "PEER_SINK": str(sink.port),
                "PEER_CONCURRENCY": str(concurrency),
            }
            for number in range(workers):
                children[f"worker-{number + 1}"] = subprocess.Popen(
                    ["node", "worker.js"], cwd=folder, env=env, stdout=subprocess.PIPE,
                    stdin=subprocess.PIPE,
                )  # fmt: skip
                _ready(children[f"worker-{number + 1}"])
            children["producer"] = subprocess.Popen(
                ["node", "produce.js", str(messages)], cwd=folder, env=env,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            _ready(children["producer"])
            go = children["producer"].stdin
            assert go is not None

            def start() -> None:
                go.write(b"go\n")
                go.flush()

            roots = {n: p.pid for n, p in children.items()} | {"redis": server.pid}
            return _measure(
                f"BullMQ + Nodemailer, {workers} processes, {concurrency} at once, prebuilt bytes",
                messages, sink, roots, start,
                "at least once: a stalled job runs again after 30 s, sent or not; "
                "AOF everysec: a power loss loses a second",
            )  # fmt: skip
        finally:
            sink.close()


def _eml() -> bytes:
    from benchmarks import mails

    return mails.finished()
