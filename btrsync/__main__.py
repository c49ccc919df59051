"""`python -m btrsync` is `btrsync`."""

from __future__ import annotations

import sys

from btrsync.cli import main

if __name__ == "__main__":
    sys.exit(main())
