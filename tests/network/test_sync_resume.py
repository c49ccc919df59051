"""A transfer that is cut goes on where it was, whoever or whatever cut it; where it cannot, it says why."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness import faults, wait
from harness.scenario import INCOMING_PREFIX, SERVER_FILE, SERVER_ROOT, Job, Synced, Target
from tests.network import mirror

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.command import Process
    from harness.scenario import TwoHosts

pytestmark = pytest.mark.requires("root", "loop", "btrfs", "host", "sshd", "tbf", "nftables")

BULK_BYTES = 24_000_000
RATE_BITS = 60_000_000
HALF_BYTES = 12_000_000
"""On the link before the fault. Some of it lies in the pipes and buffers between the two ends."""
LEAST_BYTES = 4_000_000
"""Of it, what the server has at least."""
PERSISTENT = Target(settings={"retries": 5, "retry_pause_s": 1})
FORM = slice(5, 7)
"""Where a record has its stream's version, and whether data was compressed."""
TOTAL = 9
SHARE = SERVER_ROOT / "workstation" / "share"


@pytest.fixture(scope="module")
def both() -> Iterator[TwoHosts]:
    """Two hosts for all of these tests: each leaves an equal mirror, so the next one can begin with that."""
    with mirror.small(targets=(PERSISTENT,)) as made:
        # What a killed server has: a checkpoint after every few megabytes.
        made.daisy.append_text(SERVER_FILE, "checkpoint_bytes = 4194304\n")
        mirror.assert_mirrored(made, made.sync())
        yield made


@contextlib.contextmanager
def halfway(both: TwoHosts) -> Iterator[tuple[Process, list[str]]]:
    """A sync of a large change in its middle, and the names that both sides had before."""
    before = both.snapshots()
    assert before == both.backups(), "the test before left no equal mirror"
    (both.source() / f"bulk-{len(before) - 1}").unlink(missing_ok=True)
    mirror.change(both, seed=len(before))
    mirror.add_bulk(both, seed=len(before), size_bytes=BULK_BYTES)
    both.link.slow(RATE_BITS)
    try:
        with both.syncing("-v") as process:
            began = both.bytes_on_link()

            def is_halfway() -> bool:
                assert process.poll() is None, f"the transfer ended before the fault: {process.completed()}"
                return both.bytes_on_link() > began + HALF_BYTES

            wait.until(is_halfway, timeout_s=20, what="half of a transfer")
            assert any(name.startswith(INCOMING_PREFIX) for name in both.backups())
            yield process, before
    finally:
        both.link.normal()


def assert_went_on(both: TwoHosts, outcome: dict[str, Any], before: list[str], *, began: int) -> None:
    """See that a run sent the rest of what was cut and no more, and that both sides are equal."""
    assert outcome["result"] == "sent", outcome
    there = outcome["resumed_from_bytes"]
    assert there > LEAST_BYTES, outcome
    assert outcome["bytes_written"] >= BULK_BYTES
    assert outcome["bytes_sent"] < BULK_BYTES - there + 1_000_000
    assert both.bytes_on_link() - began < BULK_BYTES - there + 3_000_000
    assert outcome["send_parent"] == before[-1]
    assert_equal(both, outcome, before)


def assert_equal(both: TwoHosts, outcome: dict[str, Any], before: list[str]) -> None:
    """See that what was sent is whole, and that both sides have it and no more than they had."""
    name = outcome["snapshot"]
    assert both.differences(name) == []
    assert both.snapshots() == both.backups() == sorted([*before, name])


def assert_next_is_incremental(both: TwoHosts, name: str) -> None:
    """See that the next run begins with what the cut one ended with."""
    mirror.change(both, seed=1000 + len(both.snapshots()))
    synced = both.sync()
    assert synced.outcome()["send_parent"] == name
    assert synced.bytes_sent < 1_000_000
    mirror.assert_mirrored(both, synced)


def go_on(both: TwoHosts, before: list[str], *arguments: str) -> Synced:
    """Run again, and see that it goes on."""
    began = both.bytes_on_link()
    synced = both.sync(*arguments)
    assert_went_on(both, synced.outcome(), before, began=began)
    return synced


