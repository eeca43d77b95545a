"""Pipes and wires: settings, clock, keys, Redis, database, Celery app and transport, telemetry.

Settings are built once at an entry point and handed down; nothing here reads the environment on import.
"""
