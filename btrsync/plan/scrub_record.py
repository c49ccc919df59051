"""What btrfs-scrub(8) writes down of the last scrub of a filesystem, added up over its devices.

Source: cmds/scrub.c of btrfs-progs: a line "scrub status:1", then one for each device: UUID and devid,
and "|NAME:VALUE" for each counter.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

HEADER = "scrub status:1"


class Scrub(msgspec.Struct, frozen=True, kw_only=True):
    """The last scrub: `started` in UTC, `seconds` of the slowest device, bytes and errors of all."""

    started: datetime
    seconds: int
    bytes_scrubbed: int
    corrected_errors: int
    uncorrectable_errors: int
    other_errors: int
    is_finished: bool
    is_canceled: bool

    @property
    def errors(self) -> int:
        """All that were found. `btrfs scrub` exits 0 where it could correct them: this is what tells."""
        return self.corrected_errors + self.uncorrectable_errors + self.other_errors


def parse_scrub_record(text: str) -> Scrub | None:
    """Return the last scrub, None if the record is none or holds no device."""
    lines = text.splitlines()
    if not lines or lines[0] != HEADER:
        return None
    devices = [dict(_fields(line)) for line in lines[1:] if "|" in line]
    if not devices:
        return None

    def total(*names: str) -> int:
        return sum(device.get(name, 0) for device in devices for name in names)

    return Scrub(
        started=datetime.fromtimestamp(min(device.get("t_start", 0) for device in devices), UTC),
        seconds=max(device.get("duration", 0) for device in devices),
        bytes_scrubbed=total("data_bytes_scrubbed", "tree_bytes_scrubbed"),
        corrected_errors=total("corrected_errors"),
        uncorrectable_errors=total("uncorrectable_errors"),
        other_errors=total("super_errors", "malloc_errors"),
        # One that was canceled is marked finished, too (6.14, measured).
        is_finished=all(device.get("finished", 0) and not device.get("canceled", 0) for device in devices),
        is_canceled=any(device.get("canceled", 0) for device in devices),
    )


def _fields(line: str) -> list[tuple[str, int]]:
    pairs = [field.partition(":") for field in line.split("|")[1:]]
    return [(name, int(value)) for name, _, value in pairs if value.isdecimal()]
