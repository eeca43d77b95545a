"""One attempt, from bytes to reply: ``compose`` and ``dkim`` make the mail, ``destinations`` finds the hosts,
``transport`` sends over pooled pipelined connections. It never decides what a reply means for a job."""
