"""``python -m kornia_mvit`` is ``kornia-mvit``."""

import sys

from kornia_mvit.cli import main

if __name__ == "__main__":
    sys.exit(main())
