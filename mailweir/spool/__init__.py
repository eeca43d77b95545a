"""The job store: where every live job is, in SQL, until its end. The truth; the broker is a hint.

``schema`` names the tables (all of Mailweir's, one metadata for Alembic), ``statements`` every
statement, ``store`` the operations in the order a job meets them: accept, flows, claim, settle, take,
renew, outcomes, reconcile, cancel, prune. One suite (``tests/contract/spool``) runs over SQLite and
PostgreSQL. Synchronous: asyncio callers give it a thread of its own.
"""
