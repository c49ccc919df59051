"""The faults of the original's scripts: each is shown to happen, then btrsync meets the same fault.

docs/original-faults.md lists them; the scripts are in the directory `original`. Where a script does
something else on today's btrfs than its reader expects, the test holds what it truly does.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import command, faults, wait
from harness.scenario import SERVER_FILE, SERVER_ROOT, Job, Synced
from tests.network import mirror
from tests.network.original import reenactment
from tests.network.original.reenactment import Original

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.scenario import TwoHosts

pytestmark = pytest.mark.requires("root", "loop", "btrfs", "host", "sshd")

FILE_EXISTS = "snapshot-new failed: File exists"
FULL_BYTES = 400_000
"""Less than a full transfer of the tiny tree puts on the link, and more than any incremental one."""
SESSION = "sshd: root@notty"
"""The process of daisy's sshd that serves one connection: with it the connection is cut."""
MUSIC = Job("music", Path("/home/foo/music"), Path("/home/foo/music/snapshots"))


@pytest.fixture
def two_jobs() -> Iterator[TwoHosts]:
    """Two hosts, and two subvolumes to be mirrored."""
    with mirror.small(jobs=(Job(), MUSIC)) as both:
        yield both


def first_sync(both: TwoHosts) -> str:
    """Mirror everything once; return the snapshot's name."""
    return mirror.assert_mirrored(both, both.sync())


def assert_survived(both: TwoHosts, job: str = "share") -> None:
    """See that the next run is incremental and complete, and that nothing else is left on either side."""
    mirror.change(both, job, seed=99)
    synced = both.sync(job)
    assert synced.outcome(job)["kind"] == "incremental"
    mirror.assert_mirrored(both, synced, job)
    assert both.snapshots(job) == mirror.visible_backups(both, job)
    mirror.nobody_is_left(both)


# ------------------------------------------------------------------ the move to a wrong directory


def test_the_original_that_moves_to_a_wrong_directory_never_mirrors_again(both: TwoHosts) -> None:
    original = Original(both, has_typo=True)
    first = original.run()
    assert "cannot move '/MirrorRoot/snapshot-new' to '/MirrorRooot/snapshot1411201201'" in first.stderr
    # All of it has arrived, and the client has deleted what it came from.
    assert original.on_workstation() == []
    assert original.on_daisy() == ["snapshot-new"]
    assert original.is_complete("snapshot-new")
    for _ in range(2):
        mirror.change(both)
        later = original.run()
        assert FILE_EXISTS in later.stderr
        assert later.returncode == 0
        assert original.on_workstation() == []
        assert original.on_daisy() == ["snapshot-new"]


def test_a_wrong_directory_on_the_server_is_refused_before_anything_is_sent(both: TwoHosts) -> None:
    name = first_sync(both)
    mirror.change(both)
    both.daisy.write_text(SERVER_FILE, 'root = "/MirrorRooot/btrsync"\n')
    synced = both.sync(ok=(8,))
    assert "/MirrorRooot/btrsync is not there" in mirror.words(synced)
    assert both.snapshots() == mirror.visible_backups(both) == [name]
    both.daisy.write_text(SERVER_FILE, f'root = "{SERVER_ROOT}"\n')
    assert_survived(both)


# ------------------------------------------------------------------------------------ a dead send


def test_the_original_does_not_notice_a_send_that_fails_and_deletes_its_parent(both: TwoHosts) -> None:
    original = Original(both)
    original.run()
    failing_send(both)
    ran = original.run()
    assert "ERROR: send gives up" in ran.stderr
    # The branch of success: the old snapshot is gone, and the new one has its name.
    # btrfs-progs 6.14 names the id as well.
    deleted = r"Delete subvolume (\d+ )?\(no-commit\): '/home/foo/share/snapshots/snapshot-old'"
    assert re.search(deleted, ran.stdout)
    assert original.on_workstation() == ["snapshot-old"]


