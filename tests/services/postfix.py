"""A private Postfix (MX port and submission with AUTH over STARTTLS) and Postfix' own ``smtp-sink``.

Postfix runs with configuration, queue, data and log in a folder of its own; it must be started as
root. Logins are checked by a small server of Dovecot's auth protocol below, so that no SASL database
and no further package is needed and a test can change the password while Postfix runs.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import pwd
import shutil
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from simulator.ports import free_port
from tests.services.mailbox import Maildir
from tests.services.needs import lacking, missing

USER, PASSWORD = "mailer", "pass word ü"
HOST = "localhost"  # what the certificate names
INSTALL = "apt-get install postfix"


class _AuthHandler(socketserver.StreamRequestHandler):
    """Dovecot's auth protocol, server side: PLAIN, LOGIN and CRAM-MD5
    (doc.dovecot.org, "Dovecot Authentication Protocol"), as far as Postfix speaks it."""

    server: AuthServer

    def handle(self) -> None:
        self._say("VERSION\t1\t1")
        for mech in ("PLAIN\tplaintext", "LOGIN\tplaintext", "CRAM-MD5\tdictionary"):
            self._say(f"MECH\t{mech}")
        self._say("SPID\t1\nCUID\t1\nCOOKIE\t0123456789abcdef0123456789abcdef\nDONE")
        waiting: dict[str, tuple[str, list[bytes]]] = {}
        for raw in self.rfile:
            verb, *fields = raw.decode().rstrip("\n").split("\t")
            if verb == "AUTH":
                number, mech = fields[0], fields[1]
                said: list[bytes] = []
                waiting[number] = (mech, said)
                first = next((f[5:] for f in fields[2:] if f.startswith("resp=")), None)
                if first is not None:
                    said.append(base64.b64decode(first))
                self._step(number, mech, said)
            elif verb == "CONT":
                mech, said = waiting[fields[0]]
                said.append(base64.b64decode(fields[1]))
                self._step(fields[0], mech, said)

    def _step(self, number: str, mech: str, said: list[bytes]) -> None:
        password = self.server.password
        challenge = b"<1896.697170952@mx.test>"
        ask: bytes | None = None
        good = False
        if mech == "PLAIN":
            ask = b"" if not said else None
            good = bool(said) and said[0] == f"\0{USER}\0{password}".encode()
        elif mech == "LOGIN":
            ask = (b"Username:", b"Password:", None)[len(said)]
            good = said == [USER.encode(), password.encode()]
        elif mech == "CRAM-MD5":
            ask = challenge if not said else None
            digest = hmac.new(password.encode(), challenge, hashlib.md5).hexdigest()
            good = bool(said) and said[0] == f"{USER} {digest}".encode()
        if ask is not None:
            self._say(f"CONT\t{number}\t{base64.b64encode(ask).decode()}")
        elif good:
            self.server.logins.append(mech)
            self._say(f"OK\t{number}\tuser={USER}")
        else:
            self._say(f"FAIL\t{number}\tuser={USER}")

    def _say(self, line: str) -> None:
        self.wfile.write(f"{line}\n".encode())


class AuthServer(socketserver.ThreadingTCPServer):
    """Knows one user; ``password`` may change while it runs, ``logins`` lists mechanisms used."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _AuthHandler)
        self.password = PASSWORD
        self.logins: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


@dataclass
class Postfix:
    """A running Postfix."""

    folder: Path
    port: int  # MX: takes mail for in.test and every sub-domain of it
    submission: int  # smarthost: AUTH after STARTTLS, any recipient
    ca_file: Path
    auth: AuthServer
    relay_port: int  # mail for out.test goes to 127.0.0.1 at this port

    def __post_init__(self) -> None:
        self.inbox = Maildir(self.folder / "mail" / "inbox", lambda: self.log)

    @property
    def log(self) -> str:
        """The mail log so far."""
        return (self.folder / "maillog").read_text(errors="replace")

    def arrived(self, count: int = 1, within: float = 20.0) -> list[bytes]:
        """The next ``count`` mails of the mailbox, as Postfix stored them (LF line ends)."""
        return self.inbox.arrived(count, within)


