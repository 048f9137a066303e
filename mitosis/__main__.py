"""``python -m mitosis`` is ``mitosis``."""

from mitosis.cli import main

main()
