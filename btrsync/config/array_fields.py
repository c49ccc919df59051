"""What may be written in a table `[arrays.NAME]` of the server's configuration, and what must agree in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PREFIX_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
WORD_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._-]*")
CREDENTIAL_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
MOUNT_POINTS_NEVER: Final = frozenset({"/", "/boot", "/dev", "/etc", "/proc", "/run", "/sys", "/usr", "/var"})
KEY_NAMES: Final = ("key_file", "key_credential", "passphrase_file", "passphrase_credential")
LABEL_BYTES: Final = 255
"""BTRFS_LABEL_SIZE less its terminating zero."""

EncryptionType = Literal["plain", "luks2"]
KeyBits = Annotated[int, Meta(ge=128, le=4096)]


class ArrayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One btrfs of several encrypted disks, opened and closed by `btrsync array`."""

    members: Annotated[
        tuple[Path, ...],
        Meta(
            description="The disks, by names that stay: those below /dev/disk/by-id. Their order only"
            " numbers the mappings; btrfs knows its members by their UUIDs."
        ),
    ]
    mount_point: Annotated[Path, Meta(description="Directory that the array is mounted at.")]
    type: Annotated[
        EncryptionType,
        Meta(description="How the disks are encrypted: plain dm-crypt, which has no header, or LUKS2."),
    ] = "plain"
    cipher: Annotated[
        str | None,
        Meta(
            description='Cipher as cryptsetup names it, "twofish-xts-plain" for example. Plain dm-crypt'
            " stores it nowhere, so it must be written here and never be changed: with another the data"
            " is noise. With luks2 it counts when the array is created only.",
        ),
    ] = None
    key_size_bits: Annotated[
        KeyBits | None,
        Meta(
            description="Size of the key in bits; for xts that of both its halves, 512 for example. As with"
            " `cipher`, it must be written for plain.",
        ),
    ] = None
    offset_sectors: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 54,
            description="Sectors of 512 bytes at the beginning of each disk that are left alone. Plain only.",
        ),
    ] = 0
    key_file: Annotated[
        Path | None,
        Meta(
            description="File whose bytes are the key as they stand, not hashed. It must belong to root and"
            " be readable by root only; a longer one is cropped, a shorter one refused."
        ),
    ] = None
    key_credential: Annotated[
        str | None,
        Meta(
            description="The same as a systemd credential: its name, in a unit with LoadCredential= or"
            " LoadCredentialEncrypted=."
        ),
    ] = None
    passphrase_file: Annotated[
        Path | None,
        Meta(
            description="File with a passphrase of one line, as one would type it. With plain it is hashed"
            " with `hash`: the same bytes as a `key_file` are another key."
        ),
    ] = None
    passphrase_credential: Annotated[
        str | None, Meta(description="The same as a systemd credential, by its name.")
    ] = None
    hash: Annotated[
        str | None,
        Meta(
            description='Hash that makes a key of the passphrase, "sha512" for example. It must be written'
            " for plain with a passphrase, and not otherwise: cryptsetup ignores it for a key file.",
        ),
    ] = None
    mapping_prefix: Annotated[
        str,
        Meta(description="The mappings are named by this and two digits: /dev/mapper/btrdm_01 and so on."),
    ] = "btrdm_"
    uuid: Annotated[
        UUID | None,
        Meta(
            description="UUID of the filesystem, as blkid(8) shows it. Nothing is mounted that has another."
            " Written by `btrsync array create`."
        ),
    ] = None
    label: Annotated[
        str | None, Meta(description="Label of the filesystem; it counts when the array is created only.")
    ] = None
    options: Annotated[
        str,
        Meta(
            description="Mount options, with commas between, as in fstab(5). `space_cache` is left out"
            " where the filesystem has a free space tree, which it contradicts."
        ),
    ] = ""