def test_after_a_reset_the_same_run_connects_again_and_goes_on(both: TwoHosts) -> None:
    with halfway(both) as (process, before):
        with faults.ResettingLink(both.link):
            wait.until(lambda: "link lost" in process.stderr, timeout_s=10, what="the loss is told")
        both.link.normal()
        synced = mirror.finished(process)
    outcome = synced.outcome()
    assert synced.returncode == 0, synced
    assert "trying again in 1 s (1 of 5)" in synced.stderr
    assert f"going on with {outcome['snapshot']}, incremental from {before[-1]}: " in synced.stderr
    assert outcome["detail"].startswith("the link was lost, tried again ")
    assert len(synced.outcomes) == 1
    # What lay in buffers when the link broke went twice, but not all of it.
    assert BULK_BYTES < outcome["bytes_sent"] < BULK_BYTES + HALF_BYTES - LEAST_BYTES
    assert_equal(both, outcome, before)
    assert_next_is_incremental(both, outcome["snapshot"])


def test_a_server_that_is_told_to_stop_is_found_again_within_the_run(both: TwoHosts) -> None:
    with halfway(both) as (process, before):
        faults.kill(both.daisy, "btrsync serve", signal.SIGTERM)
        both.link.normal()
        synced = mirror.finished(process)
    assert synced.returncode == 0, synced
    assert "it was asked to stop), trying again in 1 s" in synced.stderr
    assert "going on with" in synced.stderr
    assert_equal(both, synced.outcome(), before)


