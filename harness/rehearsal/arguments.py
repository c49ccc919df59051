"""The command line of the rehearsal."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.rehearsal.room import TREE_BYTES
from harness.rehearsal.steps import STEPS

EXAMPLES = """\
The steps, in this order:
{steps}
The first two are always done, for the others stand on them; those with an array need a kernel with
dm-crypt, which a guest has. Without root the rehearsal is always held in a guest.

Examples:
  ./rehearse                          a generated tree of 85 MB
  ./rehearse --source /home/foo/docs  a copy of real data; the directory itself is only read
  ./rehearse --config /etc/btrsync/btrsync.toml
                                      your own jobs and targets, on rehearsal hosts and loop devices
  ./rehearse --steps "cut link" --keep
                                      then look around: the hosts stay up until Ctrl-C
  ./rehearse --vm trixie              the array on dm-crypt, in a guest of Debian 13
  ./rehearse --json | tail -n 1       the results for a program

Exit status: 0 all steps hold, 1 a step failed, 2 the command line asks for what is not there,
3 the configuration or this machine will not do, 125 the guest failed,
128+N stopped by signal N (130: Ctrl-C).
"""
IMAGE = "bookworm"
"""What a guest boots unless told."""


def parse(words: list[str]) -> argparse.Namespace:
    """Return what the words ask for; argparse ends the process with 0 after --help and 2 after a mistake."""
    width = max(len(step.name) for step in STEPS) + 2
    shown = "\n".join(f"  {step.name:<{width}}{_summary(step.run.__doc__)}" for step in STEPS)
    parser = argparse.ArgumentParser(
        prog="btrsync-rehearse",
        description="Play the whole mirror on this machine before a real disk is touched: two hosts, a real\n"
        "sshd with a forced command, a btrfs array of four loop devices. It syncs, breaks things on\n"
        "purpose, and compares whole trees after each step.",
        epilog=EXAMPLES.format(steps=shown),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--source", metavar="DIR", type=Path, help="rehearse with a copy of this directory")
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="rehearse this configuration of a client; it is only read"
    )
    parser.add_argument(
        "--size", choices=list(TREE_BYTES), default="medium",
        help="of the generated tree: 4 MB, 85 MB, 1.2 GB (default: medium)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", metavar="N", type=int, default=1, help="of the tree and its changes (default: 1)"
    )
    parser.add_argument("--steps", metavar="NAME,...", type=_steps, help="only these steps")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="leave the hosts up at the end, say how to enter them, wait for Ctrl-C",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line; words go to stderr"
    )
    parser.add_argument(
        "--vm", metavar="IMAGE", nargs="?", const=IMAGE,
        help="rehearse in a guest, with the array on dm-crypt, without root; IMAGE: of `python -m vmimages"
        f" list` (default: {IMAGE})",
    )  # fmt: skip
    return parser.parse_args(words)


def _summary(docstring: str | None) -> str:
    return (docstring or "").strip().splitlines()[0].rstrip(".")


def _steps(text: str) -> tuple[str, ...]:
    known = [step.name for step in STEPS]
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"there is no step {name!r}; there are: {', '.join(known)}")
    if not names:
        raise argparse.ArgumentTypeError(f"names no step; there are: {', '.join(known)}")
    return names
