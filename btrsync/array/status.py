"""`btrsync array status`: how an array stands, as values; looks and changes nothing, needs no key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from uuid import UUID

import msgspec

from btrsync.plan.scrub_record import Scrub, parse_scrub_record
from btrsync.plan.sizes import format_size
from btrsync.system import btrfs_devices, dmcrypt, mounting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from btrsync.array.setup import ArraySetup
    from btrsync.system.btrfs_devices import MountedMember
    from btrsync.system.dmcrypt import Mapping

State = Literal["open", "half_open", "closed"]
COUNTERS: Final = ("write", "read", "flush", "corruption", "generation")
LOW_METADATA_BYTES: Final = 1 << 30
"""Room for metadata below which a large receive may fail though data has room: a chunk is 1 GiB at most."""


class MemberStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One configured disk; `devid`, sizes and `errors` where the array is mounted with it."""

    device: str
    mapping: str
    is_there: bool
    is_open: bool
    problem: str | None = None
    devid: int | None = None
    total_bytes: int | None = None
    allocated_bytes: int | None = None
    errors: dict[str, int] = {}


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """Room on a mounted array. `unallocated_bytes`: what no chunk has on any device, raw."""

    total_bytes: int
    available_bytes: int
    metadata_free_bytes: int
    unallocated_bytes: int

    @property
    def metadata_headroom_bytes(self) -> int:
        """What metadata can still grow by for sure, were all that is unallocated mirrored."""
        return self.metadata_free_bytes + self.unallocated_bytes // 2


class ArrayStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How an array stands. profiles: "data", "metadata", "system" and theirs; two while one is converted.

    problems: what somebody should look at, in sentences; none if all is well, open or closed.
    """

    name: str
    state: State
    uuid: UUID | None
    mount_point: str
    is_mounted: bool
    is_readonly: bool = False
    is_degraded: bool = False
    members: tuple[MemberStatus, ...] = ()
    profiles: dict[str, tuple[str, ...]] = {}
    room: Room | None = None
    last_scrub: Scrub | None = None
    problems: tuple[str, ...] = ()

    @property
    def is_well(self) -> bool:
        return not self.problems


def array_status(setup: ArraySetup) -> ArrayStatus:
    """Return how an array stands. Raises StorageError where a mounted one cannot be read."""
    from btrsync.system import btrfs  # late: pybtrfs is not needed for a closed array

    found = setup.open_mappings()
    point = setup.config.mount_point
    ours = mounting.btrfs_mounts(one.number for one in found.values())
    here = [one for one in ours if one.mount_point == point]
    mounted = btrfs_devices.mounted_members(point) if here else ()
    members = tuple(_members(setup, found, mounted))
    uuid = setup.config.uuid
    record = btrfs_devices.scrub_record(uuid) if uuid else None
    scrub = parse_scrub_record(record) if record else None
    profiles: dict[str, tuple[str, ...]] = {}
    room = None
    if here:
        for one in btrfs_devices.allocations(point):
            profiles[one.kind] = tuple(dict.fromkeys((*profiles.get(one.kind, ()), one.profile)))
        space = btrfs.space(point)
        room = Room(
            total_bytes=space.total_bytes,
            available_bytes=space.available_bytes,
            metadata_free_bytes=space.metadata_free_bytes,
            unallocated_bytes=space.unallocated_bytes,
        )
    missing = [member for member in mounted if member.is_missing]
    state: State = "closed" if not found else "open" if here else "half_open"
    status = ArrayStatus(
        name=setup.name,
        state=state,
        uuid=uuid,
        mount_point=str(point),
        is_mounted=bool(here),
        is_readonly=bool(here) and here[-1].is_readonly,
        is_degraded=bool(missing),
        members=members,
        profiles=profiles,
        room=room,
        last_scrub=scrub,
    )
    return msgspec.structs.replace(status, problems=tuple(_problems(status, missing)))


def _members(
    setup: ArraySetup, found: dict[str, Mapping], mounted: Sequence[MountedMember]
) -> Iterator[MemberStatus]:
    by_number = {dmcrypt.device_number(Path(one.path)): one for one in mounted if not one.is_missing}
    for wanted in setup.wanted:
        mapping = found.get(wanted.name)
        member = by_number.get(mapping.number) if mapping else None
        is_there = wanted.device.exists()
        problem = None
        if mapping is not None and is_there:
            problem = dmcrypt.difference(mapping, wanted.device, setup.encryption)
        yield MemberStatus(
            device=str(wanted.device),
            mapping=wanted.name,
            is_there=is_there,
            is_open=mapping is not None,
            problem=problem and f"the mapping {problem}",
            devid=member.devid if member else None,
            total_bytes=member.total_bytes if member else None,
            allocated_bytes=member.used_bytes if member else None,
            errors=dict(zip(COUNTERS, member.errors, strict=True)) if member else {},
        )


def _problems(status: ArrayStatus, missing: Sequence[MountedMember]) -> Iterator[str]:
    if status.state == "half_open":
        yield (
            f"half open: mappings are there and nothing is mounted at {status.mount_point};"
            f" btrsync array open {status.name} completes it, close undoes it"
        )
    for member in status.members:
        yield from _member_problems(status, member)
        if status.is_mounted and not missing and member.devid is None:
            yield f"{member.device} is no member of what is mounted; correct members"
    if missing:
        devids = ", ".join(str(member.devid) for member in missing)
        yield f"degraded: devid {devids} missing; give it a new disk with btrsync array replace"
    if status.is_mounted and status.is_readonly:
        yield "mounted read-only, so no backup can be received"
    for kind, profiles in status.profiles.items():
        if len(profiles) > 1:
            told = " and ".join(profiles)
            yield f"{kind} is in two profiles, {told}: a balance is at work, or was broken off"
    yield from _room_problems(status)
    scrub = status.last_scrub
    if scrub and scrub.uncorrectable_errors:
        yield f"the last scrub found {scrub.uncorrectable_errors} errors that it could not correct"
    elif scrub and scrub.errors:
        # Not all kernels count what a scrub corrects among the errors of the device (6.12, measured).
        yield f"the last scrub found {scrub.errors} errors and corrected them: a disk fails, or was away"


def _member_problems(status: ArrayStatus, member: MemberStatus) -> Iterator[str]:
    if not member.is_there:
        yield f"{member.device} is not there"
    if member.problem:
        yield f"{member.device}: {member.problem}"
    counted = [f"{count} of {what}" for what, count in member.errors.items() if count]
    if counted:
        yield (
            f"{member.device} has counted errors: {', '.join(counted)};"
            f" btrfs device stats -z {status.mount_point} sets them to zero once they are dealt with"
        )


def _room_problems(status: ArrayStatus) -> Iterator[str]:
    room = status.room
    if room and room.metadata_headroom_bytes < min(LOW_METADATA_BYTES, room.total_bytes // 100):
        yield (
            f"only {format_size(room.metadata_headroom_bytes)} left for metadata: receives will fail;"
            f" btrfs balance start -dusage=10 {status.mount_point} frees chunks of data"
        )
