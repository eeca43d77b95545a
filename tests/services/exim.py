"""A private Exim: takes mail for in.test with CHUNKING, PIPELINING and STARTTLS into a maildir."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from simulator.ports import free_port
from tests.services.mailbox import Maildir
from tests.services.postfix import make_certificate, wait_for
from tests.services.unpacked import make_root, program

USER, INBOX = 901, 904

CONF = """
primary_hostname = exim.test
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
spool_directory = /spool
log_file_path = /log/%slog
pid_file_path = /log/pid
keep_environment =
chunking_advertise_hosts = *
pipelining_advertise_hosts = *
tls_advertise_hosts = *
tls_certificate = /cert.pem
tls_privatekey = /key.pem
message_size_limit = 30M
host_lookup =
rfc1413_query_timeout = 0s
dkim_verify_signers =
acl_smtp_rcpt = rcpt
smtp_accept_max = 100
smtp_accept_queue = 0
smtp_accept_queue_per_connection = 0

begin acl
rcpt:
  deny local_parts = nobody
       message = 5.1.1 no such user
  defer local_parts = grey
       message = 4.2.0 greylisted
  accept domains = in.test
  deny message = relay not permitted

begin routers
inbox:
  driver = accept
  transport = inbox

begin transports
inbox:
  driver = appendfile
  directory = /mail
  maildir_format
  user = inbox
  group = inbox
  mode = 0644
"""


@dataclass
class Exim:
    """A running Exim."""

    port: int
    inbox: Maildir


@pytest.fixture(scope="session")
def exim() -> Iterator[Exim]:
    """One Exim for the session."""
    program("usr/sbin/exim4", "Exim")
    root = Path(tempfile.mkdtemp(prefix="mailweir-exim-"))
    process: subprocess.Popen[bytes] | None = None
    try:
        make_root(root, ["/usr/sbin/exim4"], {"Debian-exim": USER, "inbox": INBOX})
        (root / "usr/sbin/exim4").chmod(0o4755)  # its deliveries change to the mailbox's user
        for name, owner in (("mail", INBOX), ("spool", USER), ("log", USER)):
            (root / name).mkdir()
            os.chown(root / name, owner, owner)
        make_certificate(root)
        os.chown(root / "key.pem", 0, USER)
        (root / "key.pem").chmod(0o640)
        (root / "etc/exim4").mkdir()
        port = free_port()
        (root / "etc/exim4/exim4.conf").write_text(CONF.format(port=port))
        with (root / "out").open("wb") as out:
            process = subprocess.Popen(
                ["chroot", root, "/usr/sbin/exim4", "-bdf", "-q1m"], stdout=out, stderr=out
            )
        wait_for(port, "Exim")
        yield Exim(port, Maildir(root / "mail", lambda: (root / "log/mainlog").read_text()))
    finally:
        if process is not None:
            process.terminate()
            process.wait(10)
        shutil.rmtree(root, ignore_errors=True)
