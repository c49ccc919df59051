"""`btrsync fetch`: one backup of a job comes back from a target."""

from __future__ import annotations

import uuid
from pathlib import Path

import click

from btrsync.commands.options import (
    common_options,
    complete_names,
    config_option,
    json_option,
    now,
    require_root,
)
from btrsync.commands.sync import LOCK_DIRECTORY, reported
from btrsync.config import load_client

EPILOG = """\b
Examples:
  btrsync fetch share                        the latest backup, to the job's snapshots
  btrsync fetch share --dry-run              what would come, how much and from which parent
  btrsync fetch share --snapshot snapshot-20261122213000
  btrsync fetch share --target usb --to /mnt/restore
  btrfs subvolume snapshot /snapshots/NAME /data    make it writable, elsewhere
"""


@click.command(name="fetch", epilog=EPILOG)
@click.argument("jobs", metavar="JOB", shell_complete=complete_names)
@config_option
@click.option("--snapshot", metavar="NAME", help="Which backup; without it, the latest.")
@click.option(
    "--target",
    "targets",
    metavar="TARGET",
    shell_complete=complete_names,
    help="From where; needed if the job has several targets.",
)
@click.option(
    "--to",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where to put it; without it, the job's directory for snapshots.",
)
@click.option("--dry-run", is_flag=True, help="Tell what would be fetched, and change nothing.")
@json_option
@click.pass_context
@common_options
def command(
    context: click.Context,
    jobs: str,
    file: Path,
    snapshot: str | None,
    targets: str | None,
    directory: Path | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Have a backup of JOB sent back from its target, as a read-only snapshot.

    Only what changed is sent if a snapshot that both sides hold lies in the same directory; so it
    is best fetched to the directory for snapshots. What is there already is not fetched again, and
    nothing there is ever replaced. A fetch that was cut goes on where it ended. On the server it
    changes nothing, and it needs `allow_fetch` there.

    With --json the last line on standard output is one JSON object, and everything for people
    goes to standard error.
    """
    config = load_client(file)
    require_root("fetch")
    if directory is not None and not directory.is_absolute():
        raise click.BadParameter(f"{directory} is relative; begin it with /", param_hint="--to")
    from btrsync import fetch

    options = fetch.FetchOptions(
        job=jobs,
        run_id=uuid.uuid4().hex,
        now=now,
        lock_directory=LOCK_DIRECTORY,
        snapshot=snapshot,
        target=targets,
        directory=directory,
        is_dry_run=dry_run,
    )
    return reported(context, lambda reporter: fetch.run(config, options, reporter), as_json=as_json)
