"""`btrsync array scrub`: read all of an array, and tell what was found."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
import msgspec

from btrsync.commands.array import array_argument, array_config_option, load_setup
from btrsync.commands.options import common_options, json_option, require_root
from btrsync.plan.sizes import format_size
from btrsync.report import format_seconds

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCRUB_EPILOG = """\b
Examples:
  btrsync array scrub mirror
  btrsync array scrub mirror --resume
"""
LOG_PERCENT = 10


@click.command(name="scrub", epilog=SCRUB_EPILOG)
@array_argument
@array_config_option
@click.option("--resume", is_flag=True, help="Go on with the scrub that was stopped.")
@json_option
@common_options
def scrub_command(name: str, file: Path, resume: bool, as_json: bool) -> int:
    """Scrub the array NAME, which is open: read all of it, and repair what has another copy.

    Backups go on meanwhile. Stopped, by Ctrl-C or a unit's end, it can be gone on with. The result
    is shown by status, too. The exit status is 1 if any error was found, also one that could be
    corrected: it tells of a disk that fails, or was away.
    """
    setup = load_setup(file, name)
    require_root("array scrub")
    from btrsync.array.scrubbing import scrub_array

    scrubbed = scrub_array(setup, resumes=resume, progress=_show_progress(name))
    if as_json:
        click.echo(msgspec.json.encode(scrubbed))
        return 0 if scrubbed.is_clean else 1
    scrub = scrubbed.scrub
    read = f"{format_size(scrub.bytes_scrubbed)} read in {format_seconds(scrub.seconds)}"
    if scrubbed.is_clean:
        click.echo(f"array {name}: no errors, {read}")
        return 0
    kept = (
        "found, and left as they are since it is mounted read-only" if scrubbed.is_readonly else "corrected"
    )
    click.echo(
        f"array {name}: {scrub.corrected_errors} errors {kept}, {scrub.uncorrectable_errors} not correctable,"
        f" {scrub.other_errors} others, {read}"
    )
    for disk, count in scrubbed.counted.items():
        click.echo(f"look at: {disk} counted {count} errors meanwhile")
    if scrub.uncorrectable_errors:
        click.echo("look at: the kernel log names the files that are damaged: dmesg | grep BTRFS")
    return 1


def _show_progress(name: str) -> Callable[[int, int], None]:
    """Return what tells how far it is: every percent on a terminal, in one line, else every tenth."""
    is_terminal = sys.stderr.isatty()
    step = 1 if is_terminal else LOG_PERCENT
    told = -1

    def progress(done: int, total: int) -> None:
        nonlocal told
        percent = done * 100 // max(total, 1)
        if percent // step == told:
            return
        told = percent // step
        words = f"array {name}: scrub: {format_size(done)}, about {percent} %"
        print(f"\r{words}" if is_terminal else words, end="" if is_terminal else "\n", file=sys.stderr)
        if is_terminal and percent == 100:
            print(file=sys.stderr)

    return progress
