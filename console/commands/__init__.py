"""The nouns of the ``mailweir`` command, one file each; heavy imports wait until a command runs."""
