"""`python -m harness.rehearsal` is `btrsync-rehearse`."""

from harness.rehearsal.command import main

if __name__ == "__main__":
    raise SystemExit(main())
