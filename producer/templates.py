"""Stored templates of a tenant: compiled once, used by any number of messages (P6).

A template never changes; the same text stored again is the same template. Messages that use one share
its id as their content's id, so the body stands in the spool once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from hashlib import sha256

from sqlalchemy import insert, select

from mailweir.contracts.ids import format_id, new_id, parse_id
from mailweir.contracts.submit import TemplateData, TemplateStored
from mailweir.mail.skeleton import decode
from mailweir.plumbing.database import Database
from mailweir.spool.schema import templates
from producer.policy.build import Stored, compile_data
from producer.policy.fields import label

_CACHE = 64  # templates kept decoded per process


class Templates:
    """The templates of all tenants, each seen by its own tenant only. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cache: OrderedDict[tuple[str, int], Stored] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, tenant: str, data: TemplateData, now: float) -> TemplateStored:
        """Compile and store. Raises :class:`producer.policy.refusal.Invalid`, DatabaseUnavailable."""
        name = label("template.name", data.name)
        skeleton = compile_data(data)
        body = skeleton.encode()
        digest = sha256(body).digest()
        with self._database.write() as conn:
            found = conn.execute(
                select(templates.c.id).where(
                    templates.c.tenant == tenant, templates.c.sha256 == digest
                )
            ).scalar()
            if found is None:
                found = new_id()
                conn.execute(
                    insert(templates).values(
                        id=found,
                        tenant=tenant,
                        name=name,
                        body=body,
                        sha256=digest,
                        created_at=now,
                    )
                )
        return TemplateStored(format_id(int(found)), tuple(sorted(skeleton.names)))

    def cached(self, tenant: str, template: str) -> bool:
        """Whether :meth:`get` would answer without the database."""
        try:
            return (tenant, parse_id(template)) in self._cache
        except ValueError:
            return True

    def get(self, tenant: str, template: str) -> Stored | None:
        """A template by its id, if it is this tenant's. Raises DatabaseUnavailable."""
        try:
            key = (tenant, parse_id(template))
        except ValueError:
            return None
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        with self._database.read() as conn:
            body = conn.execute(
                select(templates.c.body).where(
                    templates.c.id == key[1], templates.c.tenant == tenant
                )
            ).scalar()
        if body is None:
            return None
        stored = Stored(key[1], bytes(body), decode(bytes(body)))
        with self._lock:
            self._cache[key] = stored
            while len(self._cache) > _CACHE:
                self._cache.popitem(last=False)
        return stored
