"""The router: decides each job's way before it enters a delivery queue, and again at every attempt.

``loop`` turns for ever; ``dispatch`` is the story of one batch: which flows may go, claim, ask
suppression and the recipient limit, decide (``policy``, pure), settle in the spool, publish chunks.
``window`` says how much a bucket queue may hold, ``reconciler`` frees what was lost on the way,
``snapshots`` and ``fast`` read what reputation and workers say of paths, ``recipients`` keeps the
per-recipient limit.
"""
