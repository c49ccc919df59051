"""Plain dm-crypt mappings, as the original's array had them; only where the kernel has dm-crypt.

There is no udevd in a host or a guest: DM_DISABLE_UDEV makes the tools create the nodes
themselves. Host commands used: `cryptsetup`, `dmsetup`.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

from harness import command, ledger, wait

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CIPHER = "twofish-xts-plain"
KEY_BITS = 512
NAME = "btrdm_{number:02}"
"""The original's names: btrdm_01, btrdm_02, …"""
ENVIRONMENT = {"DM_DISABLE_UDEV": "1"}
MAPPER = Path("/dev/mapper")
CLOSE_S = 10.0


def open_argv(
    device: Path,
    name: str,
    key_file: Path,
    *,
    cipher: str = CIPHER,
    key_bits: int = KEY_BITS,
    offset_sectors: int = 0,
) -> list[str]:
    """Return the command that opens a plain mapping. No wrong key or cipher makes it fail.

    key_bits: the key file must hold so many. No `--hash`: with a key file it is ignored, and
    cryptsetup says so on stderr (measured, 2.6.1 to 2.8.8).
    """
    return [
        "cryptsetup", "open", "--type", "plain",
        "--cipher", cipher,
        "--key-size", str(key_bits),
        "--key-file", str(key_file),
        "--offset", str(offset_sectors),
        str(device), name,
    ]  # fmt: skip


def close_argv(name: str, *, deferred: bool = True) -> list[str]:
    """Return the command that closes a mapping; deferred: at once if unused, else with its last user."""
    return ["cryptsetup", "close", *(["--deferred"] if deferred else []), name]


def write_key(path: Path, key: bytes | None = None, *, bits: int = KEY_BITS) -> Path:
    """Write a key file, readable by root alone; random unless `key` is given. Returns the path."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o400)
    with os.fdopen(fd, "wb") as file:
        file.write(os.urandom(bits // 8) if key is None else key)
    return path


class Mapping:
    """A plain dm-crypt mapping: `with Mapping(loop.device, "btrdm_01", key) as mapping: mapping.device`.

    Call `defer_close` right after the array on it is mounted: then it goes with the umount, even
    after a SIGKILL. A wrong key gives noise without a word: that is what plain mappings do.
    """

    def __init__(
        self,
        device: Path,
        name: str,
        key_file: Path,
        *,
        cipher: str = CIPHER,
        key_bits: int = KEY_BITS,
        offset_sectors: int = 0,
    ) -> None:
        """Only remember what is wanted; entering opens it."""
        self.name = name
        self.device = MAPPER / name
        self._below = device
        self._argv = open_argv(
            device, name, key_file, cipher=cipher, key_bits=key_bits, offset_sectors=offset_sectors
        )
        self._entry: ledger.Entry | None = None
        self._is_deferred = False

    def __enter__(self) -> Self:
        """Open it. Raises CommandFailed, with what cryptsetup said."""
        if self.is_open:
            raise FileExistsError(f"{self.device} is open already, and not ours")
        # With the owner in the name of the entry only: the mapping's name is the original's.
        self._entry = ledger.acquire("mapping", name=self.name, device=str(self._below))
        try:
            command.run(self._argv, env=ENVIRONMENT)
        except BaseException:
            ledger.release(self._entry)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Close it and wait until it is gone."""
        if self.is_open and not self._is_deferred:
            self.defer_close()
        what = f"mapping {self.name} closed (still in use?)"
        wait.until(lambda: not self.is_open, timeout_s=CLOSE_S, what=what)
        self.device.unlink(missing_ok=True)
        ledger.release(self._entry)

    @property
    def is_open(self) -> bool:
        """Whether the kernel has a mapping of that name, whatever /dev/mapper shows."""
        return any(
            (directory / "dm" / "name").read_text().strip() == self.name
            for directory in Path("/sys/block").glob("dm-*")
            if (directory / "dm" / "name").exists()
        )

    def defer_close(self) -> None:
        """Let the kernel close it with its last user: now, if nobody uses it."""
        command.run(close_argv(self.name), env=ENVIRONMENT)
        self._is_deferred = True


@contextlib.contextmanager
def mappings(
    devices: Sequence[Path], key_file: Path, *, cipher: str = CIPHER
) -> Iterator[tuple[Mapping, ...]]:
    """Open one mapping for each device under the original's names, all with one key."""
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(Mapping(device, NAME.format(number=number), key_file, cipher=cipher))
            for number, device in enumerate(devices, 1)
        ]
        yield tuple(opened)
