"""What is lost and kept when an end dies between the end of a receive and its acknowledgement."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from harness import faults, wait
from tests.network import mirror

if TYPE_CHECKING:
    from harness.scenario import TwoHosts

pytestmark = pytest.mark.requires("root", "loop", "btrfs", "host", "sshd")


def test_a_server_killed_before_its_commit_is_put_right_by_the_next_run(both: TwoHosts) -> None:
    mirror.gate_receive(both)
    with both.syncing() as process:
        mirror.wait_at_gate(both)
        faults.kill(both.daisy, "btrsync serve")
        synced = mirror.finished(process)
    assert synced.returncode == 5
    assert "may have been committed there" in mirror.words(synced)
    (kept,) = both.snapshots()
    mirror.open_gate(both)
    again = both.sync()
    assert mirror.assert_mirrored(both, again) == kept
    assert mirror.visible_backups(both) == [kept]
    assert "left by an interrupted transfer" in both.daisy.read_text("/var/log/syslog")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_client_stopped_before_the_answer_keeps_what_the_server_may_commit(
    both: TwoHosts, number: int
) -> None:
    mirror.gate_receive(both)
    with both.syncing() as process:
        mirror.wait_at_gate(both)
        faults.kill(both.workstation, "btrsync sync", number)
        ended = mirror.finished(process)
    assert ended.returncode == (-number if number == signal.SIGKILL else 128 + number)
    (kept,) = both.snapshots()
    mirror.open_gate(both)
    mirror.nobody_is_left(both)
    again = both.sync()
    assert again.outcome()["result"] == "nothing_changed"
    assert mirror.assert_mirrored(both, again) == kept
    assert both.snapshots() == mirror.visible_backups(both) == [kept]


def test_a_link_lost_before_the_answer_keeps_what_the_server_may_commit(both: TwoHosts) -> None:
    mirror.gate_receive(both)
    with both.syncing() as process:
        mirror.wait_at_gate(both)
        faults.kill(both.workstation, "ssh")
        synced = mirror.finished(process)
    assert synced.returncode == 5
    assert "may have been committed there" in mirror.words(synced)
    (kept,) = both.snapshots()
    mirror.open_gate(both)
    mirror.nobody_is_left(both)
    assert mirror.assert_mirrored(both, both.sync()) == kept
    assert both.snapshots() == mirror.visible_backups(both) == [kept]


def test_a_waiting_run_takes_over_from_a_killed_server_once_its_receive_has_ended(both: TwoHosts) -> None:
    mirror.gate_receive(both)
    with both.syncing() as process:
        mirror.wait_at_gate(both)
        faults.kill(both.daisy, "btrsync serve")
        mirror.finished(process)
    with both.syncing("-v") as waiting:
        faults.wait_for_process(both.daisy, "btrsync serve")
        # The orphaned receive holds the lock: to sweep what it works on would be to pull its rug away.
        wait.until(
            lambda: "its last transfer is still ending" in waiting.stderr, timeout_s=10, what="it waits"
        )
        mirror.open_gate(both)
        synced = mirror.finished(waiting)
    mirror.assert_mirrored(both, synced)
