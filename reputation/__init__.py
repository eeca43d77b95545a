"""Closes the loop: what happened to the mail decides where the next mail goes."""
