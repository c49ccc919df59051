"""Plain dm-crypt mappings: the commands here, the mappings where there is a kernel for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import dmcrypt
from harness.filesystem import Array, mount
from harness.loop import LoopDevice

if TYPE_CHECKING:
    from harness.host import Host

KEY = Path("/keys/array.key")


def test_a_mapping_is_opened_as_the_original_did() -> None:
    assert dmcrypt.open_argv(Path("/dev/loop3"), "btrdm_01", KEY) == [
        "cryptsetup", "open", "--type", "plain",
        "--cipher", "twofish-xts-plain", "--key-size", "512", "--key-file", "/keys/array.key", "--offset", "0",
        "/dev/loop3", "btrdm_01",
    ]  # fmt: skip


def test_another_cipher_key_size_and_offset_are_spelled() -> None:
    argv = dmcrypt.open_argv(
        Path("/dev/sdb"), "x", KEY, cipher="aes-xts-plain64", key_bits=256, offset_sectors=2048
    )
    for words in (["--cipher", "aes-xts-plain64"], ["--key-size", "256"], ["--offset", "2048"]):
        assert argv[argv.index(words[0]) + 1] == words[1]


def test_a_mapping_is_closed_with_its_last_user() -> None:
    assert dmcrypt.close_argv("btrdm_01") == ["cryptsetup", "close", "--deferred", "btrdm_01"]
    assert dmcrypt.close_argv("btrdm_01", deferred=False) == ["cryptsetup", "close", "btrdm_01"]


def test_names_are_the_original_s() -> None:
    assert [dmcrypt.NAME.format(number=number) for number in (1, 2, 10)] == [
        "btrdm_01",
        "btrdm_02",
        "btrdm_10",
    ]


def test_a_key_is_root_s_alone_and_long_enough(tmp_path: Path) -> None:
    path = dmcrypt.write_key(tmp_path / "key")
    assert path.stat().st_size == 64
    assert oct(path.stat().st_mode & 0o777) == "0o400"
    assert dmcrypt.write_key(tmp_path / "other", b"k" * 32).read_bytes() == b"k" * 32
    assert path.read_bytes() != dmcrypt.write_key(tmp_path / "third").read_bytes()


def test_nothing_is_open_before_and_closing_nothing_is_no_mistake(tmp_path: Path) -> None:
    mapping = dmcrypt.Mapping(Path("/dev/null"), f"btrsync-none-{os.getpid()}", tmp_path / "key")
    assert not mapping.is_open
    mapping.__exit__()
    assert not mapping.device.exists()


@pytest.mark.vm
@pytest.mark.requires("dm_crypt", "btrfs", "host")
def test_an_array_lies_on_mappings_and_goes_with_its_umount(tmp_path: Path, daisy: Host) -> None:
    key = dmcrypt.write_key(tmp_path / "key")
    with LoopDevice(256 << 20) as one, LoopDevice(256 << 20) as two:
        with dmcrypt.mappings([one.device, two.device], key) as mappings:
            with Array(2, devices=[mapping.device for mapping in mappings]) as array:
                with mount(array, "/MirrorRoot", host=daisy) as path:
                    for mapping in mappings:
                        mapping.defer_close()
                    (path / "file").write_text("words")
                    assert all(mapping.is_open for mapping in mappings)
        assert not any(mapping.is_open for mapping in mappings)
        assert b"_BHRfS_M" not in one.device.read_bytes()[65536 : 65536 + 4096], "on the disk there is noise"


@pytest.mark.vm
@pytest.mark.requires("dm_crypt")
def test_a_wrong_key_opens_without_a_word_and_shows_noise(tmp_path: Path) -> None:
    right, wrong = dmcrypt.write_key(tmp_path / "right"), dmcrypt.write_key(tmp_path / "wrong")
    with LoopDevice(256 << 20) as loop:
        with dmcrypt.Mapping(loop.device, "btrdm_01", right) as mapping:
            mapping.device.write_bytes(b"words")
        with dmcrypt.Mapping(loop.device, "btrdm_01", wrong) as mapping:
            assert mapping.device.read_bytes()[:5] != b"words"
        with dmcrypt.Mapping(loop.device, "btrdm_01", right) as mapping:
            assert mapping.device.read_bytes()[:5] == b"words"
