"""A private OpenSMTPD: takes mail for in.test by plain DATA into a maildir.

Without TLS: Debian 12's build (6.8.0p2) cannot finish a handshake with OpenSSL 3. Postfix and Exim are
the ones that show TLS; this one shows a server that offers no PIPELINING and no CHUNKING.
"""

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
from tests.services.postfix import wait_for
from tests.services.unpacked import make_root, program

INBOX = 904
USERS = {"opensmtpd": 902, "opensmtpq": 903, "inbox": INBOX}

CONF = """
smtp max-message-size "30M"
listen on 127.0.0.1 port {port} hostname "smtpd.test"
table users {{ "@" = inbox }}
action "in" maildir "/mail" virtual <users>
match from any for domain "in.test" action "in"
"""


@dataclass
class OpenSmtpd:
    """A running OpenSMTPD."""

    port: int
    inbox: Maildir


@pytest.fixture(scope="session")
def opensmtpd() -> Iterator[OpenSmtpd]:
    """One OpenSMTPD for the session."""
    program("usr/sbin/smtpd", "OpenSMTPD")
    root = Path(tempfile.mkdtemp(prefix="mailweir-opensmtpd-"))
    process: subprocess.Popen[bytes] | None = None
    try:
        make_root(
            root,
            ["/usr/sbin/smtpd", "/usr/libexec/opensmtpd/mail.maildir", "/bin/sh"],
            USERS,
        )
        for name in ("var/spool/smtpd", "var/lib/opensmtpd/empty", "mail"):
            (root / name).mkdir(parents=True)
        (root / "var/spool/smtpd").chmod(0o711)
        os.chown(root / "mail", INBOX, INBOX)
        port = free_port()
        (root / "etc/smtpd.conf").write_text(CONF.format(port=port))
        with (root / "log").open("wb") as out:
            process = subprocess.Popen(
                ["chroot", root, "/usr/sbin/smtpd", "-F", "-d"], stdout=out, stderr=out
            )
        wait_for(port, "OpenSMTPD")
        yield OpenSmtpd(port, Maildir(root / "mail", lambda: (root / "log").read_text()))
    finally:
        if process is not None:
            process.terminate()
            process.wait(10)
        shutil.rmtree(root, ignore_errors=True)
