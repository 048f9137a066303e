"""Train a U-Net on patches: the same as ``mitosis train``, for those who prefer a script."""

import sys

from mitosis.cli import main

sys.argv.insert(1, "train")
main()
