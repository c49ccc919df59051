"""The words for cryptsetup, and what dmsetup says of a mapping."""

from __future__ import annotations

from pathlib import Path

import pytest

from btrsync.system.dmcrypt import Encryption, Key, Mapping, Wanted, open_argv, parse_table

WANTED = Wanted(Path("/dev/disk/by-id/ata-foo"), "btrdm_01")
PLAIN = Encryption(type="plain", cipher="twofish-xts-plain", key_size_bits=512)
BARE = Mapping(name="btrdm_01", uuid="CRYPT-PLAIN-btrdm_01", number="254:0")


def test_a_plain_mapping_is_opened_as_the_original_did_but_for_the_hash() -> None:
    assert open_argv(WANTED, PLAIN, Key(Path("/home/foo/key"))) == [
        "cryptsetup", "open", "--batch-mode", "--type", "plain",
        "--cipher", "twofish-xts-plain", "--key-size", "512", "--offset", "0",
        "--key-file", "/home/foo/key",
        "--", "/dev/disk/by-id/ata-foo", "btrdm_01",
    ]  # fmt: skip


def test_a_passphrase_is_hashed_and_in_no_word() -> None:
    hashed = Encryption(
        type="plain", cipher="aes-xts-plain64", key_size_bits=256, offset_sectors=8, hash="sha512"
    )
    argv = open_argv(WANTED, hashed, Key(Path("/root/phrase"), is_passphrase=True))
    assert argv[argv.index("--hash") + 1] == "sha512"
    assert argv[argv.index("--offset") + 1] == "8"
    assert "--key-file" not in argv
    assert not any("phrase" in word for word in argv)


def test_luks2_takes_its_parameters_from_its_header() -> None:
    argv = open_argv(WANTED, Encryption(type="luks2", cipher="aes-xts-plain64"), Key(Path("/k")))
    assert not {"--cipher", "--key-size", "--offset", "--hash"} & set(argv)
    assert "--serialize-memory-hard-pbkdf" in argv


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("0 262144 crypt twofish-xts-plain " + "0" * 128 + " 0 7:0 0", ("twofish-xts-plain", 512, "7:0", 0)),
        (
            "0 1 crypt aes-xts-plain64 :64:logon:cryptsetup:a-d0 0 8:16 32768 1 allow_discards",
            ("aes-xts-plain64", 512, "8:16", 32768),
        ),
    ],
)
def test_a_table_of_dm_crypt_is_read(table: str, expected: tuple[str, int, str, int]) -> None:
    found = parse_table(BARE, table)
    assert (found.cipher, found.key_size_bits, found.below, found.offset_sectors) == expected
    assert found.target == "crypt"


def test_another_kind_of_mapping_and_none_are_told_apart() -> None:
    assert parse_table(BARE, "0 2048 linear 8:0 0").target == "linear"
    assert parse_table(BARE, "").target is None
