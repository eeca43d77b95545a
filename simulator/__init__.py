"""Mailbox providers on loopback that misbehave on command, for demo, drill, tests and benchmarks.

``profiles`` says how each provider behaves by default, ``behaviour`` decides every reply (pure),
``smtp`` speaks, ``witness`` writes down what arrived before it is acknowledged, ``control`` takes
commands while it runs. It knows nothing of Mailweir's insides: what it records is evidence.
"""
