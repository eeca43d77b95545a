"""The journal: what was decided and done, so that nobody can alter it unnoticed (S23, N24).

``chain`` is the arithmetic (pure), ``recorder`` seals new decisions, attempts and feedback in segments,
``audit`` verifies, exports, and erases a recipient. The sealed records hold no address: the only link from
a record to a person is the job's row, so erasing that row keeps the chain valid.
"""
