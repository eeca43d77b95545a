"""One suite over every way to reach Redis: unix socket, TCP with a password, TLS with verification."""

from __future__ import annotations

import datetime
import ipaddress
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mailweir.contracts.ids import new_ids
from mailweir.contracts.job import Bucket
from mailweir.contracts.route import Chunk
from mailweir.plumbing import keys
from mailweir.plumbing import redis as state
from mailweir.plumbing.broker import all_queues, broker_url
from mailweir.plumbing.celery import make_app
from mailweir.plumbing.publisher import Publisher, PublishFailed
from mailweir.plumbing.settings import Settings
from mailweir.plumbing.transport import Transport
from simulator.ports import free_port
from tests.services.needs import missing

PASSWORD = "p%40ss%2Fword"


def certificate(folder: Path) -> None:
    """A self-signed certificate for 127.0.0.1, valid for an hour."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "crt.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


@pytest.fixture(params=["unix", "tcp", "tls"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of database 0 of a server reached that way."""
    if request.param == "unix":
        request.getfixturevalue("redis_clean")
        yield str(request.getfixturevalue("redis_url"))
        return
    try:
        binary = state.find_server(Settings(data=tmp_path))
    except state.ServerMissing as error:
        missing("Redis", str(error))
    port = free_port()
    where = ["--port", str(port), "--requirepass", "p@ss/word"]
    made = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
    if request.param == "tls":
        certificate(tmp_path)
        where = [
            *("--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no"),
            *("--tls-cert-file", str(tmp_path / "crt.pem")),
            *("--tls-key-file", str(tmp_path / "key.pem")),
        ]
        made = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={tmp_path / 'crt.pem'}"
    process = subprocess.Popen(
        [str(binary), *where, "--save", "", "--bind", "127.0.0.1", "--dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        end = time.monotonic() + 20
        while True:
            try:
                with redis.Redis.from_url(made) as client:
                    client.ping()
                break
            except redis.RedisError:
                if process.poll() is not None and request.param == "tls":
                    missing("a Redis server with TLS", "apt-get install redis-server")
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
        yield made
    finally:
        process.kill()
        process.communicate()


def test_state_and_broker(url: str, tmp_path: Path) -> None:
    settings = Settings.model_validate({"data": tmp_path, "redis": {"url": url}})
    client = state.connect(settings)
    state.check_server(client)
    state.begin_epoch(client, "e")
    publisher = Publisher(settings)
    publisher.publish([Chunk(id, Bucket.BULK, "bulk", "s", (1,)) for id in new_ids(3)])
    assert publisher.depths(all_queues(settings))["bulk"] == 3
    app = make_app(settings)
    with app.connection_for_read() as connection:
        assert type(connection.transport) is Transport
        queue = app.amqp.queues["bulk"](connection.default_channel)
        first, second = queue.get(), queue.get()
        assert publisher.unacked() == 2
        first.ack()
        second.reject(requeue=True)
        assert publisher.unacked() == 0
    assert publisher.depths(["bulk"]) == {"bulk": 2}
    # state and broker live in two databases
    assert client.keys() == [keys.EPOCH.encode()]
    publisher.close()
    client.close()


@pytest.mark.parametrize("url", ["tls"], indirect=True)
def test_an_unknown_certificate_is_refused(url: str, tmp_path: Path) -> None:
    bare = url.partition("?")[0]
    settings = Settings.model_validate({"data": tmp_path, "redis": {"url": bare}})
    assert "ssl_cert_reqs=required" in broker_url(settings)
    publisher = Publisher(settings)
    with pytest.raises(PublishFailed):
        publisher.publish([Chunk(1, Bucket.BULK, "bulk", "s", (1,))])
    publisher.close()
