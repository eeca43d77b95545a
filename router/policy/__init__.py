"""Decisions of the router, pure: rules, pools, selection, fairness, shedding.

State in, value out; ``now`` and everything else a decision depends on are arguments. The shells that
read Redis and SQL and carry decisions out are ``router.dispatch`` and ``mailweir.plumbing``.
"""
