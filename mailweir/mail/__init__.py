"""What any postmaster knows, pure: addresses, headers, MIME, replies and their meaning, mailbox providers,
delivery reports, complaints. No I/O, no clock, no settings; rules are data files in ``data``, each with
its source."""
