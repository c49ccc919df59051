"""Checkpoints: a stream received in pieces, and where it may be cut."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from btrsync.stream.head import parse_first_command
from btrsync.stream.pieces import END_COMMAND, format_resumption
from harness.tree import attributes
from tests.kernel.cutting import boundaries_of, receive_in_pieces
from tests.kernel.send_stream import HEADER_BYTES, WRITE, Command, commands_of
from tests.kernel.trial import CrashableDisk, Trial, behaviour, show, sync

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ["tests.kernel.behaviour_fixtures"]
pytestmark = pytest.mark.requires("root", "loop", "btrfs")

_XATTR_NAME, _PATH = 13, 15
_CHOWN = 19
CAP_NET_RAW = 13


def in_the_photo(stream: bytes) -> int:
    """Return the offset of the stream where the fifth piece of the photo begins."""
    writes = [each for each in commands_of(stream) if each.type == WRITE]
    photo = [each for each in writes if each.attributes[_PATH] == b"photo"]
    return photo[4].offset_bytes


def receive_first_piece(trial: Trial, stream: bytes) -> Path:
    """Receive a stream up to the photo's fifth piece, as a backup of that name, and rename it aside."""
    (trial.work / "piece-1").write_bytes(stream[: in_the_photo(stream)] + END_COMMAND)
    trial.receive(trial.work / "piece-1", None, "-e")
    backup, partial = trial.target / "snapshot-1", trial.target / "partial"
    trial.holds(
        "what was received up to there is read-only and has the snapshot's UUID as received_uuid",
        show(backup).is_readonly and show(backup).received_uuid == show(trial.source / "snapshot-1").uuid,
    )
    trial.run("mv", backup, partial)
    return partial


def receive_second_piece(trial: Trial, stream: bytes, partial: Path) -> Path:
    """Receive the rest of the stream as an increment of the partial."""
    first, made = parse_first_command(stream[:8192]), show(partial)
    assert first is not None
    head = format_resumption(
        first.stream_version, first.path, first.uuid, first.ctransid, made.uuid, made.generation
    )
    (trial.work / "piece-2").write_bytes(head + stream[in_the_photo(stream) :])
    trial.receive(trial.work / "piece-2", None, "-e")
    return trial.target / "snapshot-1"


@behaviour
def test_a_stream_received_in_two_pieces(trial: Trial) -> None:
    """A stream can be received in pieces: each ends with an END, the next one goes on from what is there.

    Expected: the first piece is the stream up to a boundary between two commands, and an END. The second is
    stream header, a SNAPSHOT command that names the subvolume of the first piece by its own UUID and keeps
    the UUID of the whole, and the other commands. The result is a backup like any other, and the subvolume
    of the first piece may be deleted then.

    btrsync: makes its checkpoints so: what was received stays, whatever becomes of the link.

    Source: process_snapshot() and finish_subvol(), btrfs-progs cmds/receive.c; measured.
    """
    share = trial.share()
    first = trial.snapshot(share, trial.source / "snapshot-1")
    stream = trial.send(first).read_bytes()
    partial = receive_first_piece(trial, stream)
    backup = receive_second_piece(trial, stream, partial)
    trial.run("btrfs", "subvolume", "delete", "--commit-after", partial)
    trial.holds("the whole tree equals the snapshot's", trial.same_tree(first, backup))
    trial.shell(f"echo 'P.S. More.' >> {share}/letters/first")
    second = trial.snapshot(share, trial.source / "snapshot-2")
    trial.receive(trial.send(second, first))
    trial.holds(
        "so does that of an increment received on top", trial.same_tree(second, trial.target / "snapshot-2")
    )


@behaviour
def test_a_partial_beside_its_final_is_taken_for_the_parent(trial: Trial) -> None:
    """As long as the first piece is kept beside the whole, it is the parent of all that follows.

    Expected: both carry one received_uuid and the older one is looked for. The next increment is received
    with exit status 0, on top of half a photo.

    btrsync: deletes a partial whose final exists before it does anything else.

    Source: subvol_uuid_search(), btrfs-progs common/send-utils.c; measured.
    """
    share = trial.share()
    first = trial.snapshot(share, trial.source / "snapshot-1")
    stream = trial.send(first).read_bytes()
    partial = receive_first_piece(trial, stream)
    backup = receive_second_piece(trial, stream, partial)
    trial.holds(
        "two subvolumes carry one received_uuid", show(partial).received_uuid == show(backup).received_uuid
    )
    trial.shell(f"echo 'P.S. More.' >> {share}/letters/first")
    second = trial.snapshot(share, trial.source / "snapshot-2")
    trial.receive(trial.send(second, first))
    photo = (trial.target / "snapshot-2" / "photo").stat().st_size
    trial.holds(
        "the photo of the new backup is as short as the partial's",
        photo == (partial / "photo").stat().st_size < (second / "photo").stat().st_size,
    )