def test_the_original_ends_well_after_its_send_was_killed_and_is_blocked_from_then_on(both: TwoHosts) -> None:
    original = Original(both)
    original.run()
    mirror.add_bulk(both)
    with original.moving() as process:
        faults.kill(both.workstation, "btrfs send")
        both.link.normal()
        assert process.wait(30) == 0
    # Only daisy's receive complained; what it has left there blocks the next run.
    assert original.on_workstation() == ["snapshot-old"]
    assert original.on_daisy() == ["snapshot-new", "snapshot1411201201"]
    assert not original.is_complete("snapshot-new")
    assert FILE_EXISTS in original.run().stderr


def test_a_send_that_fails_at_its_very_end_is_not_committed(both: TwoHosts) -> None:
    name = first_sync(both)
    mirror.change(both)
    failing_send(both)
    env = {"PATH": f"{reenactment.STAND_INS}:{command.SYSTEM_PATH}"}
    synced = Synced.of(both.workstation.run([both.btrsync_path, "sync", "--json"], env=env, ok=(6,)))
    assert "btrfs send" in mirror.words(synced)
    assert "ERROR: send gives up" in mirror.words(synced)
    assert mirror.committed(both) == [name]
    assert_survived(both)


def test_a_send_that_is_killed_is_named_and_blocks_nothing(both: TwoHosts) -> None:
    name = first_sync(both)
    mirror.add_bulk(both)
    with mirror.moving(both) as process:
        faults.kill(both.workstation, "btrfs send")
        both.link.normal()
        synced = mirror.finished(process)
    assert synced.returncode == 6
    assert "btrfs send" in mirror.words(synced)
    assert "was killed by signal 9" in mirror.words(synced)
    assert mirror.committed(both) == [name]
    assert_survived(both)


def failing_send(both: TwoHosts) -> None:
    """Let every `btrfs send` on the workstation end with status 1 after the last byte of its stream."""
    script = '$real "$@" || exit\n[ "$1" = send ] || exit 0\necho "ERROR: send gives up" >&2\nexit 1'
    reenactment.stand_in(both.workstation, "btrfs", script)


# -------------------------------------------------------------------------------- a cut transfer


def test_a_cut_transfer_of_the_original_leaves_half_a_snapshot_that_blocks_every_later_one(
    both: TwoHosts,
) -> None:
    original = Original(both)
    original.run()
    mirror.add_bulk(both)
    with original.moving() as process:
        faults.kill(both.daisy, SESSION)
        assert process.wait(30) == 0
    mirror.nobody_is_left(both)
    assert original.on_daisy() == ["snapshot-new", "snapshot1411201201"]
    assert not original.is_complete("snapshot-new")
    both.daisy.write_text("/MirrorRoot/snapshot-new/anything", "it is writable\n")
    for _ in range(2):
        assert FILE_EXISTS in original.run().stderr
        assert original.on_workstation() == ["snapshot-old"]
        assert original.on_daisy() == ["snapshot-new", "snapshot1411201201"]


def test_a_cut_transfer_blocks_nothing_and_goes_on(both: TwoHosts) -> None:
    name = first_sync(both)
    mirror.add_bulk(both)
    with mirror.moving(both) as process:
        faults.kill(both.daisy, SESSION)
        both.link.normal()
        assert mirror.finished(process).returncode == 5
    mirror.nobody_is_left(both)
    assert mirror.committed(both) == [name]
    assert len(mirror.partials(both)) == 1
    assert_survived(both)


# ------------------------------------------------- a crash between the delete and the rename


def test_a_crash_of_the_original_between_delete_and_rename_leaves_no_parent(both: TwoHosts) -> None:
    original = Original(both)
    original.run()
    reenactment.gate_behind(both.workstation, "btrfs", "subvolume delete")
    with original.running() as process:
        reenactment.wait_at_gate(both.workstation)
        process.kill()
        process.wait(10)
    reenactment.open_gate(both.workstation)
    assert original.on_workstation() == ["snapshot-new"]
    # The name is taken: until a person comes, no run gets further than this.
    blocked = original.run()
    assert blocked.returncode == 2
    assert "**CRITICAL** Failed to create new snapshot" in blocked.stdout
    both.workstation.run(["btrfs", "subvolume", "delete", original.snapshots / "snapshot-new"])
    with reenactment.bytes_moved(both) as moved:
        original.run()
    assert moved[0] > FULL_BYTES
    assert original.on_workstation() == ["snapshot-old"]
    assert original.on_daisy() == ["snapshot1411201201", "snapshot1411201202", "snapshot1411201204"]


