"""What ``mailweir send`` does: read files, submit through the client, report line by line."""