def test_a_server_whose_processes_all_die_goes_on_from_its_last_checkpoint(both: TwoHosts) -> None:
    with halfway(both) as (process, before):
        faults.kill(both.daisy, "btrsync serve")
        both.sshd.__exit__(None, None, None)
        for info in faults.find(both.daisy, "btrfs receive"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(info.pid, signal.SIGKILL)
        wait.until(lambda: "link lost" in process.stderr, timeout_s=10, what="the loss is told")
        both.link.normal()
        both.sshd.__enter__()
        synced = mirror.finished(process)
    assert synced.returncode == 0, synced
    assert "going on with" in synced.stderr
    assert_equal(both, synced.outcome(), before)


def test_a_receive_that_stands_still_is_told_and_the_same_run_goes_on(both: TwoHosts) -> None:
    settings = both.daisy.read_text(SERVER_FILE)
    both.daisy.write_text(SERVER_FILE, settings + "receive_timeout_s = 2\n")
    with halfway(both) as (process, before):
        with faults.StoppedProcess(both.daisy, "btrfs receive"):
            both.link.normal()
            wait.until(lambda: "stood still for 2 s" in process.stderr, timeout_s=20, what="a word about it")
        synced = mirror.finished(process)
    both.daisy.write_text(SERVER_FILE, settings)
    assert synced.returncode == 0, synced
    assert "what came up to the last checkpoint is kept), trying again in 1 s" in synced.stderr
    assert "going on with" in synced.stderr
    assert_equal(both, synced.outcome(), before)


def test_a_killed_receive_is_told_and_the_next_run_goes_on_from_the_last_checkpoint(both: TwoHosts) -> None:
    with halfway(both) as (process, before):
        faults.kill(both.daisy, "btrfs receive")
        both.link.normal()
        synced = mirror.finished(process)
    assert synced.returncode == 6, synced
    assert "btrfs receive was killed by signal 9" in mirror.words(synced)
    assert len(mirror.partials(both)) == 1
    again = both.sync("-v")
    assert again.outcome()["resumed_from_bytes"] >= LEAST_BYTES
    assert_equal(both, again.outcome(), before)


def test_a_killed_client_goes_on_in_its_next_run_which_then_sends_what_changed_since(both: TwoHosts) -> None:
    with halfway(both) as (process, before):
        faults.kill(both.workstation, "btrsync sync")
        assert process.wait(10) == -signal.SIGKILL
    mirror.nobody_is_left(both)
    assert mirror.committed(both) == before
    # Neither its name nor what the subvolume has become since matters: the UUID tells.
    (cut,) = set(both.snapshots()) - set(before)
    directory = both.jobs["share"].snapshots
    both.workstation.run(["mv", directory / cut, directory / f"{cut}-renamed"])
    mirror.change(both, seed=500)
    synced = both.sync()
    first, second = synced.outcomes
    assert first["snapshot"] == f"{cut}-renamed"
    assert first["resumed_from_bytes"] > LEAST_BYTES
    assert first["bytes_sent"] < BULK_BYTES - first["resumed_from_bytes"] + 1_000_000
    assert (second["send_parent"], second["resumed_from_bytes"]) == (first["snapshot"], 0)
    for outcome in (first, second):
        assert both.differences(outcome["snapshot"]) == []
    assert both.snapshots() == both.backups() == sorted([*before, first["snapshot"], second["snapshot"]])
    assert both.sync().outcome()["result"] == "nothing_changed"


def test_a_stopped_client_leaves_what_the_next_run_goes_on_with(both: TwoHosts) -> None:
    with halfway(both) as (process, before):
        faults.kill(both.workstation, "btrsync sync", signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
    mirror.nobody_is_left(both)
    (partial,) = mirror.partials(both)
    status = both.btrsync("status", ok=(0, 1)).stdout
    assert "partial, " in status, status
    synced = go_on(both, before)
    assert partial not in both.backups()
    assert_next_is_incremental(both, synced.outcome()["snapshot"])


@contextlib.contextmanager
def cut(both: TwoHosts) -> Iterator[tuple[list[str], str]]:
    """What was there before a run that was stopped half-way, and the snapshot that it was sending."""
    with halfway(both) as (process, before):
        faults.kill(both.workstation, "btrsync sync", signal.SIGTERM)
        process.wait(10)
    mirror.nobody_is_left(both)
    assert mirror.partials(both)
    (snapshot,) = set(both.snapshots()) - set(before)
    yield before, snapshot


def started_over(both: TwoHosts, because: str) -> dict[str, Any]:
    """Run, and see that all was sent, that the reason was told, and that nothing is left of the partial."""
    synced = both.sync("-v")
    (outcome,) = synced.outcomes
    assert outcome["resumed_from_bytes"] == 0
    assert because in outcome["detail"], outcome
    assert outcome["bytes_sent"] > BULK_BYTES
    assert both.differences(outcome["snapshot"]) == []
    return outcome


def test_a_stream_that_is_not_made_the_same_again_starts_over(both: TwoHosts) -> None:
    with cut(both) as (before, snapshot):
        (partial,) = mirror.partials(both)
        # By its record it was of version 1, and what the client makes by that is another stream.
        path = both.backup_directory() / f"{partial}.json"
        record = json.loads(path.read_text())
        assert record["entry"][FORM] == [2, True]
        record["entry"][FORM] = [1, False]
        # Nor does it write as much: another kernel makes data of what was a clone.
        record["entry"][TOTAL] = 1_000_000
        path.write_text(json.dumps(record))
        outcome = started_over(both, "starts over: the stream differs from byte ")
        assert outcome["snapshot"] == snapshot
        assert_equal(both, outcome, before)
        assert_next_is_incremental(both, snapshot)


def test_a_snapshot_that_was_edited_does_not_go_on(both: TwoHosts) -> None:
    with cut(both) as (before, snapshot):
        path = both.jobs["share"].snapshots / snapshot
        both.workstation.run(["btrfs", "property", "set", path, "ro", "false"])
        both.workstation.run(["touch", path / "edited"])
        both.workstation.run(["btrfs", "property", "set", path, "ro", "true"])
        outcome = started_over(both, f"starts over: its snapshot {snapshot} was edited")
        assert outcome["snapshot"] != snapshot
        mirror.delete_subvolumes(both, "share", [snapshot])
        wait.until(lambda: snapshot not in both.snapshots(), timeout_s=5, what="the edited snapshot is gone")
        left = mirror.partials(both)
        assert both.snapshots() == mirror.committed(both) == sorted([*before, outcome["snapshot"]])
        for name in left:
            both.daisy.run(["btrfs", "subvolume", "delete", SHARE / name])
            both.daisy.run(["rm", SHARE / f"{name}.json"])


def test_a_send_parent_that_is_gone_starts_over_from_another_one(both: TwoHosts) -> None:
    with cut(both) as (before, snapshot):
        both.daisy.run(["btrfs", "subvolume", "delete", SHARE / before[-1]])
        outcome = started_over(both, f"a snapshot from which {snapshot} was being sent is not on both sides")
        assert outcome["send_parent"] == before[-2]
        assert outcome["snapshot"] == snapshot
        mirror.delete_subvolumes(both, "share", [before[-1]])
        assert_equal(both, outcome, before[:-1])


def test_a_stream_that_the_server_cannot_read_any_more_starts_over(both: TwoHosts) -> None:
    with cut(both) as (before, snapshot):
        mirror.pretend_old_progs(both)
        outcome = started_over(both, "starts over: daisy has btrfs-progs 5.10.1, too old for its stream")
        mirror.bind(both, both.forced_command())
        assert outcome["snapshot"] == snapshot
        assert_equal(both, outcome, before)


def test_a_link_that_stays_broken_is_given_up_after_as_many_tries_as_are_allowed(both: TwoHosts) -> None:
    both.write_client_file(retries=2, retry_pause_s=0)
    with halfway(both) as (process, before), faults.ResettingLink(both.link):
        synced = mirror.finished(process)
    both.write_client_file()
    assert synced.returncode == 5
    assert "trying again in 0 s (2 of 2)" in synced.stderr
    assert "(3 of " not in synced.stderr
    assert len(set(both.snapshots()) - set(before)) == 1
    go_on(both, before)


def test_a_link_that_breaks_more_often_than_tries_are_allowed_is_enough_if_each_gets_further(
    both: TwoHosts,
) -> None:
    both.write_client_file(retries=1, retry_pause_s=1)
    with halfway(both) as (process, before):
        for times in (1, 2):
            with faults.ResettingLink(both.link):
                wait.until(lambda: process.stderr.count("link lost") == times, timeout_s=10, what="the loss")  # noqa: B023
            began = both.bytes_on_link()
            if times == 1:
                wait.until(
                    lambda: both.bytes_on_link() > began + BULK_BYTES // 4,  # noqa: B023
                    timeout_s=10, what="more of it",
                )  # fmt: skip
        both.link.normal()
        synced = mirror.finished(process)
    both.write_client_file()
    assert synced.returncode == 0, synced
    assert synced.stderr.count("(1 of 1)") == 2
    assert "tried again 2 times" in synced.outcome()["detail"]
    assert_equal(both, synced.outcome(), before)


def test_the_next_job_uses_the_connection_that_was_made_anew() -> None:
    music = Path("/home/foo/music")
    jobs = (Job(), Job("music", music, music / "snapshots"))
    with mirror.small(jobs=jobs, targets=(PERSISTENT,)) as both:
        mirror.add_bulk(both)
        with mirror.moving(both, "-v") as process:
            with faults.ResettingLink(both.link):
                wait.until(lambda: "link lost" in process.stderr, timeout_s=10, what="the loss is told")
            both.link.normal()
            synced = mirror.finished(process)
        assert synced.returncode == 0, synced
        for job in both.jobs:
            mirror.assert_mirrored(both, synced, job)
        assert "tried again" in synced.outcome("share")["detail"]
        assert synced.outcome("music")["detail"] == ""
        assert mirror.connections(both) == 2


def test_a_pause_between_two_tries_ends_with_a_signal(both: TwoHosts) -> None:
    both.write_client_file(retries=2, retry_pause_s=60)
    with halfway(both) as (process, before), faults.ResettingLink(both.link):
        wait.until(lambda: "trying again in 60 s" in process.stderr, timeout_s=10, what="the pause")
        faults.kill(both.workstation, "btrsync sync", signal.SIGTERM)
        assert process.wait(5) == 128 + signal.SIGTERM
    both.write_client_file()
    mirror.nobody_is_left(both)
    go_on(both, before)
