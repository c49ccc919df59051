"""Cut streams: what receive makes of less, or more, than a whole one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel.send_stream import END, HEADER_BYTES, WRITE, commands_of
from tests.kernel.trial import Trial, behaviour, is_subvolume, show

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ["tests.kernel.behaviour_fixtures"]
pytestmark = pytest.mark.requires("root", "loop", "btrfs")


def full_stream(trial: Trial) -> bytes:
    """Make a share and return the stream of its first snapshot."""
    return trial.send(trial.snapshot(trial.share(), trial.source / "snapshot-1")).read_bytes()


def received(trial: Trial, name: str, stream: bytes, *, status: int) -> Path:
    """Receive bytes into a directory of their own; return where the backup should be."""
    file, into = trial.work / f"{name}.stream", trial.target / name
    file.write_bytes(stream)
    trial.mkdir(into)
    trial.receive(file, into, status=status)
    return into / "snapshot-1"


def left_half_done(trial: Trial, where: str, backup: Path) -> None:
    """Require what every cut leaves: a writable subvolume under the final name, nobody's backup."""
    trial.holds(
        f"{where}: a writable subvolume without received_uuid is left under the final name",
        is_subvolume(backup) and not show(backup).is_readonly and show(backup).received_uuid is None,
    )


@behaviour
def test_a_stream_cut_inside_a_command(trial: Trial) -> None:
    """A stream cut inside a command ends with exit status 1 and leaves a writable subvolume.

    Expected: "short read from stream"; the half-received subvolume stays under the final name, without
    received_uuid, and blocks the next receive of that name.

    btrsync: end of file never means success on its wire; what is left is deleted.

    Source: the original scripts' worst leftover; measured.
    """
    stream = full_stream(trial)
    write = next(each for each in commands_of(stream) if each.type == WRITE)
    backup = received(trial, "in-the-payload", stream[: write.offset_bytes + 1000], status=1)
    left_half_done(trial, "cut inside the payload", backup)
    backup = received(trial, "in-the-header", stream[: write.offset_bytes + 5], status=1)
    left_half_done(trial, "cut inside a command's header", backup)
    trial.receive(trial.work / "snapshot-1.stream", backup.parent, status=1)