def test_a_crash_at_the_end_of_a_run_leaves_its_send_parent(both: TwoHosts) -> None:
    first = first_sync(both)
    mirror.change(both)
    mirror.gate_receive(both)
    with both.syncing() as process:
        mirror.wait_at_gate(both)
        faults.kill(both.workstation, "btrsync sync", signal.SIGKILL)
        mirror.finished(process)
    mirror.open_gate(both)
    mirror.nobody_is_left(both)
    assert first in both.snapshots()
    assert first in mirror.visible_backups(both)
    mirror.assert_mirrored(both, both.sync())
    assert_survived(both)


# ----------------------------------------------------- a failure after the server has committed


def test_the_original_deletes_what_the_server_has_committed_and_begins_anew(both: TwoHosts) -> None:
    original = Original(both)
    reenactment.lose_the_answer(original)
    assert original.on_daisy() == ["snapshot1411201201"]
    assert original.is_complete("snapshot1411201201")
    # Nothing is left here that the next run could be sent against.
    assert original.on_workstation() == []
    with reenactment.bytes_moved(both) as moved:
        original.run()
    assert moved[0] > FULL_BYTES
    # Later there is the one before. Then the chain holds, and one transfer is lost.
    mirror.change(both)
    reenactment.lose_the_answer(original)
    assert original.on_workstation() == ["snapshot-old"]
    assert original.on_daisy() == [f"snapshot141120120{minute}" for minute in (1, 2, 3)]
    with reenactment.bytes_moved(both) as moved:
        original.run()
    assert moved[0] < FULL_BYTES
    assert original.on_daisy() == [f"snapshot141120120{minute}" for minute in (1, 2, 3, 4)]


def test_what_the_server_may_have_committed_is_kept_and_found_by_the_next_run(both: TwoHosts) -> None:
    mirror.gate_receive(both)
    with both.syncing() as process:
        mirror.wait_at_gate(both)
        faults.kill(both.workstation, "ssh")
        assert mirror.finished(process).returncode == 5
    (kept,) = both.snapshots()
    mirror.open_gate(both)
    mirror.nobody_is_left(both)
    again = both.sync()
    assert again.outcome()["result"] == "nothing_changed"
    assert mirror.assert_mirrored(both, again) == kept
    assert_survived(both)


# ---------------------------------------------------------------------------------- no lock


def test_the_original_turns_a_second_run_away_and_every_later_one_once_the_first_is_killed(
    both: TwoHosts,
) -> None:
    original = Original(both)
    mirror.add_bulk(both)
    with original.moving() as first:
        # No lock is taken. It is the name snapshot-new, being a read-only directory, that gets in the way.
        second = original.run()
        assert second.returncode == 2
        # "cannot snapshot '/home/foo/share'" in btrfs-progs 6.2, "Could not create subvolume" in 6.14.
        assert ": Read-only file system" in second.stderr
        assert first.poll() is None
        first.kill()
        first.wait(10)
    mirror.nobody_is_left(both)
    assert original.run().returncode == 2
    assert original.on_workstation() == ["snapshot-new"]
    assert not original.is_complete("snapshot-new")


def test_two_runs_of_the_original_meet_on_the_server_and_one_deletes_its_snapshot(two_jobs: TwoHosts) -> None:
    share, music = Original(two_jobs), Original(two_jobs, name="music")
    mirror.add_bulk(two_jobs)
    with share.moving() as first:
        second = music.run()
        assert first.poll() is None
        two_jobs.link.normal()
        first.wait(30)
    assert FILE_EXISTS in second.stderr
    assert second.returncode == 0
    assert music.on_workstation() == []
    assert share.on_workstation() == ["snapshot-old"]


