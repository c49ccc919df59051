"""`btrsync array`: open, close and look at an array of encrypted disks."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from btrsync.commands.options import common_options, json_option, now, require_root
from btrsync.commands.tables import show_table
from btrsync.config import SERVER_FILE, load_server
from btrsync.config.reading import read_table
from btrsync.errors import BtrsyncError
from btrsync.plan.sizes import format_size
from btrsync.report import format_age, format_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from btrsync.array.setup import ArraySetup
    from btrsync.array.status import ArrayStatus, MemberStatus

LOCK_DIRECTORY = Path("/run/btrsync")
HEADINGS = ("DISK", "MAPPING", "DEVID", "SIZE", "ALLOCATED", "ERRORS", "STATE")

OPEN_EPILOG = """\b
Examples:
  btrsync array open mirror
  btrsync array open mirror --dry-run
  btrsync array open mirror --degraded
"""
CLOSE_EPILOG = """\b
Examples:
  btrsync array close mirror
"""
STATUS_EPILOG = """\b
Examples:
  btrsync array status
  btrsync array status mirror --json
"""


def complete_arrays(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the arrays of the configuration for the shell; none if it cannot be read."""
    try:
        tables = read_table(Path(context.params.get("file") or SERVER_FILE), "server").get("arrays")
    except (BtrsyncError, OSError):
        return []
    return sorted(name for name in tables if name.startswith(incomplete)) if isinstance(tables, dict) else []


array_config_option = click.option(
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default=SERVER_FILE,
    show_default=True,
    is_eager=True,
    help="Configuration with the table [arrays.NAME].",
)
array_argument = click.argument("name", metavar="NAME", shell_complete=complete_arrays)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Print the commands that would be run, and change nothing."
)


def load_setup(file: Path, name: str) -> ArraySetup:
    """Return the array NAME of a configuration, with the credentials that systemd gave this process."""
    from btrsync.array.setup import array_setup

    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    return array_setup(
        load_server(file),
        name,
        lock_directory=LOCK_DIRECTORY,
        credentials=Path(credentials) if credentials else None,
    )


def say_progress(name: str) -> Callable[[str], None]:
    """Return what tells on stderr what is being done."""
    return lambda words: print(f"array {name}: {words}", file=sys.stderr)


@click.group(name="array")
def command() -> None:
    """Make, open, close and mend an array of encrypted disks."""


