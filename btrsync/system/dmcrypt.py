"""Mappings of dm-crypt, plain or LUKS2: opening several at once, seeing what is open, closing.

Plain dm-crypt accepts any key and any cipher: a mapping that opened proves nothing. A key never stands
in an argv or a log; a passphrase goes through a pipe. A raw key and a hashed passphrase are different
keys, and `Key` says which of them it is.

Host commands used: `cryptsetup`, `dmsetup`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from btrsync.errors import CommandError, StorageError
from btrsync.system import process

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Mapping as MappingOf

MAPPER: Final = Path("/dev/mapper")
DEVICE_MAPPER: Final = Path("/sys/class/misc/device-mapper")
UDEV_CONTROL: Final = Path("/run/udev/control")
SECTOR_BYTES: Final = 512
MAX_PASSPHRASE_BYTES: Final = 512
"""What cryptsetup reads of a passphrase at most (DEFAULT_PASSPHRASE_SIZE_MAX)."""
IN_USE_STATUS: Final = 5
OPEN_TIMEOUT_S: Final = 120.0
CLOSE_TIMEOUT_S: Final = 60.0


class Encryption(msgspec.Struct, frozen=True, kw_only=True):
    """How disks are encrypted. For luks2 the header says all; what stands here is for creating one."""

    type: Literal["plain", "luks2"]
    cipher: str | None = None
    key_size_bits: int | None = None
    offset_sectors: int = 0
    hash: str | None = None


class Key(msgspec.Struct, frozen=True):
    """Where the key is: a file of raw bytes, or with `is_passphrase` one that holds a passphrase."""

    file: Path
    is_passphrase: bool = False


class Wanted(msgspec.Struct, frozen=True):
    """A mapping to be opened: the disk below it, and its name; is_readonly: only to look through it."""

    device: Path
    name: str
    is_readonly: bool = False


class Mapping(msgspec.Struct, frozen=True, kw_only=True):
    """An open mapping as the kernel tells it. `below`: device number of the disk, like "8:16".

    `cipher` is None where it has no table of dm-crypt: begun and never finished, or of another kind.
    """

    name: str
    uuid: str
    number: str
    below: str | None = None
    cipher: str | None = None
    key_size_bits: int | None = None
    offset_sectors: int = 0
    target: str | None = None

    @property
    def device(self) -> Path:
        return MAPPER / self.name

    @property
    def is_luks2(self) -> bool:
        return self.uuid.startswith("CRYPT-LUKS2-")


def environment() -> MappingOf[str, str]:
    """Return what the tools need in their environment: without udevd they make the nodes themselves."""
    return {} if UDEV_CONTROL.exists() else {"DM_DISABLE_UDEV": "1"}


def device_number(device: Path) -> str:
    """Return the number of a block device, like "8:16". Raises StorageError if it is none."""
    try:
        found = os.stat(device)
    except OSError as error:
        raise StorageError(f"{device}: {os.strerror(error.errno or 0).lower()}") from error
    if not stat.S_ISBLK(found.st_mode):
        raise StorageError(f"{device} is not a block device")
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"


def open_argv(wanted: Wanted, encryption: Encryption, key: Key) -> list[str]:
    """Return the command that opens one mapping; a passphrase is read from its stdin, up to a newline.

    Source: cryptsetup-open(8), "Notes on passphrase processing": a key file is used raw and cropped to
    the key's size, in plain mode never hashed; `--key-file=-` would be hashed in plain mode.
    """
    options = []
    if encryption.type == "plain":
        options = [
            "--cipher", encryption.cipher or "",
            "--key-size", str(encryption.key_size_bits),
            "--offset", str(encryption.offset_sectors),
            *(["--hash", encryption.hash or ""] if key.is_passphrase else []),
        ]  # fmt: skip
    else:
        options = ["--serialize-memory-hard-pbkdf"]
    return [
        "cryptsetup", "open",
        "--batch-mode",
        "--type", encryption.type,
        *options,
        *(["--readonly"] if wanted.is_readonly else []),
        *([] if key.is_passphrase else ["--key-file", os.fspath(key.file)]),
        "--", os.fspath(wanted.device), wanted.name,
    ]  # fmt: skip


def format_argv(device: Path, encryption: Encryption, key: Key) -> list[str]:
    """Return the command that writes a LUKS2 header; a passphrase is read from its stdin, up to a newline."""
    return [
        "cryptsetup", "luksFormat",
        "--batch-mode",
        "--type", "luks2",
        *(["--cipher", encryption.cipher] if encryption.cipher else []),
        *(["--key-size", str(encryption.key_size_bits)] if encryption.key_size_bits else []),
        *([] if key.is_passphrase else ["--key-file", os.fspath(key.file)]),
        "--", os.fspath(device),
    ]  # fmt: skip


def format_luks2(device: Path, encryption: Encryption, key: Key) -> None:
    """Write a LUKS2 header: what the disk held is lost. Raises StorageError of an unfit key, CommandError."""
    with checked_key(key, encryption) as key_fd, ExitStack() as running:
        given = key if key.is_passphrase else Key(Path(f"/dev/fd/{key_fd}"))
        stdin = process.DEVNULL
        if key.is_passphrase:
            stdin = running.enter_context(_pipe_holding(_passphrase(key_fd, key.file) + b"\n"))
        passed = [] if key.is_passphrase else [key_fd]
        argv = format_argv(device, encryption, given)
        formatting = process.spawn(argv, stdin=stdin, env=environment(), pass_fds=passed)
        exit = running.enter_context(formatting).wait(OPEN_TIMEOUT_S)
    if exit.has_failed:
        raise CommandError(exit, hint=f"the disk was {device}")


@contextmanager
def checked_key(key: Key, encryption: Encryption) -> Iterator[int]:
    """The open descriptor of a key that is fit: root's, closed to others, and long enough.

    Raises StorageError with what is wrong; what the file holds is in no message.
    """
    what = "passphrase" if key.is_passphrase else "key file"
    try:
        fd = os.open(key.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise StorageError(f"{what} {key.file}: {os.strerror(error.errno or 0).lower()}") from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise StorageError(f"{what} {key.file} is not a regular file")
        if found.st_uid != 0:
            raise StorageError(
                f"{what} {key.file} belongs to user {found.st_uid}, who could read or change it",
                hint=f"chown root: {key.file}",
            )
        if found.st_mode & 0o177:
            raise StorageError(
                f"{what} {key.file} has mode {stat.S_IMODE(found.st_mode):04o}, not 0400 or 0600",
                hint=f"chmod 600 {key.file}",
            )
        if key.is_passphrase:
            _passphrase(fd, key.file)
        else:
            _check_size(found.st_size, key.file, encryption)
        yield fd
    finally:
        os.close(fd)


def _check_size(size_bytes: int, file: Path, encryption: Encryption) -> None:
    if size_bytes == 0:
        raise StorageError(f"key file {file} is empty")
    needed = (encryption.key_size_bits or 0) // 8
    if encryption.type == "plain" and size_bytes < needed:
        raise StorageError(
            f"key file {file} holds {size_bytes} bytes, and a key of {needed * 8} bits needs {needed}",
            hint="if it is a passphrase, that is another key: write passphrase_file, and the hash",
        )


def _passphrase(fd: int, file: Path) -> bytes:
    """Return the one line of a passphrase file, without the newline that an editor ends it with."""
    text = os.pread(fd, MAX_PASSPHRASE_BYTES + 2, 0).removesuffix(b"\n")
    if not text:
        raise StorageError(f"passphrase {file} is empty")
    if b"\n" in text:
        raise StorageError(f"passphrase {file} has more than one line; cryptsetup would read the first only")
    if len(text) > MAX_PASSPHRASE_BYTES:
        raise StorageError(f"passphrase {file} is longer than {MAX_PASSPHRASE_BYTES} bytes")
    return text


def open_mappings(wanted: Sequence[Wanted], encryption: Encryption, key: Key) -> None:
    """Open several mappings at once. If one fails, those that this call opened are closed again.

    None of the names is open before. Raises StorageError of an unfit key; CommandError, whose message
    names the disk, and what cryptsetup said.
    """
    with checked_key(key, encryption) as key_fd, ExitStack() as undo:
        given = key if key.is_passphrase else Key(Path(f"/dev/fd/{key_fd}"))
        with ExitStack() as running:
            begun = []
            for one in wanted:
                undo.callback(_close_quietly, one.name)
                stdin = process.DEVNULL
                if key.is_passphrase:
                    stdin = running.enter_context(_pipe_holding(_passphrase(key_fd, key.file) + b"\n"))
                argv = open_argv(one, encryption, given)
                passed = [] if key.is_passphrase else [key_fd]
                begun.append(
                    running.enter_context(
                        process.spawn(argv, stdin=stdin, env=environment(), pass_fds=passed)
                    )
                )
            # Each is waited for, so that none is still opening what is closed again below.
            exits = [one.wait(OPEN_TIMEOUT_S) for one in begun]
        for one, exit in zip(wanted, exits, strict=True):
            if exit.has_failed:
                raise CommandError(exit, hint=_open_hint(one, exit.returncode, exit.stderr))
        undo.pop_all()


def _open_hint(wanted: Wanted, returncode: int, stderr: str) -> str | None:
    if returncode == IN_USE_STATUS:
        users = holders(wanted.device)
        return f"{wanted.device} is in use" + (f" by {', '.join(users)}" if users else "; is it mounted?")
    if "device-mapper" in stderr:
        return "modprobe dm_crypt; a kernel without it cannot open the array"
    return f"the disk was {wanted.device}"


@contextmanager
def _pipe_holding(content: bytes) -> Iterator[int]:
    reading, writing = os.pipe()
    try:
        os.write(writing, content)  # far less than a pipe holds
        os.close(writing)
        yield reading
    finally:
        os.close(reading)


def mappings() -> dict[str, Mapping]:
    """Return all mappings of the device mapper, by name; {} where the kernel has no device mapper.

    Asked of dmsetup: /sys does not show one whose table was never loaded. It shows zeros for a key.
    Raises CommandError.
    """
    if not DEVICE_MAPPER.exists():
        return {}
    columns = ["--columns", "--noheadings", "--separator", "/", "--options", "name,major,minor,uuid"]
    listed = process.run(["dmsetup", "info", *columns], env=environment()).stdout.decode(errors="replace")
    tables = process.run(["dmsetup", "table"], env=environment()).stdout.decode(errors="replace")
    found = {}
    for line in listed.splitlines():
        if line.count("/") < 3:  # "No devices found"
            continue
        name, major, minor, uuid = line.split("/", 3)
        table = next((row for row in tables.splitlines() if row.startswith(f"{name}: ")), "")
        bare = Mapping(name=name, uuid=uuid, number=f"{major}:{minor}")
        found[name] = parse_table(bare, table.removeprefix(f"{name}: "))
    return found


def parse_table(mapping: Mapping, table: str) -> Mapping:
    """Return the mapping with what `dmsetup table` says of it.

    Source: Documentation/admin-guide/device-mapper/dm-crypt.rst: start, sectors, "crypt", cipher, key,
    IV offset, device, offset; the key is hexadecimal, or :SIZE:TYPE:NAME in the kernel's keyring.
    """
    words = table.split()
    if len(words) < 3:
        return mapping
    if words[2] != "crypt" or len(words) < 8:
        return msgspec.structs.replace(mapping, target=words[2])
    cipher, key, _, below, offset = words[3:8]
    size_bytes = int(key.split(":")[1]) if key.startswith(":") else len(key) // 2
    return msgspec.structs.replace(
        mapping,
        target="crypt",
        cipher=cipher,
        key_size_bits=size_bytes * 8,
        below=below,
        offset_sectors=int(offset),
    )


def difference(mapping: Mapping, device: Path, encryption: Encryption) -> str | None:
    """Return in words why an open mapping is not the one wanted; None if it is, but for its key."""
    if mapping.target != "crypt":
        return f"is no mapping of dm-crypt but {mapping.target or 'one without a table'}"
    if mapping.below != device_number(device):
        return f"lies on the device {mapping.below}, and {device} is {device_number(device)}"
    if mapping.is_luks2 != (encryption.type == "luks2"):
        return f"is not of the type {encryption.type}"
    if encryption.type == "plain":
        for what, found, wanted in (
            ("the cipher", mapping.cipher, encryption.cipher),
            ("a key of bits", mapping.key_size_bits, encryption.key_size_bits),
            ("the offset in sectors", mapping.offset_sectors, encryption.offset_sectors),
        ):
            if found != wanted:
                return f"has {what} {found}, and {wanted} is configured"
    return None


def holders(device: Path) -> list[str]:
    """Return the names of what the kernel has stacked on a device: mappings by name, others as they are."""
    try:
        number = device_number(device)
        above = sorted(Path(f"/sys/dev/block/{number}/holders").iterdir())
    except (StorageError, OSError):
        return []
    names = []
    for directory in above:
        try:
            names.append(str(MAPPER / (directory / "dm/name").read_text().strip()))
        except OSError:
            names.append(f"/dev/{directory.name}")
    return names


def make_nodes(names: Sequence[str]) -> None:
    """Make those nodes in /dev/mapper that are missing: a run that was killed opened, and made none."""
    missing = [name for name in names if not (MAPPER / name).exists()]
    if missing:
        process.run(["dmsetup", "mknodes", "--", *missing], env=environment())


def rename_mapping(name: str, new_name: str) -> None:
    """Give an open mapping another name, also while it is in use. Raises CommandError."""
    process.run(["dmsetup", "rename", "--", name, new_name], env=environment())


def close_mappings(found: Sequence[Mapping]) -> None:
    """Close several mappings at once; cryptsetup tries 5 s for one in use. Raises CommandError."""
    with ExitStack() as running:
        begun = [running.enter_context(process.spawn(_close_argv(one), env=environment())) for one in found]
        exits = [one.wait(CLOSE_TIMEOUT_S) for one in begun]
    for exit in exits:
        if exit.has_failed:
            raise CommandError(exit)


def _close_argv(mapping: Mapping) -> list[str]:
    if mapping.target is None:
        # Begun and never finished: cryptsetup does not take it for one of its own.
        return ["dmsetup", "remove", "--", mapping.name]
    return ["cryptsetup", "close", "--", mapping.name]


def _close_quietly(name: str) -> None:
    found = mappings().get(name)
    if found is not None:
        with contextlib.suppress(CommandError):
            close_mappings([found])
