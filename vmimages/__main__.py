"""`python -m vmimages`: build images of virtual machines, and boot them."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from vmimages import guest_commands, images_commands
from vmimages.errors import VmError

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; what a person can put right is told in one sentence."""
    parser = argparse.ArgumentParser(prog="python -m vmimages", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    images_commands.add(commands)
    guest_commands.add(commands)
    words = parser.parse_args(argv)
    try:
        status: int = words.run(words)
    except VmError as error:
        print(f"vmimages: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


if __name__ == "__main__":
    raise SystemExit(main())
