"""``python -m refinedet``."""

from refinedet.cli.app import main

main()
