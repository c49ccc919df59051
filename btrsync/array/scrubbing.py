"""`btrsync array scrub`: read everything, repair what has another copy, and say what was found.

`btrfs scrub` ends with 0 also where it repaired something: what it writes down tells, and the errors that
the devices count.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final

import msgspec

from btrsync.errors import CommandError, CommandTimeoutError, StorageError
from btrsync.plan.profiles import COPIES
from btrsync.plan.scrub_record import Scrub, parse_scrub_record
from btrsync.system import btrfs_devices, mounting, process

if TYPE_CHECKING:
    from collections.abc import Callable

    from btrsync.array.setup import ArraySetup

INTERVAL_S: Final = 0.5
CANCEL_TIMEOUT_S: Final = 60.0
OK: Final = (0, 3)
"""3: there were errors that it could not correct. Source: btrfs-scrub(8)."""


class Scrubbed(msgspec.Struct, frozen=True, kw_only=True):
    """What a scrub found. counted: errors that devices counted meanwhile, by the disk's name."""

    scrub: Scrub
    is_readonly: bool = False
    counted: dict[str, int] = {}

    @property
    def is_clean(self) -> bool:
        return self.scrub.is_finished and not self.scrub.errors and not self.counted


def scrub_argv(setup: ArraySetup, *, resumes: bool, is_readonly: bool) -> list[str]:
    """Return the command; read-only it corrects nothing."""
    verb = "resume" if resumes else "start"
    return ["btrfs", "scrub", verb, "-B", *(["-r"] * is_readonly), str(setup.config.mount_point)]


def scrub_array(
    setup: ArraySetup,
    *,
    resumes: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Scrubbed:
    """Scrub an open array to its end. If this is stopped, so is the scrub, and `resumes` goes on with it.

    progress: told bytes read and about how many there are. The array's lock is not held: nothing is
    changed that another command could meet. Raises StorageError if it is not open, CommandError.
    """
    point = setup.config.mount_point
    numbers = [mapping.number for mapping in setup.open_mappings().values()]
    here = [mount for mount in mounting.btrfs_mounts(numbers) if mount.mount_point == point]
    if not here or setup.config.uuid is None:
        raise StorageError(f"array {setup.name}: it is not open", hint=f"btrsync array open {setup.name}")
    is_readonly = here[-1].is_readonly
    before = _errors(setup)
    total = _bytes_to_read(setup)
    read: dict[int, int] = {}
    argv = scrub_argv(setup, resumes=resumes, is_readonly=is_readonly)
    with process.spawn(argv) as running:
        try:
            while running.poll() is None:
                read.update(btrfs_devices.scrubbed_bytes(point))
                if read:
                    progress(sum(read.values()), max(total, sum(read.values())))
                time.sleep(INTERVAL_S)
        except BaseException:
            # A scrub in the kernel does not hear signals: without this, the end would be waited for.
            process.run(["btrfs", "scrub", "cancel", str(point)], ok=(0, 1, 2), timeout_s=CANCEL_TIMEOUT_S)
            with contextlib.suppress(CommandTimeoutError):
                running.wait(CANCEL_TIMEOUT_S)  # it writes down where it was
            raise
        exit = running.wait()
    if exit.returncode not in OK:
        raise CommandError(exit)
    record = btrfs_devices.scrub_record(setup.config.uuid)
    scrub = parse_scrub_record(record) if record else None
    if scrub is None:
        raise StorageError(
            f"array {setup.name}: btrfs wrote down nothing of this scrub", hint="ls -l /var/lib/btrfs; dmesg"
        )
    counted = {disk: count - before.get(disk, 0) for disk, count in _errors(setup).items()}
    return Scrubbed(
        scrub=scrub,
        is_readonly=is_readonly,
        counted={disk: count for disk, count in counted.items() if count > 0},
    )


def _errors(setup: ArraySetup) -> dict[str, int]:
    """Return how many errors each device has counted."""
    return {
        member.path or f"devid {member.devid}": sum(member.errors)
        for member in btrfs_devices.mounted_members(setup.config.mount_point)
    }


def _bytes_to_read(setup: ArraySetup) -> int:
    """Return about how much a scrub reads: every copy of what is used."""
    allocations = btrfs_devices.allocations(setup.config.mount_point)
    return sum(one.used_bytes * COPIES.get(one.profile, 1) for one in allocations)
