"""The doors: HTTP, SMTP submission, ingress queue. Each hands over to ``producer.accept`` and no other way."""
