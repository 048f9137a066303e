"""Count mitotic figures on slides: the same as ``mitosis count``, for those who prefer a script."""

import sys

from mitosis.cli import main

if __name__ == "__main__":  # worker processes import this file too
    sys.argv.insert(1, "count")
    main()