MAIN_CF = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/maillog
maillog_file_prefixes = {folder}
myhostname = mx.test
mydestination =
mynetworks =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
virtual_mailbox_domains = in.test
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = static:inbox/
virtual_mailbox_limit = 0
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
transport_maps = inline:{{ out.test=smtp:[127.0.0.1]:{relay} }}
smtp_line_length_limit = 0
smtp_dns_support_level = disabled
message_size_limit = 30000000
mailbox_size_limit = 0
smtpd_recipient_restrictions = reject_unauth_destination,
  check_recipient_access inline:{{
    {{ nobody@in.test = 550 5.1.1 no such user }}
    {{ grey@in.test = 450 4.2.0 greylisted }} }}
smtpd_client_connection_rate_limit = 0
smtpd_tls_security_level = may
smtpd_tls_cert_file = {folder}/cert.pem
smtpd_tls_key_file = {folder}/key.pem
smtpd_sasl_type = dovecot
smtpd_sasl_path = inet:127.0.0.1:{auth}
smtpd_tls_auth_only = yes
smtpd_peername_lookup = no
smtpd_delay_reject = yes
"""

MASTER_CF = """
127.0.0.1:{port} inet n - n - - smtpd
127.0.0.1:{submission} inet n - n - - smtpd
  -o smtpd_tls_security_level=encrypt
  -o smtpd_sasl_auth_enable=yes
  -o smtpd_recipient_restrictions=permit_sasl_authenticated,reject
  -o smtpd_relay_restrictions=permit_sasl_authenticated,reject
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


def make_certificate(folder: Path) -> None:
    """A self-signed certificate for ``localhost``: it is its own CA file."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30",
         "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}",
         "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip


def wait_for(port: int, what: str) -> None:
    until = time.monotonic() + 15
    while time.monotonic() < until:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as sock:
                if sock.recv(3) == b"220":
                    return
        except OSError:
            time.sleep(0.05)  # it is starting; there is no signal to wait for
    raise AssertionError(f"{what} does not answer on port {port}")


@pytest.fixture(scope="session")
def postfix() -> Iterator[Postfix]:
    """One Postfix for the session."""
    if shutil.which("postfix") is None:
        missing("Postfix", INSTALL)
    if os.geteuid() != 0:
        lacking("Postfix starts as root only; run the tests as root")
    # not below pytest's folders: they are closed to the users Postfix' daemons run as
    folder = Path(tempfile.mkdtemp(prefix="mailweir-postfix-"))
    folder.chmod(0o755)
    for name in ("queue", "data", "mail"):
        (folder / name).mkdir()
    nobody = pwd.getpwnam("nobody")
    os.chown(folder / "mail", nobody.pw_uid, nobody.pw_gid)
    os.chown(folder / "data", pwd.getpwnam("postfix").pw_uid, -1)
    make_certificate(folder)
    auth = AuthServer()
    port, submission, relay = free_port(), free_port(), free_port()
    values = {
        "folder": folder, "port": port, "submission": submission, "relay": relay,
        "auth": auth.server_address[1], "uid": nobody.pw_uid, "gid": nobody.pw_gid,
    }  # fmt: skip
    (folder / "main.cf").write_text(MAIN_CF.format(**values))
    (folder / "master.cf").write_text(MASTER_CF.format(**values))
    command = ["postfix", "-c", str(folder)]
    started = subprocess.run([*command, "start"], capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    try:
        wait_for(port, "Postfix")
        yield Postfix(folder, port, submission, folder / "cert.pem", auth, relay)
    finally:
        subprocess.run([*command, "stop"], capture_output=True, timeout=60)
        auth.shutdown()
        auth.server_close()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class SmtpSink:
    """A running smtp-sink."""

    port: int
    process: subprocess.Popen[bytes]


@pytest.fixture
def smtp_sink() -> Iterator[SmtpSink]:
    """Postfix' black hole: takes everything, quickly."""
    program = shutil.which("smtp-sink") or "/usr/sbin/smtp-sink"
    if not Path(program).exists():
        missing("smtp-sink", INSTALL)
    port = free_port()
    user = ("-u", "nobody") if os.geteuid() == 0 else ()  # only root may, and must, become another
    process = subprocess.Popen(
        [program, *user, "-m", "500", f"127.0.0.1:{port}", "200"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port, "smtp-sink")
        yield SmtpSink(port, process)
    finally:
        process.terminate()
        process.wait(10)