@command.command(name="open", epilog=OPEN_EPILOG)
@array_argument
@array_config_option
@click.option(
    "--degraded", is_flag=True, help="Mount what is left, read-only, where disks are missing, stale or noise."
)
@click.option(
    "--read-write",
    is_flag=True,
    help="With --degraded: writable. What is missing is stale from then on, and to be replaced.",
)
@click.option(
    "--accept-stale",
    is_flag=True,
    help="Mount with a disk that was away while the others were written. Scrub the array at once.",
)
@dry_run_option
@json_option
@common_options
def open_command(
    name: str,
    file: Path,
    degraded: bool,
    read_write: bool,
    accept_stale: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Open the array NAME: all its mappings at once, then prove what they show, then mount it.

    Plain dm-crypt opens with any key, so each mapping must show a member of the very filesystem
    that the configuration names by its UUID, the set must be complete, and all of one state.
    Otherwise nothing is mounted, what this run opened is closed again, and the reason is told:
    a wrong key, a wrong, missing, copied or stale disk. No disk is ever written to for it.

    An array that is open already is left as it is; one that a killed run left half open is
    completed. The exit status is 8 if it must not be mounted.
    """
    if read_write and not degraded:
        raise click.UsageError("--read-write goes with --degraded: a whole array is writable anyway")
    setup = load_setup(file, name)
    require_root("array open")
    from btrsync.array.opening import OpenOptions, open_array, plan_open

    options = OpenOptions(is_degraded=degraded, is_writable=read_write, accepts_stale=accept_stale)
    if dry_run:
        _show_plan(plan_open(setup, options), as_json=as_json)
        return 0
    opened = open_array(setup, options, say=say_progress(name))
    if as_json:
        click.echo(msgspec.json.encode(opened, enc_hook=str))
        return 0
    for note in opened.notes:
        print(f"array {name}: {note}", file=sys.stderr)
    if opened.needs_scrub:
        print(f"array {name}: now run: btrsync array scrub {name}", file=sys.stderr)
    if opened.outcome == "opened":
        kind = "degraded: " if opened.is_degraded else ""
        click.echo(f"array {name}: {kind}{opened.sentence}, mounted at {opened.mount_point}")
    else:
        ending = "already" if opened.outcome == "already_open" else "and writable now"
        click.echo(f"array {name}: {opened.sentence} {ending}")
    return 0


@command.command(name="close", epilog=CLOSE_EPILOG)
@array_argument
@array_config_option
@dry_run_option
@json_option
@common_options
def close_command(name: str, file: Path, dry_run: bool, as_json: bool) -> int:
    """Close the array NAME: unmount it, then close its mappings.

    While anyone uses it nothing is changed, and those who do are named; the exit status is 8
    then. An array that is half open is closed as well, and one that is closed stays so.
    """
    setup = load_setup(file, name)
    require_root("array close")
    from btrsync.array.closing import close_array, plan_close

    if dry_run:
        _show_plan(plan_close(setup), as_json=as_json)
        return 0
    closed = close_array(setup, say=say_progress(name))
    if as_json:
        click.echo(msgspec.json.encode(closed))
    elif closed.outcome == "closed":
        click.echo(f"array {name}: closed")
    else:
        click.echo(f"array {name}: is closed already")
    return 0


@command.command(name="status", epilog=STATUS_EPILOG)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_arrays)
@array_config_option
@json_option
@common_options
def status_command(names: tuple[str, ...], file: Path, as_json: bool) -> int:
    """Tell how each array stands: its disks and mappings, device errors, profiles, room, last scrub.

    Looks only, and needs no key. The exit status is 1 if there is something to look at: the
    array is degraded, half open or read-only, a device has counted errors, or metadata is short
    of room. A scrub ends with 0 though it repaired something; the counters of errors tell.
    """
    config = load_server(file)
    setups = [load_setup(file, name) for name in names or config.arrays]
    require_root("array status")
    from btrsync.array.status import array_status

    statuses = [array_status(setup) for setup in setups]
    is_well = all(status.is_well for status in statuses)
    if as_json:
        click.echo(msgspec.json.encode({"ok": is_well, "arrays": statuses}))
    else:
        for status in statuses:
            show_status(status)
    return 0 if is_well else 1


def show_status(status: ArrayStatus) -> None:
    """Write one array's status for a person."""
    where = f" at {status.mount_point}" if status.is_mounted else ""
    words = {"open": "open", "half_open": "half open", "closed": "closed"}[status.state]
    words += ", degraded" * status.is_degraded + ", read-only" * status.is_readonly
    click.echo(f"array {status.name}: {words}{where}")
    show_table(HEADINGS, [_cells(member) for member in status.members])
    if status.profiles:
        told = ", ".join(f"{kind} {' and '.join(names)}" for kind, names in status.profiles.items())
        click.echo(f"profiles: {told}")
    if status.room:
        click.echo(
            f"room: {format_size(status.room.available_bytes)} of {format_size(status.room.total_bytes)},"
            f" {format_size(status.room.metadata_headroom_bytes)} for metadata,"
            f" {format_size(status.room.unallocated_bytes)} unallocated"
        )
    click.echo(f"last scrub: {_format_scrub(status)}")
    for problem in status.problems:
        click.echo(f"look at: {problem}")


def _cells(member: MemberStatus) -> tuple[str, ...]:
    state = "open" if member.is_open else "closed" if member.is_there else "not there"
    return (
        member.device,
        member.mapping,
        "" if member.devid is None else str(member.devid),
        "" if member.total_bytes is None else format_size(member.total_bytes),
        "" if member.allocated_bytes is None else format_size(member.allocated_bytes),
        str(sum(member.errors.values())) if member.errors else "",
        state,
    )


def _format_scrub(status: ArrayStatus) -> str:
    scrub = status.last_scrub
    if scrub is None:
        return "none that is known here"
    if not scrub.is_finished:
        ending = "canceled" if scrub.is_canceled else "not finished"
    elif scrub.errors:
        ending = f"{scrub.corrected_errors} errors corrected, {scrub.uncorrectable_errors} not correctable"
    else:
        ending = "no errors"
    age = format_age(scrub.started, now())
    return f"{age} ago, {format_size(scrub.bytes_scrubbed)} in {format_seconds(scrub.seconds)}, {ending}"


def _show_plan(lines: list[str], *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode({"plan": lines}))
        return
    for line in lines:
        click.echo(line)
