"""Count mitotic figures on slides: the same as ``mitosis count``, for those who prefer a script."""

import sys

from mitosis.cli import main

sys.argv.insert(1, "count")
main()
