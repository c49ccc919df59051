"""`btrsync array add` and `replace`: one more disk, or a new one in the place of another."""

from __future__ import annotations

import shlex
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
from btrsync.commands.array_create import (
    ask,
    deactivate_option,
    device_number,
    other_members,
    wipe_array_option,
    yes_option,
)
from btrsync.commands.options import common_options, json_option, require_root
from btrsync.errors import RefusedError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from btrsync.array.joining import NewMember
    from btrsync.array.setup import ArraySetup

ADD_EPILOG = """\b
Examples:
  btrsync array add mirror /dev/disk/by-id/ata-new --dry-run
  btrsync array add mirror /dev/disk/by-id/ata-new --wipe
"""
REPLACE_EPILOG = """\b
Examples:
  btrsync array replace mirror /dev/disk/by-id/ata-foo /dev/disk/by-id/ata-new --wipe
  btrsync array replace mirror 3 /dev/disk/by-id/ata-new --wipe
"""

new_argument = click.argument("new", metavar="DISK", type=click.Path(path_type=Path))
wipe_option = click.option("--wipe", is_flag=True, help="All that is on the new disk may be lost.")


@click.command(name="add", epilog=ADD_EPILOG)
@array_argument
@new_argument
@array_config_option
@wipe_option
@wipe_array_option
@deactivate_option
@yes_option
@dry_run_option
@json_option
@common_options
def add_command(
    name: str,
    new: Path,
    file: Path,
    wipe: bool,
    arrays: tuple[UUID, ...],
    deactivate: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Make DISK one more member of the array NAME, which is open.

    Shows first what the disk holds, as create does, and refuses what create refuses. The disk is
    opened with the array's key and written into members. A run that was cut is gone on with by the
    same command. What is on the other disks stays there: btrfs balance spreads it, where a profile
    with several copies needs that.
    """
    setup = load_setup(file, name)
    require_root("array add")
    from btrsync.array.adding import add_argv, add_member, wanted_mapping
    from btrsync.array.joining import Joining, look_at, writable_members
    from btrsync.array.recording import Places
    from btrsync.plan.array_member import MemberWish
    from btrsync.system import dmcrypt

    wish = MemberWish(wipes=wipe, arrays=arrays, deactivates=deactivate)
    places = Places(configuration=file)
    others = numbers_of_members(file, setup, new)
    wanted = wanted_mapping(setup, new)
    argv = add_argv(dmcrypt.MAPPER / wanted.name, setup.config.mount_point)
    lines = _commands(setup, new, argv)
    if dry_run:
        writable_members(setup)
        found = look_at(setup, Joining(wanted=wanted, wish=wish, places=places, others=others))
        return _show_dry_run(found, lines, as_json=as_json)
    added = add_member(
        setup, new, wish, places, others, confirm=_confirm(name, lines, yes=yes), say=say_progress(name)
    )
    if as_json:
        click.echo(msgspec.json.encode(added))
    elif added.is_new:
        click.echo(f"array {name}: {new} is a member now")
        point = setup.config.mount_point
        print(
            f"array {name}: to use it evenly for what is there: btrfs balance start {point}", file=sys.stderr
        )
    else:
        click.echo(f"array {name}: {new} is a member already")
    return 0


@click.command(name="replace", epilog=REPLACE_EPILOG)
@array_argument
@click.argument("old", metavar="OLD")
@new_argument
@array_config_option
@click.option(
    "--avoid-old", is_flag=True, help="Read from the old disk only what no other has: it is failing."
)
@wipe_option
@wipe_array_option
@deactivate_option
@yes_option
@dry_run_option
@json_option
@common_options
def replace_command(  # noqa: PLR0913, PLR0917  one for each option
    name: str,
    old: str,
    new: Path,
    file: Path,
    avoid_old: bool,
    wipe: bool,
    arrays: tuple[UUID, ...],
    deactivate: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Put DISK in the place of the member OLD of the array NAME, which is open.

    OLD is a disk as members names it, or a devid; it may be missing, if the array is open with
    --degraded --read-write. A disk that was away comes back by naming it as both. The kernel
    copies, and goes on by itself when this is stopped, and after a power cut once the array is
    open; the same command follows it again and completes what comes after: all of the new disk is
    used, it gets the old one's mapping, and its place in members.

    The exit status is 1 if something could not be read from any copy.
    """
    setup = load_setup(file, name)
    require_root("array replace")
    from btrsync.array.adding import wanted_mapping
    from btrsync.array.joining import Joining, look_at, writable_members
    from btrsync.array.recording import Places
    from btrsync.array.replacing import Change, find_old, replace_argv, replace_member
    from btrsync.plan.array_member import MemberWish
    from btrsync.system import dmcrypt

    wish = MemberWish(wipes=wipe, arrays=arrays, deactivates=deactivate)
    places = Places(configuration=file)
    others = numbers_of_members(file, setup, new)
    wanted = wanted_mapping(setup, new)
    device = dmcrypt.MAPPER / wanted.name
    point = setup.config.mount_point
    if dry_run:
        member = find_old(setup, old, writable_members(setup))
        argv = replace_argv(member.devid, device, point, avoids_old=avoid_old)
        wish = msgspec.structs.replace(wish, needed_bytes=member.total_bytes)
        found = look_at(setup, Joining(wanted=wanted, wish=wish, places=places, others=others))
        return _show_dry_run(found, _commands(setup, new, argv), as_json=as_json)
    lines = _commands(setup, new, ["btrfs", "replace", "start", old, str(device), str(point)])
    replaced = replace_member(
        setup,
        Change(old=old, new=new, avoids_old=avoid_old),
        wish,
        places,
        others,
        confirm=_confirm(name, lines, yes=yes),
        say=say_progress(name),
    )
    errors = replaced.uncorrectable_read_errors + replaced.write_errors
    if as_json:
        click.echo(msgspec.json.encode(replaced))
        return 1 if errors else 0
    for note in replaced.notes:
        print(f"array {name}: {note}", file=sys.stderr)
    click.echo(f"array {name}: {new} is the member with devid {replaced.devid} now")
    if errors:
        click.echo(
            f"array {name}: {replaced.uncorrectable_read_errors} blocks could be read from no copy and"
            f" {replaced.write_errors} not be written; the kernel log names the files: dmesg"
        )
    print(f"array {name}: now run: btrsync array scrub {name}", file=sys.stderr)
    return 1 if errors else 0


def numbers_of_members(file: Path, setup: ArraySetup, but: Path) -> dict[str, str]:
    """Return all arrays by the numbers of their disks, without the disk that is to become a member."""
    found = other_members(file, setup.name)
    for member in setup.config.members:
        if member != but:
            try:
                found[device_number(member)] = f"arrays.{setup.name}"
            except StorageError:
                continue
    return found


def _commands(setup: ArraySetup, new: Path, argv: list[str]) -> list[str]:
    """Return what is done to the disk, and the command that makes it a member."""
    from btrsync.array.adding import wanted_mapping
    from btrsync.system import dmcrypt

    opening = dmcrypt.open_argv(wanted_mapping(setup, new), setup.encryption, setup.needed_key())
    return [f"write {new} into members", f"wipefs --all {new}", shlex.join(opening), shlex.join(argv)]


def _lines(found: NewMember, commands: list[str]) -> list[str]:
    notes = [f"Note: {note}." for note in found.plan.notes]
    ends = [shlex.join(use.argv or ()) for use in found.plan.ends]
    held = [f"  {line}" for line in found.contents()]
    return [
        "The disk holds now:",
        *held,
        *notes,
        "What is done:",
        *(f"  {one}" for one in [*ends, *commands]),
    ]


def _confirm(name: str, commands: list[str], *, yes: bool) -> Callable[[NewMember], None]:
    def confirm(found: NewMember) -> None:
        ask(_lines(found, commands), name, yes=yes)

    return confirm


def _show_dry_run(found: NewMember, commands: list[str], *, as_json: bool) -> int:
    problems = found.plan.problems
    if as_json:
        shown = {"disk": found.contents(), "problems": problems, "notes": found.plan.notes}
        click.echo(msgspec.json.encode({**shown, "plan": [] if problems else commands}))
    else:
        for line in _lines(found, commands):
            click.echo(line)
        for problem in problems:
            click.echo(f"refused: {problem.words}\n    {problem.remedy}")
    return RefusedError.exit_status if problems else 0
