"""What today's cryptsetup says to each option of the original's line, as docs/array.md tells it."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from harness import command, dmcrypt
from harness.loop import LoopDevice

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = [pytest.mark.vm, pytest.mark.requires("root", "loop", "btrfs", "dm_crypt")]

MIB = 1 << 20
NODE = "/dev/mapper/words"


@pytest.fixture
def disk() -> Iterator[Path]:
    with LoopDevice(128 * MIB, None, "words") as loop:
        yield loop.device


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return dmcrypt.write_key(tmp_path / "key")


def said_of(words: Sequence[str | Path], name: str = "words") -> command.Completed:
    return command.run(["cryptsetup", "open", "--type=plain", *words, name], env=dmcrypt.ENVIRONMENT, ok=None)


@contextmanager
def opened(*words: str | Path) -> Iterator[command.Completed]:
    said = said_of(words)
    try:
        yield said
    finally:
        command.run(["cryptsetup", "close", "words"], env=dmcrypt.ENVIRONMENT)


def table() -> str:
    return command.run(["dmsetup", "table", "--showkeys", "words"], env=dmcrypt.ENVIRONMENT).stdout


def the_originals(key: Path) -> list[str]:
    return ["--cipher=twofish-xts-plain", "--offset=0", f"--key-file={key}", "--key-size=512"]


def test_the_hash_is_ignored_with_a_key_file(disk: Path, key: Path) -> None:
    with opened("--hash=sha512", *the_originals(key), disk) as said:
        assert said.returncode == 0
        assert "--hash parameter is being ignored in plain mode with keyfile specified" in said.stdout
        with_hash = table()
    with opened(*the_originals(key), disk) as said:
        assert said.stdout + said.stderr == ""
        assert table() == with_hash
        assert key.read_bytes().hex() in with_hash


def test_without_a_cipher_another_is_taken_and_the_disk_opens_to_noise(disk: Path, key: Path) -> None:
    # Which one changed: aes-cbc-essiv:sha256 up to 2.6, aes-xts-plain64 from 2.7.
    with opened(f"--key-file={key}", disk) as said:
        assert said.returncode == 0
        assert " crypt aes-" in table()


def test_a_short_key_file_fails(disk: Path, key: Path) -> None:
    key.unlink()
    dmcrypt.write_key(key, b"k" * 40)
    said = said_of([*the_originals(key), disk])
    assert (said.returncode, "Cannot read requested amount of data." in said.stderr) == (1, True)


def test_a_disk_is_opened_once(disk: Path, key: Path) -> None:
    with opened(*the_originals(key), disk):
        said = said_of([*the_originals(key), disk], "again")
        assert (said.returncode, "in use" in said.stderr) == (5, True)


def test_a_mapping_in_use_is_tried_for_five_seconds_and_not_closed(disk: Path, key: Path) -> None:
    with opened(*the_originals(key), disk):
        with open(NODE, "rb"):
            began = time.monotonic()
            said = command.run(["cryptsetup", "close", "words"], env=dmcrypt.ENVIRONMENT, ok=None)
        assert said.returncode == 5
        assert 4 < time.monotonic() - began < 20


def test_with_a_wrong_key_mkfs_destroys_the_data_without_asking(
    disk: Path, key: Path, tmp_path: Path
) -> None:
    with opened(*the_originals(key), disk):
        command.run(["mkfs.btrfs", "-q", NODE])
        refused = command.run(["mkfs.btrfs", "-q", NODE], ok=None)
        assert (refused.returncode, "-f" in refused.stderr) == (1, True)
    wrong = dmcrypt.write_key(tmp_path / "wrong")
    with opened(*the_originals(wrong), disk) as said:
        assert (said.returncode, said.stderr) == (0, "")
        assert command.run(["blkid", "-p", NODE], ok=None).returncode == 2
        assert command.run(["mkfs.btrfs", "-q", NODE], ok=None).returncode == 0
    with opened(*the_originals(key), disk):
        said = command.run(["btrfs", "inspect-internal", "dump-super", NODE], ok=None)
        assert "bad magic" in said.stderr


@pytest.mark.parametrize(("mode", "is_repeated"), [("plain", True), ("plain64", False)])
def test_plain_counts_sectors_in_32_bits_and_plain64_does_not(
    mode: str, is_repeated: bool, disk: Path, key: Path
) -> None:
    written = []
    for first_sector in (0, 1 << 32):  # 2 TiB apart
        words = [
            f"--cipher=twofish-xts-{mode}",
            "--key-size=512",
            f"--key-file={key}",
            f"--skip={first_sector}",
        ]
        with opened(*words, disk):
            command.run(
                ["dd", "if=/dev/zero", f"of={NODE}", "oflag=direct", "bs=4096", "count=1", "status=none"]
            )
        command.run(["blockdev", "--flushbufs", disk])
        with disk.open("rb") as file:
            written.append(file.read(4096))
    assert (written[0] == written[1]) == is_repeated


def test_below_two_tebibytes_plain_and_plain64_are_the_same(disk: Path, key: Path) -> None:
    with opened(*the_originals(key), disk):
        command.run(["mkfs.btrfs", "-q", "-L", "same", NODE])
    with opened("--cipher=twofish-xts-plain64", "--key-size=512", f"--key-file={key}", disk):
        assert "same" in command.run(["blkid", "-p", NODE]).stdout
