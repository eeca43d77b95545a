"""Decisions of the workers: what becomes of a job, when it is tried again, how much a path may carry.

Everything here is pure: state in, value out; ``now`` and chance are arguments, nobody is asked and
nothing is written. ``outcome`` decides one attempt, ``retry`` spaces attempts, ``tokens`` is the
arithmetic of throttles, ``breaker`` and ``adaptive`` move a path's state after each attempt. The Lua
scripts of ``workers.throttle`` do the same arithmetic; one table of cases holds both to it.
"""
