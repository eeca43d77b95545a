"""Speed, judged by ratio against peers in the same run; each module is a command (``python -m``)."""
