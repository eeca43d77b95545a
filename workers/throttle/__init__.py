"""Throttles: how much may go now, exactly, over all workers.

One Lua call asks every layer and takes from all or from none (``take.lua``), an unused grant goes back
(``give_back.lua``), and what an attempt said of its path is booked (``book.lua``, the only writer of a
path's state). ``layers`` says which limits bind a job, ``shell`` carries asks to Redis, ``twin`` is the
same machine in memory: the scripts' oracle in tests, and what a worker falls back to while Redis is
away, with its bounded share.
"""
