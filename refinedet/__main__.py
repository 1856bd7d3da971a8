"""``python -m refinedet``."""

from refinedet.cli import main

main()