def array_problems(key: str, array: ArrayConfig) -> Iterator[str]:
    """Yield what is wrong with one array, whose types are right; no file or disk is looked at."""
    from btrsync.config.checks import path_problems  # late: it imports this module's neighbour

    yield from _member_problems(f"{key}.members", array.members)
    yield from path_problems(f"{key}.mount_point", array.mount_point)
    if str(array.mount_point) in MOUNT_POINTS_NEVER:
        yield f"{key}.mount_point: {array.mount_point} belongs to the system; name another"
    yield from _encryption_problems(key, array)
    yield from _key_problems(key, array)
    for name in ("key_file", "passphrase_file"):
        path = getattr(array, name)
        if path is not None:
            yield from path_problems(f"{key}.{name}", path)
    if not PREFIX_PATTERN.fullmatch(array.mapping_prefix):
        yield (
            f"{key}.mapping_prefix: {array.mapping_prefix!r} is no beginning of a name; use 1 to 64 of"
            " A-Z a-z 0-9 . _ -, the first a letter or a digit"
        )
    if array.label is not None and (len(array.label.encode()) > LABEL_BYTES or "\n" in array.label):
        yield f"{key}.label: must be one line of at most {LABEL_BYTES} bytes; shorten it"
    if re.search(r"[\s\0]", array.options):
        yield f"{key}.options: contains a space; write options with commas and nothing else between"


def _member_problems(key: str, members: tuple[Path, ...]) -> Iterator[str]:
    from btrsync.config.checks import path_problems

    if not members:
        yield f"{key}: is empty; name the disks, as ls -l /dev/disk/by-id shows them"
    for index, member in enumerate(members):
        yield from path_problems(f"{key}[{index}]", member)
        if member in members[:index]:
            yield f"{key}[{index}]: {member} is there twice; remove one"
    if len(members) > 99:
        yield f"{key}: has {len(members)} disks, and mappings have two digits; keep to 99"


def _encryption_problems(key: str, array: ArrayConfig) -> Iterator[str]:
    for name in ("cipher", "hash"):
        word = getattr(array, name)
        if word is not None and not WORD_PATTERN.fullmatch(word):
            yield f"{key}.{name}: {word!r} is no name that cryptsetup knows; cryptsetup benchmark shows some"
    if array.key_size_bits is not None and array.key_size_bits % 8:
        yield f"{key}.key_size_bits: {array.key_size_bits} is no multiple of 8; it counts bits, as in 512"
    if array.type == "plain":
        for name, example in (("cipher", '"twofish-xts-plain"'), ("key_size_bits", "512")):
            if getattr(array, name) is None:
                yield (
                    f"{key}.{name}: is missing; plain dm-crypt stores it nowhere, and another one shows"
                    f" noise. Write what the disks were made with, {name} = {example} for example"
                )
    elif array.offset_sectors:
        yield f"{key}.offset_sectors: luks2 keeps it in its header; remove it"


def _key_problems(key: str, array: ArrayConfig) -> Iterator[str]:
    named = [name for name in KEY_NAMES if getattr(array, name) is not None]
    if not named:
        yield f'{key}: has no key; write key_file = "/FILE" for raw bytes, or passphrase_file = "/FILE"'
    elif len(named) > 1:
        yield f"{key}: has {' and '.join(named)}, which are different keys; keep the one that opens the disks"
    for name in ("key_credential", "passphrase_credential"):
        word = getattr(array, name)
        if word is not None and not CREDENTIAL_PATTERN.fullmatch(word):
            yield f"{key}.{name}: {word!r} is no name of a credential; write the one in LoadCredential="
    is_hashed = array.type == "plain" and any(name.startswith("passphrase") for name in named)
    if is_hashed and array.hash is None:
        yield (
            f"{key}.hash: is missing; it makes a key of the passphrase, and another one makes another key."
            ' Write what the disks were made with, hash = "sha512" for example'
        )
    if array.hash is not None and named and not is_hashed:
        why = "luks2 keeps its own" if array.type == "luks2" else "a raw key is not hashed"
        yield f"{key}.hash: has no meaning, since {why}; remove it"


def shared_array_problems(arrays: Mapping[str, ArrayConfig]) -> Iterator[str]:
    """Yield disks, mount points, names of mappings and UUIDs that two arrays would share."""
    for what in ("members", "mount_point", "mapping_prefix", "uuid"):
        seen: dict[object, str] = {}
        for name, array in arrays.items():
            value = getattr(array, what)
            for item in value if isinstance(value, tuple) else (value,):
                other = name if item is None else seen.setdefault(item, name)
                if other != name:
                    yield f"arrays.{name}.{what}: {item} is that of arrays.{other} too; correct one of them"