@behaviour
def test_a_stream_cut_between_two_commands(trial: Trial) -> None:
    """A stream cut exactly between two commands ends with exit status 1 too.

    Expected: only an END command ends a stream well. All that was received so far is there, and the last
    two steps, received_uuid and read-only, are not done.

    btrsync: relies on it, and has the sender's verdict besides.

    Source: measured with btrfs-progs 6.2.
    """
    stream = full_stream(trial)
    commands = commands_of(stream)
    middle = commands[len(commands) // 2]
    left_half_done(
        trial, "cut in the middle", received(trial, "middle", stream[: middle.offset_bytes], status=1)
    )
    backup = received(trial, "after-the-first", stream[: commands[1].offset_bytes], status=1)
    left_half_done(trial, "cut after the first command", backup)
    assert not any(backup.iterdir())


@behaviour
def test_a_stream_without_its_end(trial: Trial) -> None:
    """A stream that lacks nothing but END is received whole and yet is no backup.

    Expected: exit status 1; all files are there, but writable and without received_uuid.

    btrsync: commits by the two marks, not by the look of the tree.

    Source: measured.
    """
    stream = full_stream(trial)
    end = commands_of(stream)[-1]
    assert end.type == END
    backup = received(trial, "without-end", stream[: end.offset_bytes], status=1)
    left_half_done(trial, "without END", backup)
    trial.holds("the whole tree equals the snapshot's", trial.same_tree(trial.source / "snapshot-1", backup))


@behaviour
def test_an_early_end_makes_a_whole_backup_of_half_a_tree(trial: Trial) -> None:
    """A stream that is cut between two commands and given an END is received with exit status 0.

    Expected: receive cannot know what should have come. The result is read-only and carries the
    received_uuid of the snapshot, with half of its files.

    btrsync: takes the sender's verdict, given after `btrfs send` has ended well, for the end; the END
    command alone is not enough.

    Source: measured.
    """
    stream = full_stream(trial)
    commands = commands_of(stream)
    writes = [each for each in commands if each.type == WRITE]
    end = stream[commands[-1].offset_bytes :]
    backup = received(trial, "early-end", stream[: writes[20].offset_bytes] + end, status=0)
    trial.holds(
        "it is read-only and has the snapshot's UUID as received_uuid",
        show(backup).is_readonly and show(backup).received_uuid == show(trial.source / "snapshot-1").uuid,
    )
    trial.holds("its tree is not the snapshot's", not trial.same_tree(trial.source / "snapshot-1", backup))


@behaviour
def test_an_empty_stream(trial: Trial) -> None:
    """An empty stream is an error, and so is one of half a header or of noise.

    Expected: exit status 1, nothing is made. This is what the server sees when `btrfs send` fails at
    once.

    btrsync: reports the sender's own error, which is the cause.

    Source: measured.
    """
    stream = full_stream(trial)
    received(trial, "empty", b"", status=1)
    received(trial, "half-a-header", stream[: HEADER_BYTES // 2], status=1)
    received(trial, "noise", b"Welcome to daisy!\n" * 10, status=1)
    received(trial, "header-only", stream[:HEADER_BYTES], status=1)
    trial.holds("nothing is made", not any(any(each.iterdir()) for each in trial.target.iterdir()))


@behaviour
def test_a_doubled_stream(trial: Trial) -> None:
    """A stream that comes twice is received once, then refused: exit status 1 with a complete backup.

    Expected: receive goes on after END as long as there is input, unless told otherwise (`-e`). The second
    copy is "File exists". So a failing exit status does not mean that there is no backup.

    btrsync: looks at the exit status *and* at the result; if one of them is wrong nothing is kept.

    Source: btrfs-receive(8), -e; measured.
    """
    stream = full_stream(trial)
    backup = received(trial, "doubled", stream + stream, status=1)
    trial.holds("the backup is complete", show(backup).is_readonly and show(backup).received_uuid)
    trial.holds("the whole tree equals the snapshot's", trial.same_tree(trial.source / "snapshot-1", backup))
    trial.mkdir(trial.target / "ended")
    trial.receive(trial.work / "doubled.stream", trial.target / "ended", "-e")


@behaviour
def test_noise_after_the_end(trial: Trial) -> None:
    """A whole stream with noise after it gives a complete backup and exit status 1.

    Expected: as with the doubled one.

    btrsync: looks at the exit status and at the result; nothing of such a transfer is kept.

    Source: measured.
    """
    backup = received(trial, "noisy", full_stream(trial) + b"logout\n", status=1)
    trial.holds("the backup is complete", show(backup).is_readonly and show(backup).received_uuid)


@behaviour
def test_a_flipped_bit(trial: Trial) -> None:
    """A flipped bit is found by the checksum of its command: exit status 1, a writable subvolume is left.

    Expected: "crc32 mismatch in command"; the rest of the stream is not received.

    btrsync: deletes what was received.

    Source: read_and_process_cmd(), btrfs-progs common/send-stream.c; measured.
    """
    stream = bytearray(full_stream(trial))
    write = next(each for each in commands_of(bytes(stream)) if each.type == WRITE)
    stream[write.offset_bytes + 1000] ^= 0x10
    left_half_done(trial, "with a flipped bit", received(trial, "flipped-bit", bytes(stream), status=1))


@behaviour
def test_max_errors_0_loops_for_ever_on_a_cut_stream(trial: Trial) -> None:
    """`receive --max-errors 0` never ends on a cut stream.

    Expected: zero means "never give up", and at the end of the input there is always one more error. It
    has to be killed (here after 2 s), and says the same line over and over.

    btrsync: never passes --max-errors.

    Source: btrfs-receive(8), --max-errors; measured with btrfs-progs 6.2.
    """
    stream = full_stream(trial)
    (trial.work / "cut.stream").write_bytes(stream[: commands_of(stream)[-1].offset_bytes])
    trial.shell(
        f"timeout --signal=KILL 2 btrfs receive --max-errors 0 -f {trial.work}/cut.stream {trial.target}"
        f" 2> {trial.work}/said",
        status=137,
    )
    lines = (trial.work / "said").read_bytes().splitlines()
    trial.holds(
        "killed after 2 s, it had said one line more than a hundred times",
        len(lines) > 100 and len(set(lines[10:-1])) == 1,
    )
