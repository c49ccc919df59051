"""Doctored peers: neighbouring protocol versions work together, far ones are told which end to upgrade."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from harness.scenario import KEY_FILE
from tests.network import mirror

if TYPE_CHECKING:
    from harness.scenario import TwoHosts

pytestmark = pytest.mark.requires("root", "loop", "btrfs", "host", "sshd")

BANNER_BYTES = 32


def banner(oldest: int, newest: int) -> str:
    return f"btrsync wire {oldest:03d}-{newest:03d}".ljust(BANNER_BYTES - 1)


def spoken(both: TwoHosts) -> tuple[int, int]:
    """Return the oldest and the newest version that the installed command speaks, from its own banner."""
    said = both.daisy.run([both.btrsync_path, "serve", "workstation"], ok=(0, 5)).stdout
    found = re.fullmatch(r"btrsync wire (\d{3})-(\d{3})", said[:BANNER_BYTES].strip())
    assert found, said
    return int(found[1]), int(found[2])


def doctor(both: TwoHosts, oldest: int, newest: int) -> None:
    """Let daisy's end say another banner; all else it says is its own."""
    script = (
        f"{both.forced_command()} | {{"
        f" dd bs={BANNER_BYTES} count=1 iflag=fullblock of=/dev/null status=none;"
        f" printf '%s\\n' '{banner(oldest, newest)}'; exec cat; }}"
    )
    both.daisy.write_text("/opt/doctored", f"#!/bin/sh\n{script}\n", mode=0o755)
    mirror.bind(both, "/opt/doctored")


def test_a_server_one_version_ahead_is_a_good_server(both: TwoHosts) -> None:
    oldest, newest = spoken(both)
    doctor(both, oldest, newest + 1)
    mirror.assert_mirrored(both, both.sync())
    mirror.change(both)
    synced = both.sync()
    assert synced.outcome()["kind"] == "incremental"
    mirror.assert_mirrored(both, synced)


def test_versions_without_any_in_common_say_which_end_to_upgrade(both: TwoHosts) -> None:
    oldest, newest = spoken(both)
    doctor(both, newest + 1, newest + 2)
    said = mirror.words(both.sync(ok=(10,)))
    assert f"daisy speaks protocol {newest + 1} to {newest + 2}, this machine {oldest} to {newest}" in said
    assert "upgrade btrsync on this machine" in said
    doctor(both, 0, oldest - 1)
    said = mirror.words(both.sync(ok=(10,)))
    assert f"daisy speaks protocol 0 to {oldest - 1}, this machine {oldest} to {newest}" in said
    assert "upgrade btrsync on daisy" in said
    assert both.snapshots() == []
    assert mirror.lasting(both.server_listing()) == []


@pytest.mark.parametrize("is_ahead", [True, False])
def test_a_server_tells_a_client_of_another_version_which_end_to_upgrade(
    both: TwoHosts, is_ahead: bool
) -> None:
    oldest, newest = spoken(both)
    versions = (newest + 1, newest + 2) if is_ahead else (0, oldest - 1)
    ssh = f"ssh -T -o BatchMode=yes -o IdentitiesOnly=yes -i {KEY_FILE} root@daisy"
    said = both.workstation.run(["sh", "-c", f"printf '%s\\n' '{banner(*versions)}' | {ssh}"], ok=(10,))
    assert f"client workstation speaks protocol {versions[0]} to {versions[1]}" in said.stderr
    assert "none in common" in said.stderr
    assert both.server_listing() == []
    log = both.daisy.read_text("/var/log/syslog")
    assert "none in common" in log
