"""An array as this machine would open it: its disks by their mappings' names, its encryption, its key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from btrsync.config import ArrayConfig
from btrsync.errors import ConfigError, StorageError
from btrsync.system import dmcrypt
from btrsync.system.dmcrypt import Encryption, Key, Wanted
from btrsync.system.lock import Lock

if TYPE_CHECKING:
    from btrsync.config import ServerConfig

LOCK_WAIT_S: Final = 10.0


class ArraySetup(msgspec.Struct, frozen=True, kw_only=True):
    """What the configuration says of one array; `key` is None for a credential that we were not given."""

    name: str
    config: ArrayConfig
    encryption: Encryption
    key: Key | None
    lock_directory: Path

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """The mapping of each disk, in the order of the configuration."""
        return tuple(
            Wanted(member, mapping_name(self.config.mapping_prefix, number))
            for number, member in enumerate(self.config.members, 1)
        )

    def lock(self) -> Lock:
        """Return the lock that keeps two commands from changing this array at once."""
        self.lock_directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        path = self.lock_directory / f"array-{self.name}.lock"
        return Lock(path, f"array {self.name} is being worked on", wait_s=LOCK_WAIT_S)

    def needed_key(self) -> Key:
        """Return the key. Raises StorageError if it is a credential and this process has none."""
        if self.key is None:
            credential = self.config.key_credential or self.config.passphrase_credential
            raise StorageError(
                f"array {self.name}: its key is the systemd credential {credential},"
                " and $CREDENTIALS_DIRECTORY is not set",
                hint=f"run it in a unit with LoadCredential={credential}:FILE",
            )
        return self.key

    def open_mappings(self) -> dict[str, dmcrypt.Mapping]:
        """Return those of its mappings that are open, by name."""
        names = {wanted.name for wanted in self.wanted}
        return {name: one for name, one in dmcrypt.mappings().items() if name in names}


def mapping_name(prefix: str, number: int) -> str:
    """Return the name of a mapping: "btrdm_01" for the first disk."""
    return f"{prefix}{number:02}"


def array_setup(
    config: ServerConfig, name: str, *, lock_directory: Path, credentials: Path | None
) -> ArraySetup:
    """Return the array of that name.

    lock_directory: for the lock, made if missing. credentials: the directory of systemd's credentials
    ($CREDENTIALS_DIRECTORY), None outside a unit. Raises ConfigError for an unknown name.
    """
    if name not in config.arrays:
        known = ", ".join(config.arrays) or "none"
        raise ConfigError(
            config.file or "configuration",
            [f"arrays.{name}: there is no such table; arrays are {known}"],
        )
    array = config.arrays[name]
    encryption = Encryption(
        type=array.type,
        cipher=array.cipher,
        key_size_bits=array.key_size_bits,
        offset_sectors=array.offset_sectors,
        hash=array.hash,
    )
    return ArraySetup(
        name=name,
        config=array,
        encryption=encryption,
        key=_key(array, credentials),
        lock_directory=lock_directory,
    )


def _key(array: ArrayConfig, credentials: Path | None) -> Key | None:
    is_passphrase = array.passphrase_file is not None or array.passphrase_credential is not None
    file = array.key_file or array.passphrase_file
    if file is None and credentials is not None:
        file = credentials / (array.key_credential or array.passphrase_credential or "")
    return None if file is None else Key(file, is_passphrase)
