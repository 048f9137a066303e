"""Cut patches and masks for training: the same as ``mitosis extract``, for those who prefer a script."""

import sys

from mitosis.cli import main

sys.argv.insert(1, "extract")
main()