def raw(stream: bytes, commands: list[Command]) -> bytes:
    return b"".join(stream[each.offset_bytes : each.offset_bytes + each.size_bytes] for each in commands)


def in_the_older_order(stream: bytes) -> tuple[bytes, int]:
    """Move the capability before the data of its file; return where behind the first command that begins."""
    commands = commands_of(stream)
    capability = next(each for each in commands if each.attributes.get(_XATTR_NAME) == attributes.CAPABILITY)
    rest = [each for each in commands if each is not capability]
    data = next(
        number
        for number, each in enumerate(rest)
        if each.type == WRITE and each.attributes[_PATH] == capability.attributes[_PATH]
    )
    before = raw(stream, rest[1:data]) + raw(stream, [capability])
    older = stream[:HEADER_BYTES] + raw(stream, rest[:1]) + before + raw(stream, rest[data:])
    return older, len(before)


@behaviour
def test_a_capability_before_the_owner_is_lost(trial: Trial) -> None:
    """Between a file's capability and its owner a stream must not be cut.

    Expected: kernels before 5.8 send the capability, then the data, then the owner, and data and owner
    both take the capability away. btrfs-progs up to 5.10 keeps it in mind and sets it once more behind the
    owner: it arrives, unless the stream was cut between two writes of that file. Later releases keep nothing
    in mind, and it is lost, cut or not. Kernels from 5.8 on send it last, and then any place will do.

    btrsync: cuts behind the times of a file and between its data, and never between a capability and the
    owner or the times that follow: so a cut loses nothing that would arrive without it.

    Source: btrfs-progs 123a2a085027 and 81d8ea937d79, Linux 89efda52e6b6; measured, with btrfs-progs 5.10.1 too.
    """
    share = trial.share()
    program = share / "program"
    program.write_bytes(random.Random(5).randbytes(200_000))
    os.chown(program, 0, 100)
    os.setxattr(program, attributes.CAPABILITY, attributes.encode_capability(CAP_NET_RAW))
    trial.note(f"setxattr({program}, security.capability, cap_net_raw)", None)
    snapshot = trial.snapshot(share, trial.source / "snapshot-1")
    stream = trial.send(snapshot).read_bytes()
    begin = commands_of(stream)[1].offset_bytes
    everywhere = [each.offset_bytes - begin for each in commands_of(stream)[2:]]
    cut = receive_in_pieces(stream, everywhere, trial.target, "cut")
    trial.holds(
        "in this kernel's order the whole tree equals the snapshot's even if the stream is cut at every command",
        trial.same_tree(snapshot, cut),
    )
    older, capability_at = in_the_older_order(stream)
    owner_at = max(each.offset_bytes - begin for each in owners_of(older, b"program"))
    assert capability_at < owner_at
    whole = receive_in_pieces(older, [], trial.target, "older-whole")
    trial.holds(
        "in the older order this release loses the capability of a stream that nobody cut",
        not has_capability(whole / "program"),
    )
    safe = [each.offset_bytes for each in boundaries_of(older)]
    trial.holds(
        "btrsync finds safe boundaries in it, and none of them between capability and owner",
        safe and not [each for each in safe if capability_at < each <= owner_at],
    )


def owners_of(stream: bytes, path: bytes) -> list[Command]:
    return [each for each in commands_of(stream) if each.type == _CHOWN and each.attributes[_PATH] == path]


def has_capability(file: Path) -> bool:
    return "security.capability" in os.listxattr(file)


@behaviour
def test_the_same_stream_after_a_crash_and_under_another_name(trial: Trial) -> None:
    """After a crash of the sender, and under another name, a snapshot gives the same stream but for one command.

    Expected: the first command holds the name; behind it not a byte differs.

    btrsync: counts from behind the first command, reads over what the receiver has already, and compares the
    commands' headers, which hold the checksums.

    Source: fs/btrfs/send.c; measured.
    """
    with CrashableDisk(trial) as disk:
        share = disk.root / "share"
        trial.run("btrfs", "subvolume", "create", share)
        for number in range(20):
            (share / f"file-{number}").write_bytes(random.Random(number).randbytes(10_000 * number))
        trial.snapshot(share, disk.root / "snapshot-1")
        before = trial.send(disk.root / "snapshot-1").read_bytes()
        sync(disk.root)
        disk.crash()
        trial.run("mv", disk.root / "snapshot-1", disk.root / "another-name")
        after = trial.send(disk.root / "another-name").read_bytes()
    behind = [stream[commands_of(stream)[1].offset_bytes :] for stream in (before, after)]
    trial.holds("the two streams differ", before != after)
    trial.holds("behind their first commands they are the same", behind[0] == behind[1])
