"""Our channel repeats one method of kombu's and leans on three; a new kombu must be looked at again."""

from __future__ import annotations

import inspect
from importlib.metadata import version

from kombu.transport import get_transport_cls
from kombu.transport import redis as stock

from mailweir.plumbing import transport

STOCK_STEPS = (
    "self.client.parse_response(self.client.connection",
    "except self.connection_errors:",
    "self.client.connection.disconnect()",
    "rsplit(self.sep, 1)[0]",
    "self._queue_cycle.rotate(dest)",
    "self.connection._deliver(loads(bytes_to_str(item)), dest)",
    "raise Empty()",
    "self._in_poll = None",
    "self._flush_brpop_reauth()",
)


def test_kombu_still_reads_as_our_copy_does() -> None:
    assert version("kombu").startswith("5.7."), "compare Channel._brpop_read with kombu's again"
    source = inspect.getsource(stock.Channel._brpop_read)
    positions = [source.find(step) for step in STOCK_STEPS]
    assert -1 not in positions, STOCK_STEPS[positions.index(-1)]
    assert positions == sorted(positions)


def test_kombu_still_asks_for_a_client_where_we_cache_it() -> None:
    source = inspect.getsource(stock)
    assert source.count("conn_or_acquire(") > 10
    assert list(inspect.signature(stock.Channel.conn_or_acquire).parameters) == ["self", "client"]
    assert "_disconnect_pools()" in inspect.getsource(stock.Channel._after_fork)
    assert "_disconnect_pools()" in inspect.getsource(stock.Channel.close)


def test_both_aliases_are_ours_after_install() -> None:
    transport.install()
    for alias in transport.ALIASES:
        assert get_transport_cls(alias) is transport.Transport
    assert get_transport_cls("sentinel") is not transport.Transport
