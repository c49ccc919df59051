"""`python -m btrsync` is `btrsync`."""

from __future__ import annotations

from btrsync.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
