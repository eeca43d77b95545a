"""Puts the rooms together: which objects each process is made of. One file a process, since a process
imports only what it runs."""
