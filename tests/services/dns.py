"""A DNS server on loopback for tests: answers from a table, like a validating resolver would."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

Records = dict[tuple[str, str], "tuple[int, list[str]] | str"]
"""(name, kind) -> (TTL, records), or ``SERVFAIL``."""


class Dns(asyncio.DatagramProtocol):
    """``async with Dns(records, signed={"example.test"}) as server``.

    Answers about ``signed`` zones carry the AD bit where the question asks for it, as a validating
    resolver's do (RFC 6840 5.8). Counts questions; drops those for names in ``silent``.
    """

    def __init__(
        self,
        records: Records,
        *,
        signed: set[str] | None = None,
        silent: frozenset[str] = frozenset({"silent.test"}),
    ) -> None:
        self.records = records
        self.signed = signed or set()
        self.silent = silent
        self.asked: list[str] = []

    async def __aenter__(self) -> Dns:
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", 0)
        )
        self.address = f"127.0.0.1:{self._transport.get_extra_info('sockname')[1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._transport.close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append(f"{kind} {name}")
        if name in self.silent:
            return
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        wants = query.flags & dns.flags.AD or query.ednsflags & dns.flags.DO
        if wants and any(name == zone or name.endswith(f".{zone}") for zone in self.signed):
            answer.flags |= dns.flags.AD
        found = self.records.get((name, kind))
        if found == "SERVFAIL":
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif isinstance(found, tuple):
            answer.answer.append(
                dns.rrset.from_text_list(question.name, found[0], "IN", kind, found[1])
            )
        elif not any(known == name for known, _ in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self._transport.sendto(answer.to_wire(max_size=65535), addr)
