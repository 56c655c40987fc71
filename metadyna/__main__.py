"""`python -m metadyna` is the command `metadyna`."""

from metadyna.cli import main

main()
