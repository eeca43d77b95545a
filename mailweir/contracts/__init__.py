"""The values packages meet on: job, route, policy, snapshot, event, lifecycle.

Plain immutable records (``msgspec.Struct``), no I/O, no clock, no chance. They are also what the
client wheel ships, so nothing here may need more than ``msgspec``.
"""
