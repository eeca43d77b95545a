"""The operator's side: CLI, operator API, web pages, the embedded stack and its supervisor, the demo.

Sees every room, is seen by none. ``cli`` is the ``mailweir`` command; each file of ``commands`` is one
noun of it and imports what it needs only when it runs, so that ``mailweir classify`` starts quickly.
"""
