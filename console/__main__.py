"""``python -m console`` is the ``mailweir`` command."""

from console.cli import main

main()
