"""What is written down of an array: in the configuration, in fstab, and that its making has not ended."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec

from btrsync.errors import ConfigError, StorageError, storage_error
from btrsync.plan import config_text
from btrsync.plan.fstab import FstabEdit, with_line
from btrsync.system.files import fsync_directory, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable

FSTAB: Final = Path("/etc/fstab")
STATE_DIRECTORY: Final = Path("/var/lib/btrsync")
BACKUP_SUFFIX: Final = ".btrsync~"


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """Files that making and changing an array writes."""

    configuration: Path
    fstab: Path = FSTAB
    state_directory: Path = STATE_DIRECTORY


def read_unfinished(places: Places, name: str) -> UUID | None:
    """Return the UUID of a `create` that has begun and not ended, None if there is none."""
    try:
        return UUID(_marker(places, name).read_text(encoding="ascii").strip())
    except (FileNotFoundError, ValueError):
        return None
    except OSError as error:
        raise storage_error(error) from error


def write_unfinished(places: Places, name: str, uuid: UUID) -> None:
    """Write down, durably, that a filesystem of this UUID is being made."""
    try:
        places.state_directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomically(_marker(places, name), f"{uuid}\n".encode())
    except OSError as error:
        raise storage_error(error) from error


def remove_unfinished(places: Places, name: str) -> None:
    """Write down that it has been made."""
    try:
        with contextlib.suppress(FileNotFoundError):
            _marker(places, name).unlink()
            fsync_directory(places.state_directory)
    except OSError as error:
        raise storage_error(error) from error


def _marker(places: Places, name: str) -> Path:
    return places.state_directory / f"array-{name}.creating"


def record_uuid(places: Places, name: str, uuid: UUID, *, is_trial: bool = False) -> None:
    """Write the UUID into the array's table. is_trial: only raise ConfigError where that cannot be done."""
    _change_configuration(
        places,
        lambda text: config_text.with_uuid(text, name, uuid),
        f'write uuid = "{uuid}" into [arrays.{name}] by hand, then run this again',
        is_trial=is_trial,
    )


def add_member(places: Places, name: str, member: Path, *, is_trial: bool = False) -> None:
    """Write one more disk into the array's members."""
    _change_configuration(
        places,
        lambda text: config_text.with_member(text, name, str(member)),
        f"add {member} to members of [arrays.{name}] by hand, then run this again",
        is_trial=is_trial,
    )


def remove_member(places: Places, name: str, member: Path) -> None:
    """Take a disk out of the array's members."""
    _change_configuration(
        places,
        lambda text: config_text.without_member(text, name, str(member)),
        f"take {member} out of members of [arrays.{name}] by hand",
    )


def replace_member(places: Places, name: str, old: Path, new: Path) -> None:
    """Write the last member, `new`, in the place of `old`."""

    def change(text: str) -> str | None:
        shorter = config_text.without_member(text, name, str(new))
        return shorter and config_text.with_member_instead(shorter, name, str(old), str(new))

    _change_configuration(
        places, change, f"in members of [arrays.{name}], write {new} in the place of {old} by hand"
    )


def _change_configuration(
    places: Places, change: Callable[[str], str | None], by_hand: str, *, is_trial: bool = False
) -> None:
    path = places.configuration.resolve()
    try:
        text = path.read_bytes().decode()  # as it is: read_text would change its line ends
        changed = change(text)
        if changed is None:
            problem = "its layout is one that btrsync does not change by itself"
            raise ConfigError(places.configuration, [problem], hint=by_hand)
        if not is_trial and changed != text:
            _write_as_it_was(path, changed)
    except OSError as error:
        raise storage_error(error, hint=by_hand) from error


def write_fstab(places: Places, line: str, *, is_trial: bool = False) -> FstabEdit:
    """Put a line into fstab; the file as it was is kept beside it. is_trial: nothing is written."""
    path = places.fstab.resolve()
    try:
        text = path.read_bytes().decode(errors="surrogateescape") if path.exists() else ""
        edit = with_line(text, line)
        if edit.outcome != "there" and not is_trial:
            if path.exists():
                kept = path.with_name(path.name + BACKUP_SUFFIX)
                write_atomically(kept, text.encode(errors="surrogateescape"), 0o644)
            _write_as_it_was(path, edit.text)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", hint=f"add by hand: {line}") from error
    return edit


def _write_as_it_was(path: Path, text: str) -> None:
    """Write a file with the mode and the owner that it has, root's and 0644 if it is not there."""
    try:
        found = path.stat()
    except FileNotFoundError:
        write_atomically(path, text.encode(errors="surrogateescape"), 0o644)
        return
    owner = found.st_uid, found.st_gid
    write_atomically(path, text.encode(errors="surrogateescape"), stat.S_IMODE(found.st_mode), owner=owner)
