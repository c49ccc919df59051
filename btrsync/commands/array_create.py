"""`btrsync array create`: make the array of the configuration out of disks, or complete it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from btrsync.commands.array import (
    array_argument,
    array_config_option,
    dry_run_option,
    load_setup,
    say_progress,
)
from btrsync.commands.options import common_options, json_option, require_root
from btrsync.config import load_server
from btrsync.errors import RefusedError, StorageError
from btrsync.plan.profiles import COPIES, default_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from btrsync.array.creating import Survey, Wanting
    from btrsync.array.setup import ArraySetup

CREATE_EPILOG = """\b
Examples:
  btrsync array create mirror --dry-run
  btrsync array create mirror --wipe /dev/disk/by-id/ata-foo /dev/disk/by-id/ata-bar
  btrsync array create mirror --deactivate --wipe /dev/disk/by-id/ata-foo /dev/disk/by-id/ata-bar
"""

wipe_array_option = click.option(
    "--wipe-array",
    "arrays",
    metavar="UUID",
    type=click.UUID,
    multiple=True,
    help="A btrfs that may be written over, where a disk shows one; may be given several times.",
)
deactivate_option = click.option(
    "--deactivate",
    is_flag=True,
    help="End what uses the disks: unmount, deactivate volume groups, close mappings.",
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask. It names no disk: --wipe does that.")


@click.command(name="create", epilog=CREATE_EPILOG)
@array_argument
@click.argument("disks", metavar="[DISK]...", nargs=-1, type=click.Path(path_type=Path))
@array_config_option
@click.option(
    "--wipe", is_flag=True, help="All that is on the DISKs named may be lost: each member of the array."
)
@wipe_array_option
@deactivate_option
@click.option(
    "--data",
    type=click.Choice(list(COPIES)),
    default="single",
    show_default=True,
    help="Profile of data.",
)
@click.option(
    "--metadata",
    type=click.Choice(list(COPIES)),
    help="Profile of metadata; raid1 by default, and dup on a single disk.",
)
@click.option("--uneven", is_flag=True, help="Take disks of which one is less than half as large as another.")
@yes_option
@dry_run_option
@json_option
@common_options
def create_command(  # noqa: PLR0913, PLR0917  one for each option
    name: str,
    disks: tuple[Path, ...],
    file: Path,
    wipe: bool,
    arrays: tuple[UUID, ...],
    deactivate: bool,
    data: str,
    metadata: str | None,
    uneven: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Make the array NAME on its members, with its subvolume and its line in fstab.

    Shows first what each disk holds now: partitions, LVM, XFS, btrfs, what is mounted, and also
    what shows behind the configured key. A disk of an array on plain dm-crypt shows no signature at
    all, so none is ever taken for empty: each must be named after --wipe. A btrfs that is seen, in
    the clear or behind the key, must be named too, by its UUID. What uses the disks is named with
    the command that ends it, or ended with --deactivate; this machine's own disk is never written to.

    If the key shows this very array nothing is written over, and only what is missing beside it is
    made. After a power cut the same command goes on. The UUID is written into the configuration
    before mkfs.btrfs begins. The line in fstab has noauto, and a copy of the file is kept.

    The exit status is 10 if it is refused, with every reason and what to do.
    """
    if wipe != bool(disks):
        raise click.UsageError("--wipe goes with the disks it is about: --wipe DISK...")
    setup = load_setup(file, name)
    require_root("array create")
    from btrsync.array.creating import Wanting, create_array, survey
    from btrsync.array.recording import Places
    from btrsync.plan.array_create import Wish

    wish = Wish(
        wipe={str(disk): device_number(disk) for disk in disks},
        arrays=arrays,
        deactivates=deactivate,
        accepts_uneven=uneven,
        data=data,
        metadata=metadata or default_metadata(len(setup.config.members)),
    )
    wanting = Wanting(wish=wish, places=Places(configuration=file), others=other_members(file, name))
    if dry_run:
        found = survey(setup, wanting)
        _show_dry_run(setup, wanting, found, as_json=as_json)
        return RefusedError.exit_status if found.plan.problems else 0
    created = create_array(setup, wanting, confirm=_confirm(setup, wanting, yes=yes), say=say_progress(name))
    if as_json:
        click.echo(msgspec.json.encode(created, enc_hook=str))
        return 0
    for note in created.notes:
        print(f"array {name}: {note}", file=sys.stderr)
    words = {
        "made": f"made, {created.uuid}; now: btrsync array open {name}",
        "completed": f"is there, {created.uuid}; completed: {', '.join(created.done)}",
        "unchanged": f"is there, {created.uuid}; nothing was changed",
    }
    click.echo(f"array {name}: {words[created.outcome]}")
    return 0


def device_number(disk: Path) -> str:
    """Return the number of a disk that was typed. Raises StorageError with its name."""
    from btrsync.system import dmcrypt

    return dmcrypt.device_number(disk)


def other_members(file: Path, name: str) -> dict[str, str]:
    """Return the other arrays of the configuration by the numbers of those of their disks that are there."""
    found = {}
    for other, array in load_server(file).arrays.items():
        for member in array.members if other != name else ():
            try:
                found[device_number(member)] = f"arrays.{other}"
            except StorageError:
                continue
    return found


def _show_dry_run(setup: ArraySetup, wanting: Wanting, found: Survey, *, as_json: bool) -> None:
    from btrsync.array.creating import commands

    if as_json:
        shown = {
            "kind": found.plan.kind,
            "disks": found.contents(),
            "problems": found.plan.problems,
            "notes": found.plan.notes,
            "plan": [] if found.plan.problems else commands(setup, wanting, found),
        }
        click.echo(msgspec.json.encode(shown))
        return
    for line in plan_lines(setup, wanting, found):
        click.echo(line)
    for problem in found.plan.problems:
        click.echo(f"refused: {problem.words}")
        click.echo(f"    {problem.remedy}")


def plan_lines(setup: ArraySetup, wanting: Wanting, found: Survey) -> list[str]:
    """Return what the disks hold and what would be done, for a person."""
    from btrsync.array.creating import commands

    lines = ["The disks hold now:", *(f"  {line}" for line in found.contents())]
    if found.plan.kind == "go_on":
        lines.append(f"They are the array {setup.name}, {found.uuid}: nothing is written over.")
    lines += [f"Note: {note}." for note in found.plan.notes]
    if not found.plan.problems:
        lines += ["What is done:", *(f"  {line}" for line in commands(setup, wanting, found))]
    return lines


def _confirm(setup: ArraySetup, wanting: Wanting, *, yes: bool) -> Callable[[Survey], None]:
    def confirm(found: Survey) -> None:
        ask(plan_lines(setup, wanting, found), setup.name, yes=yes)

    return confirm


def ask(lines: Sequence[str], name: str, *, yes: bool) -> None:
    """Show what is about to be done, and have it confirmed by the array's name. Raises RefusedError."""
    for line in lines:
        print(line, file=sys.stderr)
    if yes:
        return
    if not os.isatty(0):
        raise RefusedError(
            f"array {name}: nothing was changed, since nobody could be asked", hint="--yes, or a terminal"
        )
    try:
        typed = click.prompt(f"All that these disks hold is lost. To go on, type {name}", err=True)
    except click.Abort:  # Ctrl-D
        typed = ""
    if typed != name:
        raise RefusedError(f"array {name}: not confirmed, and nothing was changed")
