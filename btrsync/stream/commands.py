r"""The commands of a send stream and their attributes, walked over blocks in memory.

A command is le32 payload length, le16 type, le32 CRC32C; its payload is attributes: le16 type, le16
length, data. From stream version 2 on the attribute DATA comes last and has no length: it is the rest.
Source: struct btrfs_cmd_header, struct btrfs_tlv_header, enum btrfs_send_cmd, fs/btrfs/send.h;
put_data_header(), fs/btrfs/send.c.
"""

from __future__ import annotations

import struct
from enum import IntEnum

COMMAND_HEADER = struct.Struct("<IHI")
ATTRIBUTE_HEADER = struct.Struct("<HH")


class Kind(IntEnum):
    """What a command does (enum btrfs_send_cmd)."""

    SUBVOL = 1
    SNAPSHOT = 2
    MKFILE = 3
    MKDIR = 4
    MKNOD = 5
    MKFIFO = 6
    MKSOCK = 7
    SYMLINK = 8
    RENAME = 9
    LINK = 10
    UNLINK = 11
    RMDIR = 12
    SET_XATTR = 13
    REMOVE_XATTR = 14
    WRITE = 15
    CLONE = 16
    TRUNCATE = 17
    CHMOD = 18
    CHOWN = 19
    UTIMES = 20
    END = 21
    UPDATE_EXTENT = 22
    FALLOCATE = 23
    FILEATTR = 24
    ENCODED_WRITE = 25


class Attribute(IntEnum):
    """What an attribute holds (enum with BTRFS_SEND_A_*)."""

    UUID = 1
    CTRANSID = 2
    INO = 3
    SIZE = 4
    MODE = 5
    UID = 6
    GID = 7
    RDEV = 8
    CTIME = 9
    MTIME = 10
    ATIME = 11
    OTIME = 12
    XATTR_NAME = 13
    XATTR_DATA = 14
    PATH = 15
    PATH_TO = 16
    PATH_LINK = 17
    FILE_OFFSET = 18
    DATA = 19
    CLONE_UUID = 20
    CLONE_CTRANSID = 21
    CLONE_PATH = 22
    CLONE_OFFSET = 23
    CLONE_LEN = 24
    FALLOCATE_MODE = 25
    FILEATTR = 26
    UNENCODED_FILE_LEN = 27
    UNENCODED_LEN = 28
    UNENCODED_OFFSET = 29
    COMPRESSION = 30
    ENCRYPTION = 31
