"""Feedback comes in: webhooks (``http``, one file a relay in ``providers``), bounce and complaint mail
(``listener``), all through ``record``, which answers after the commit."""
