"""Mailweir's ground floor: what every room shares and nobody owns.

Newcomer, start here. ``contracts`` are the values that packages hand to one another; ``mail`` is what
any postmaster knows, as pure functions; ``spool`` is the job store (SQL), the only truth about a job;
``plumbing`` is settings, clock, keys, Redis, database, Celery, telemetry. Nothing here imports
``producer``, ``router``, ``workers``, ``reputation`` or anything else of ours.
"""