def test_a_second_run_is_told_who_is_at_work_and_a_killed_one_leaves_no_lock(both: TwoHosts) -> None:
    first_sync(both)
    mirror.add_bulk(both)
    with mirror.moving(both) as first:
        second = both.sync(ok=(4,))
        assert re.search(r"job share is running already: busy since .*, pid \d+", mirror.words(second))
        assert first.poll() is None
        faults.kill(both.workstation, "btrsync sync")
        both.link.normal()
        mirror.finished(first)
    mirror.nobody_is_left(both)
    # A killed run cannot take its snapshot away. It is no obstacle: it is what the next one sends.
    left = both.snapshots()[-1]
    again = both.sync()
    assert again.outcome()["kind"] == "incremental"
    assert mirror.assert_mirrored(both, again) == left
    assert_survived(both)


def test_two_jobs_at_once_wait_for_their_turn_and_are_both_served(two_jobs: TwoHosts) -> None:
    mirror.add_bulk(two_jobs)
    with mirror.moving(two_jobs, "share") as share, two_jobs.syncing("music", "-v") as music:
        wait.until(lambda: "waiting: " in music.stderr, timeout_s=20, what="the second run waits")
        assert share.poll() is None
        two_jobs.link.normal()
        for job, process in (("share", share), ("music", music)):
            synced = mirror.finished(process)
            assert synced.returncode == 0
            mirror.assert_mirrored(two_jobs, synced, job)
    for job in ("share", "music"):
        assert_survived(two_jobs, job)


# ------------------------------------------------------------------------ two runs in one minute


def test_two_runs_of_the_original_in_one_minute_stop_it_for_good(both: TwoHosts) -> None:
    original = Original(both)
    original.run()
    original.set_minute(0)
    mirror.change(both)
    second = original.run()
    # `mv` takes the directory of that name for the place to move into. It would be one inside the
    # other; a received snapshot is read-only, so it fails, with the end of a move to a wrong directory.
    into = "'/MirrorRoot/snapshot1411201201/snapshot-new': Read-only file system"
    assert f"mv: cannot move '/MirrorRoot/snapshot-new' to {into}" in second.stderr
    assert original.on_daisy() == ["snapshot-new", "snapshot1411201201"]
    assert FILE_EXISTS in original.run().stderr


def test_three_runs_in_one_minute_make_three_backups(both: TwoHosts) -> None:
    names = [first_sync(both)]
    for seed in (1, 2):
        mirror.change(both, seed=seed)
        names.append(mirror.assert_mirrored(both, both.sync()))
    assert mirror.visible_backups(both) == both.snapshots() == sorted(set(names))
    assert len(set(names)) == 3
    assert_survived(both)


# ------------------------------------------------------------------------ told to nobody


def test_the_original_tells_its_failure_to_nobody_and_ends_well(both: TwoHosts) -> None:
    original = Original(both)
    succeeded = original.run()
    both.link.reset()
    failed = original.run()
    both.link.clear()
    # The last command of each branch gives the status: notify-send's after a success, that of the
    # delete after a failure. So it is the good run that a timer calls failed.
    assert (succeeded.returncode, failed.returncode) == (1, 0)
    assert "Failed to send" not in failed.stdout + failed.stderr
    assert reenactment.UNSEEN in failed.stderr
    # It is told only where somebody is logged in.
    bus = {"DBUS_SESSION_BUS_ADDRESS": "/run/screen"}
    both.workstation.run(["notify-send", "Failed to send Snapshot"], env=bus)
    assert both.workstation.read_text("/run/screen") == "Failed to send Snapshot\n"


def test_a_failure_is_named_in_the_output_and_by_the_exit_status(both: TwoHosts) -> None:
    first_sync(both)
    mirror.change(both)
    both.link.reset()
    failed = both.btrsync("sync", ok=(5,))
    for_a_program = both.sync(ok=(5,))
    both.link.clear()
    for words in (failed.stderr, for_a_program.stderr):
        assert words.startswith("share → daisy: FAILED: daisy: ")
        assert "  hint: " in words
    assert_survived(both)
