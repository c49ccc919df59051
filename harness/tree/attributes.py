"""The binary form of what xattrs hold: POSIX ACLs and file capabilities.

Written directly, so that neither setfacl nor setcap is needed. Sources: linux/posix_acl_xattr.h,
linux/capability.h.
"""

from __future__ import annotations

import struct

ACCESS_ACL = b"system.posix_acl_access"
DEFAULT_ACL = b"system.posix_acl_default"
CAPABILITY = b"security.capability"
COMPRESSION = b"btrfs.compression"

CAP_NET_BIND_SERVICE = 10
CAP_NET_RAW = 13

_ACL_VERSION = 2
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID = 0xFFFFFFFF
_CAP_REVISION_2_EFFECTIVE = 0x02000001


def encode_acl(users: dict[int, int], groups: dict[int, int], *, owner: int = 7, other: int = 0) -> bytes:
    """Return an ACL with entries for named users and groups, each id with its permission bits 0 to 7."""
    entries = [
        (_USER_OBJ, owner, _NO_ID),
        *((_USER, permissions, uid) for uid, permissions in sorted(users.items())),
        (_GROUP_OBJ, 5, _NO_ID),
        *((_GROUP, permissions, gid) for gid, permissions in sorted(groups.items())),
        (_MASK, 7, _NO_ID),
        (_OTHER, other, _NO_ID),
    ]
    return struct.pack("<I", _ACL_VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def encode_capability(*capabilities: int) -> bytes:
    """Return the permitted and effective file capabilities given by number, as setcap would."""
    bits = sum(1 << number for number in capabilities)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    return struct.pack("<5I", _CAP_REVISION_2_EFFECTIVE, low, 0, high, 0)
