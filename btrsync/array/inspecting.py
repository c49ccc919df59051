"""What the disks of an array hold now, also behind the configured key: looked at, and never written to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from btrsync.errors import CommandError
from btrsync.plan.disk_contents import system_mounts, uses
from btrsync.system import disks as block_devices
from btrsync.system import dmcrypt
from btrsync.system.dmcrypt import Wanted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from btrsync.array.setup import ArraySetup
    from btrsync.plan.disk_contents import Disk, Layer
    from btrsync.system.dmcrypt import Mapping

LOOK: Final = "look_"
"""After the prefix, the names of mappings that are only looked through, read-only and for a moment."""
WRONG_KEY_STATUS: Final = 2
DEACTIVATE_TIMEOUT_S: Final = 60.0


def inspect(setup: ArraySetup, wanted: Sequence[Wanted], *, keeps: Sequence[Path]) -> tuple[Disk, ...]:
    """Return what these disks hold, in their order.

    Behind the key only those are looked at that nobody uses. keeps: files that are none of ours to lose.
    Raises StorageError, CommandError; the lock is the caller's.
    """
    mappings = dmcrypt.mappings()
    _close_looks(setup, mappings)
    ours = _own_numbers(setup, wanted, mappings)
    found = [block_devices.read_disk(one.device, ours=ours, keeps=keeps) for one in wanted]
    numbers = {disk.layer.number for disk in found}
    # A disk and its own partition cannot both be opened; they are refused anyway.
    below = {disk.layer.number for disk in found for layer in disk.layer.above if layer.number in numbers}
    to_look: dict[str, Disk] = {}
    for disk in found:
        is_free = not uses([disk]) and not system_mounts(disk) and disk.layer.number not in below
        if disk.own_mapping is None and is_free:
            to_look.setdefault(disk.layer.number, disk)
    behind = _looked_through(setup, list(to_look.values()))
    return tuple(msgspec.structs.replace(disk, behind=behind.get(disk.layer.number)) for disk in found)


def _own_numbers(setup: ArraySetup, wanted: Sequence[Wanted], found: dict[str, Mapping]) -> set[str]:
    """Return the numbers of those mappings that are open under the array's names and just as configured."""
    return {
        found[one.name].number
        for one in wanted
        if one.name in found and dmcrypt.difference(found[one.name], one.device, setup.encryption) is None
    }


def _looked_through(setup: ArraySetup, found: Sequence[Disk]) -> dict[str, Layer]:
    """Return what disks show through the configured key, by their numbers."""
    looks = {
        disk.layer.number: Wanted(
            Path(disk.layer.device), f"{setup.config.mapping_prefix}{LOOK}{count:02}", is_readonly=True
        )
        for count, disk in enumerate(found, 1)
        if setup.encryption.type == "plain" or any(one.type == "crypto_LUKS" for one in disk.layer.signatures)
    }
    try:
        if setup.encryption.type == "plain":
            dmcrypt.open_mappings(list(looks.values()), setup.encryption, setup.needed_key())
        else:
            looks = {number: look for number, look in looks.items() if _opens(setup, look)}
        dmcrypt.make_nodes([look.name for look in looks.values()])
        return {
            number: block_devices.read_layer(dmcrypt.MAPPER / look.name) for number, look in looks.items()
        }
    finally:
        if looks:
            _close_looks(setup, dmcrypt.mappings())


def _opens(setup: ArraySetup, look: Wanted) -> bool:
    """Open one of LUKS; False if the configured key does not fit it."""
    try:
        dmcrypt.open_mappings([look], setup.encryption, setup.needed_key())
    except CommandError as error:
        if error.exit.returncode == WRONG_KEY_STATUS:
            return False
        raise
    return True


def _close_looks(setup: ArraySetup, mappings: dict[str, Mapping]) -> None:
    """Close what was opened to look through it, also by a run that was killed.

    Nothing is mounted from there; but udev may have activated a volume group that it saw.
    """
    prefix = setup.config.mapping_prefix + LOOK
    found = [mapping for name, mapping in mappings.items() if name.startswith(prefix)]
    if not found:
        return
    for mapping in found:
        if not dmcrypt.holders(mapping.device):
            continue
        disk = block_devices.read_disk(mapping.device)
        for use in uses([disk]):
            if use.argv:
                block_devices.run(use.argv, timeout_s=DEACTIVATE_TIMEOUT_S)
    dmcrypt.close_mappings(found)
