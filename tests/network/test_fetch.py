"""A backup comes back through a real sshd and its forced command, if the server lets it, a cut one too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness import faults, manifest, wait
from harness.scenario import INCOMING_PREFIX, SERVER_FILE
from tests.network import mirror

if TYPE_CHECKING:
    from harness.command import Completed
    from harness.scenario import TwoHosts

pytestmark = pytest.mark.requires("root", "loop", "btrfs", "host", "sshd", "tbf", "nftables")

ALLOW = "[clients.workstation]\nallow_fetch = true\n"


def fetch(both: TwoHosts, *words: str) -> Completed:
    return both.btrsync("fetch", "share", "--json", *words, ok=None)


def outcome(done: Completed) -> dict[str, Any]:
    (found,) = json.loads(done.stdout.splitlines()[-1])["outcomes"]
    assert isinstance(found, dict)
    return found


def arrived_bytes(both: TwoHosts) -> int:
    """Return the bytes that have come to the workstation over the link: proc_net(5), /proc/PID/net/dev."""
    lines = Path(f"/proc/{both.workstation.pid}/net/dev").read_text().splitlines()
    (counters,) = [
        line.partition(":")[2] for line in lines if line.strip().startswith(f"{both.link.interface}:")
    ]
    return int(counters.split()[0])


def hidden(both: TwoHosts) -> list[str]:
    return [name for name in both.snapshots() if name.startswith(".")]


def test_a_backup_comes_back_over_ssh_where_the_server_lets_it(both: TwoHosts) -> None:
    first = mirror.assert_mirrored(both, both.sync())
    mirror.change(both)
    second = mirror.assert_mirrored(both, both.sync())
    before = manifest.without_root_time(both.source_manifest(second))
    mirror.delete_subvolumes(both, "share", [second])
    at_server = both.server_listing()
    refused = fetch(both)
    assert refused.returncode == 10
    assert "may not fetch its backups from this server" in outcome(refused)["error"]["message"]
    assert "`allow_fetch = true` in [clients.workstation]" in outcome(refused)["error"]["hint"]
    assert both.snapshots() == [first]
    both.daisy.append_text(SERVER_FILE, ALLOW)
    done = outcome(fetch(both))
    assert (done["result"], done["snapshot"], done["send_parent"]) == ("fetched", second, first)
    assert both.snapshots() == [first, second]
    after = manifest.without_root_time(both.source_manifest(second))
    assert manifest.difference(before, after) == []
    assert both.server_listing() == at_server, "not even the client's lock is touched"
    assert outcome(fetch(both))["result"] == "present"
    mirror.nobody_is_left(both)


def test_a_fetch_whose_link_was_cut_goes_on(both: TwoHosts) -> None:
    both.daisy.append_text(SERVER_FILE, ALLOW)
    mirror.add_bulk(both)
    name = mirror.assert_mirrored(both, both.sync())
    before = manifest.without_root_time(both.source_manifest(name))
    mirror.delete_subvolumes(both, "share", [name])
    both.link.slow(4 * mirror.SLOW_RATE_BITS)
    began = arrived_bytes(both)
    with both.workstation.spawn([both.btrsync_path, "fetch", "share", "--json"]) as process:
        wait.until(
            lambda: arrived_bytes(both) > began + mirror.BULK_BYTES // 2, timeout_s=30, what="half of it"
        )
        assert any(found.startswith(INCOMING_PREFIX) for found in both.snapshots())
        with faults.ResettingLink(both.link):
            process.wait(30)
        both.link.normal()
        failed = process.completed()
    assert failed.returncode == 5, failed
    assert "the next fetch goes on from there" in outcome(failed)["detail"]
    assert len(hidden(both)) == 1, both.snapshots()
    done = outcome(fetch(both))
    assert done["resumed_from_bytes"] > mirror.BULK_BYTES // 4
    assert done["bytes_sent"] < mirror.BULK_BYTES
    assert both.snapshots() == [name]
    assert manifest.difference(before, manifest.without_root_time(both.source_manifest(name))) == []
    mirror.nobody_is_left(both)
