"""`btrsync sync`: one run over the jobs and targets, shown while it goes and summed up at its end."""

from __future__ import annotations

import os
import sys
import uuid
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from btrsync import report
from btrsync.commands.options import (
    common_options,
    config_option,
    invocation_of,
    jobs_argument,
    json_option,
    now,
    require_root,
    target_option,
)
from btrsync.config import load_client

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import TextIO

LOCK_DIRECTORY = Path("/run/btrsync")

EPILOG = """\b
Examples:
  btrsync sync                      every job, to every target it names
  btrsync sync share                one job
  btrsync sync --target usb         every job that goes to the target usb
  btrsync sync --dry-run            count what would be sent; leaves all as it is
  btrsync sync --explain share      which send parent it would start from, and why
  btrsync sync --full share         send all of it anew, when nothing is common any more
  btrsync sync --json | tail -n 1   the report for a program
"""


@click.command(name="sync", epilog=EPILOG)
@jobs_argument
@config_option
@target_option
@click.option("--full", is_flag=True, help="Send all of it anew, without a send parent, whatever is common.")
@click.option("--dry-run", is_flag=True, help="Tell what would be sent, and leave all as it is.")
@click.option("--explain", is_flag=True, help="Tell which send parent it would start from, and why.")
@click.option("--always", "--force", is_flag=True, help="Make and send a snapshot although nothing changed.")
@json_option
@click.pass_context
@common_options
def command(
    context: click.Context,
    jobs: tuple[str, ...],
    file: Path,
    targets: tuple[str, ...],
    full: bool,
    dry_run: bool,
    explain: bool,
    always: bool,
    as_json: bool,
) -> int:
    """Make a snapshot of each JOB's subvolume and send it to the job's targets.

    Without JOB, all jobs of the configuration are done. What a target already has is not sent
    again: a send starts from the latest snapshot that both sides hold. If nothing changed since
    then, no snapshot is made and nothing is sent. A target that fails does not keep the others
    from being served; the exit status is then 1, and the target is named.

    With --dry-run, a snapshot that would be made is made for the time of the count, and deleted.

    With --json the last line on standard output is one JSON object, and everything for people
    goes to standard error.
    """
    config = load_client(file)
    require_root("sync")
    if explain:
        from btrsync.commands.explain import explain as show_explanations

        return show_explanations(config, jobs, targets, is_full=full, is_forced=always, as_json=as_json)
    # Here, after the command line and the configuration were found right: this is the long import.
    from btrsync import sync

    options = sync.SyncOptions(
        jobs=jobs,
        targets=targets,
        is_full=full,
        is_dry_run=dry_run,
        is_forced=always,
        has_largest=bool(invocation_of(context).verbosity),
        lock_directory=LOCK_DIRECTORY,
        now=now,
        run_id=uuid.uuid4().hex,
    )
    return reported(context, lambda reporter: sync.run(config, options, reporter), as_json=as_json)


def reported(
    context: click.Context, run: Callable[[report.Reporter], report.RunReport], *, as_json: bool
) -> int:
    """Run, show it while it goes as the command line asks, report it, and return the exit status."""
    summary = sys.stderr if as_json else sys.stdout
    with _choose_reporter(summary, has_steps=bool(invocation_of(context).verbosity)) as reporter:
        done = run(reporter)
    if as_json:
        click.echo(report.run_json(done))
    return done.exit_status


def _choose_reporter(summary: TextIO, *, has_steps: bool) -> AbstractContextManager[report.Reporter]:
    """Return bars for a terminal, plain lines for anything else; summary: where outcomes go."""
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        from btrsync.commands.bars import TerminalReporter  # rich takes long to import

        return TerminalReporter(summary, has_steps=has_steps)
    return nullcontext(report.PlainReporter(sys.stderr, summary, has_steps=has_steps))
