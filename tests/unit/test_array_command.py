"""`btrsync array`: what it shows of a status, what it says of a wrong name, what the shell completes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click
import msgspec
import pytest

from btrsync.array.setup import array_setup, mapping_name
from btrsync.array.status import ArrayStatus, MemberStatus, Room
from btrsync.commands import array as array_command
from btrsync.config import load_server
from btrsync.errors import ConfigError, StorageError
from btrsync.plan.scrub_record import Scrub
from btrsync.system.dmcrypt import Key

if TYPE_CHECKING:
    from collections.abc import Callable

ARRAYS = Path(__file__).parent / "config/valid/server-arrays.toml"
NOW = datetime(2026, 11, 22, 21, 30, tzinfo=UTC)
TIB = 1 << 40
COUNTERS = dict.fromkeys(("write", "read", "flush", "corruption", "generation"), 0)


def disk(number: int, **words: Any) -> MemberStatus:
    known: dict[str, Any] = {
        "device": f"/dev/disk/by-id/ata-{number}", "mapping": mapping_name("btrdm_", number),
        "is_there": True, "is_open": True,
        "devid": number, "total_bytes": 3 * TIB, "allocated_bytes": TIB, "errors": COUNTERS,
    }  # fmt: skip
    return MemberStatus(**(known | words))


WELL = ArrayStatus(
    name="mirror",
    state="open",
    uuid=UUID("7ebc7d8d-35c6-4d98-8457-3323c242e9fe"),
    mount_point="/MirrorRoot",
    is_mounted=True,
    members=(disk(1), disk(2)),
    profiles={"data": ("single",), "metadata": ("raid1",), "system": ("raid1",)},
    room=Room(
        total_bytes=6 * TIB, available_bytes=4 * TIB, metadata_free_bytes=1 << 30, unallocated_bytes=4 * TIB
    ),
    last_scrub=Scrub(
        started=NOW - timedelta(days=3),
        seconds=7200,
        bytes_scrubbed=2 * TIB,
        corrected_errors=0,
        uncorrectable_errors=0,
        other_errors=0,
        is_finished=True,
        is_canceled=False,
    ),
)
BADLY = msgspec.structs.replace(
    WELL,
    is_degraded=True,
    is_readonly=True,
    members=(
        disk(1, errors=COUNTERS | {"corruption": 7}),
        disk(2, is_there=False, is_open=False, devid=None, total_bytes=None, allocated_bytes=None, errors={}),
    ),
    last_scrub=None,
    problems=("degraded: devid 2 missing; give it a new disk with btrsync array replace",),
)
CLOSED = ArrayStatus(
    name="old", state="closed", uuid=None, mount_point="/mnt", is_mounted=False,
    members=(MemberStatus(device="/dev/sdx", mapping="old_01", is_there=True, is_open=False),),
)  # fmt: skip


def test_statuses_are_shown_as_they_always_were(
    golden: Callable[[str], Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_command, "now", lambda: NOW)
    for status in (WELL, BADLY, CLOSED):
        array_command.show_status(status)
    golden("array-status.txt").check(capsys.readouterr().out)


def setup_of(name: str, credentials: Path | None = None) -> Any:
    return array_setup(load_server(ARRAYS), name, lock_directory=Path("/run/none"), credentials=credentials)


def test_mappings_are_numbered_by_the_configuration() -> None:
    assert [(str(one.device), one.name) for one in setup_of("mirror").wanted] == [
        ("/dev/disk/by-id/ata-foo", "btrdm_01"),
        ("/dev/disk/by-id/ata-bar", "btrdm_02"),
        ("/dev/disk/by-id/ata-baz", "btrdm_03"),
        ("/dev/disk/by-id/ata-quux", "btrdm_04"),
    ]


def test_a_key_is_raw_or_a_passphrase_as_the_configuration_says() -> None:
    assert setup_of("mirror").needed_key() == Key(Path("/home/foo/key"))
    given = Path("/run/credentials/x")
    assert setup_of("typed", given).needed_key() == Key(given / "typed-passphrase", is_passphrase=True)
    assert setup_of("new", given).needed_key() == Key(given / "new-key")
    with pytest.raises(StorageError, match=r"new-key, and [$]CREDENTIALS_DIRECTORY is not set"):
        setup_of("new").needed_key()


def test_an_unknown_array_is_told_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="there is no such table; arrays are mirror, typed, new"):
        setup_of("miror")


def test_the_shell_completes_arrays() -> None:
    context = click.Context(array_command.open_command)
    context.params["file"] = ARRAYS
    parameter = array_command.open_command.params[0]
    assert array_command.complete_arrays(context, parameter, "m") == ["mirror"]
    assert array_command.complete_arrays(context, parameter, "") == ["mirror", "new", "typed"]
    context.params["file"] = ARRAYS / "nowhere"
    assert array_command.complete_arrays(context, parameter, "") == []
