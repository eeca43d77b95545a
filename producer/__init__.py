"""Where mail comes in: the client that services install, and the doors behind it.

Half of this package is the client (``client``, ``aclient``, ``broker``, ``wire``, ``message``, ``errors``): it
imports only its own half and ``mailweir.contracts``, and ships as a wheel of its own. The other half is the
house's side: ``doors`` (HTTP, SMTP, ingress queue), ``policy`` (every check, pure), and ``accept``, the one
way into the spool behind all doors.
"""
