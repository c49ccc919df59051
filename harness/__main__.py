"""`python -m harness`: sweep what a dead run left, or enter a host of a running one."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from harness import enter, sweep

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m harness", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sweeping = commands.add_parser("sweep", help="undo what a run left that was killed uncontained")
    sweeping.add_argument("--dry-run", action="store_true", help="only say what would be undone")
    entering = commands.add_parser("enter", help="open a shell in a host of a running session")
    entering.add_argument("keeper", type=int, metavar="PID", help="the session, as its own words say")
    entering.add_argument("host", help="the host's name, such as daisy")
    entering.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND", help="instead of a shell")
    words = parser.parse_args(argv)
    if words.command == "enter":
        try:
            enter.enter(words.keeper, words.host, words.argv)
        except LookupError as error:
            print(error, file=sys.stderr)
            return 1
    return _sweep(dry_run=words.dry_run)


def _sweep(*, dry_run: bool) -> int:
    done, failed = sweep.sweep(dry_run=dry_run)
    for words in done:
        print(("would remove: " if dry_run else "removed: ") + words)
    for words in failed:
        print(f"left: {words}", file=sys.stderr)
    if not done and not failed:
        print("nothing to sweep")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
