"""The volume group in the header of a physical volume of LVM2, so that a disk can be told by its name.

Layout: lib/format_text/layout.h and lib/label/label.h of lvm2; all numbers are little-endian.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from btrsync.plan.disk_contents import LvmGroup

LABEL_SCAN_BYTES: Final = 4 * 512
SECTOR_BYTES: Final = 512
HEAD_BYTES: Final = 1 << 20
"""How much of a device is enough: the text of a metadata area usually lies in the first mebibyte."""

_LABEL: Final = struct.Struct("<8sQII8s")  # "LABELONE", sector, crc, offset of the header, "LVM2 001"
_PLACE: Final = struct.Struct("<QQ")  # offset and size; a list of them ends with zeros
_AREA: Final = struct.Struct("<I16sIQQ")  # crc, magic, version, start, size
_TEXT: Final = struct.Struct("<QQII")  # offset in the area, size, crc, flags
_AREA_MAGIC: Final = b" LVM2 x[5A%r0N*>"
_PV_HEADER_LISTS_AT: Final = 32 + 8  # UUID, size of the device


def parse_lvm_group(head: bytes) -> LvmGroup | None:
    """Return the group that a physical volume belongs to; None for one of no group, or no such volume.

    head: the first HEAD_BYTES of the device.
    """
    try:
        for label_at in range(0, LABEL_SCAN_BYTES, SECTOR_BYTES):
            magic, _, _, offset, kind = _LABEL.unpack_from(head, label_at)
            if magic == b"LABELONE" and kind == b"LVM2 001":
                return _from_header(head, label_at + offset)
    except struct.error:
        return None
    return None


def _from_header(head: bytes, header_at: int) -> LvmGroup | None:
    at = header_at + _PV_HEADER_LISTS_AT
    at, _ = _places(head, at)  # of data
    _, areas = _places(head, at)
    for area_at, _ in areas:
        _, magic, _, _, area_bytes = _AREA.unpack_from(head, area_at)
        if magic != _AREA_MAGIC:
            continue
        offset, size, _, _ = _TEXT.unpack_from(head, area_at + _AREA.size)
        if size:
            # It goes round: what does not fit at the end of the area goes on after its header.
            text = head[area_at + offset : area_at + min(offset + size, area_bytes)]
            return _from_text(text.decode("ascii", errors="replace"))
    return None


def _places(head: bytes, at: int) -> tuple[int, list[tuple[int, int]]]:
    found: list[tuple[int, int]] = []
    while True:
        offset, size = _PLACE.unpack_from(head, at)
        at += _PLACE.size
        if not offset:
            return at, found
        found.append((offset, size))


def _from_text(text: str) -> LvmGroup | None:
    name = re.match(r"([A-Za-z0-9+_.-]+) \{", text)
    if name is None:
        return None
    volumes = text.partition("physical_volumes {")[2].partition("logical_volumes {")[0]
    return LvmGroup(name[1], len(re.findall(r"^pv\d+ \{", volumes, re.MULTILINE)))
