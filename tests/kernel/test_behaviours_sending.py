"""Sending: what a stream holds, and what it depends on."""

from __future__ import annotations

import random

import pytest

from tests.kernel.send_stream import (
    CLONE,
    ENCODED_WRITE,
    HEADER_BYTES,
    SNAPSHOT,
    SUBVOL,
    announced_bytes,
    commands_of,
    data_bytes,
    version_of,
)
from tests.kernel.trial import PHOTO_BYTES, Trial, behaviour, show, sync

pytest_plugins = ["tests.kernel.behaviour_fixtures"]
pytestmark = pytest.mark.requires("root", "loop", "btrfs")


@behaviour
def test_send_with_and_without_a_parent(trial: Trial) -> None:
    """Without `-p` the whole snapshot is sent, with `-p` the difference from that snapshot.

    Expected: the full stream is larger than all files together; the one with `-p` holds what changed, here
    a few bytes of one letter, and says of which snapshot it is the difference.

    btrsync: sends with `-p` whenever both sides share a snapshot, and refuses a surprising full send
    without `--full`.

    Source: the original notes, 挙動.
    """
    share = trial.share()
    first = trial.snapshot(share, trial.source / "snapshot-1")
    trial.shell(f"echo 'P.S. More.' >> {share}/letters/first")
    second = trial.snapshot(share, trial.source / "snapshot-2")
    full = trial.send(second, to="full.stream").read_bytes()
    incremental = trial.send(second, first, to="incremental.stream").read_bytes()
    trial.holds("the full stream is larger than the photo's 3,000,000 bytes", len(full) > PHOTO_BYTES)
    trial.holds("the incremental one has less than 1,000 bytes", len(incremental) < 1000)
    begins = commands_of(full)[0].type, commands_of(incremental)[0].type
    trial.holds("one begins with SUBVOL, the other with SNAPSHOT", begins == (SUBVOL, SNAPSHOT))


@behaviour
def test_a_writable_snapshot_is_not_sent(trial: Trial) -> None:
    """A writable subvolume or snapshot is refused by send, as the snapshot and as the parent.

    Expected: "is not read-only", exit status 1, and the output file is left as it was made: empty.

    btrsync: makes its snapshots read-only, and takes only read-only ones for snapshots.

    Source: btrfs-send(8).
    """
    share = trial.share()
    readonly = trial.snapshot(share, trial.source / "readonly")
    writable = trial.snapshot(share, trial.source / "writable", readonly=False)
    trial.run("btrfs", "send", "-f", trial.work / "stream", writable, status=1)
    trial.run("btrfs", "send", "-p", writable, "-f", trial.work / "stream", readonly, status=1)


@behaviour
def test_f_and_redirection_give_the_same_bytes(trial: Trial) -> None:
    """`send -f FILE` and `send > FILE` write the same bytes, and `receive -f FILE` reads as `receive < FILE`.

    Expected: no difference, as the notes suppose.

    btrsync: uses pipes, and no file in between.

    Source: the original notes, 挙動 ("it seems that redirection is as good").
    """
    share = trial.share()
    snapshot = trial.snapshot(share, trial.source / "snapshot-1")
    trial.run("btrfs", "send", "-f", trial.work / "by-option", snapshot)
    trial.shell(f"btrfs send {snapshot} > {trial.work}/by-redirection")
    trial.run("cmp", trial.work / "by-option", trial.work / "by-redirection")
    for name in ("by-option", "by-redirection"):
        trial.mkdir(trial.target / name)
    trial.run("btrfs", "receive", "-f", trial.work / "by-option", trial.target / "by-option")
    trial.shell(f"btrfs receive {trial.target}/by-redirection < {trial.work}/by-redirection")
    trial.holds(
        "both received trees equal the snapshot",
        trial.same_tree(snapshot, trial.target / "by-option" / "snapshot-1")
        and trial.same_tree(snapshot, trial.target / "by-redirection" / "snapshot-1"),
    )


@behaviour
def test_a_slash_behind_the_snapshots_name(trial: Trial) -> None:
    """A slash behind the snapshot's name, as in the original script, makes no difference.

    Expected: `btrfs send snapshot-new/` gives the stream of `btrfs send snapshot-new`, with the same name
    in it.

    btrsync: accepts both in its configuration.

    Source: the original script (`snapshots/snapshot-new/`).
    """
    share = trial.share()
    snapshot = trial.snapshot(share, trial.source / "snapshot-new")
    trial.run("btrfs", "send", "-f", trial.work / "without", snapshot)
    trial.run("btrfs", "send", "-f", trial.work / "with", f"{snapshot}/")
    trial.run("cmp", trial.work / "without", trial.work / "with")


@behaviour
def test_the_stream_is_deterministic(trial: Trial) -> None:
    """The same snapshot with the same parent gives the same stream, byte for byte, every time.

    Expected: whatever happens elsewhere, also after the filesystem was balanced and so all extents lie
    elsewhere on the disk.

    btrsync: can rely on it to send the same again after an interruption.

    Source: fs/btrfs/send.c sends in the order of keys; measured.
    """
    share = trial.share()
    first = trial.snapshot(share, trial.source / "snapshot-1")
    trial.shell(f"cp {share}/photo {share}/copy; echo changed >> {share}/copy; mkdir {share}/more")
    second = trial.snapshot(share, trial.source / "snapshot-2")
    before = trial.send(second, to="full-1"), trial.send(second, first, to="incremental-1")
    (trial.source / "elsewhere").write_bytes(random.Random(2).randbytes(1_000_000))
    trial.run("btrfs", "balance", "start", "--full-balance", trial.pair.source)
    after = trial.send(second, to="full-2"), trial.send(second, first, to="incremental-2")
    for one, other in zip(before, after, strict=True):
        trial.run("cmp", one, other)


@behaviour
def test_a_renamed_snapshot_changes_one_command_of_the_stream(trial: Trial) -> None:
    """Renaming a snapshot changes the first command of its stream, and nothing else.

    Expected: the name stands only in SUBVOL or SNAPSHOT, as path; its UUID, and all after it, stay. The
    parent's name is not in the stream at all.

    btrsync: rewrites that first command, so that a name of the client's never reaches `btrfs receive`.

    Source: send_subvol_begin(), fs/btrfs/send.c; measured.
    """
    share = trial.share()
    first = trial.snapshot(share, trial.source / "snapshot-1")
    trial.run("rm", share / "photo")
    second = trial.snapshot(share, trial.source / "snapshot-2")
    before = trial.send(second, first, to="before").read_bytes()
    trial.run("mv", second, trial.source / "renamed")
    trial.run("mv", first, trial.source / "parent-renamed")
    renamed = trial.send(trial.source / "renamed", trial.source / "parent-renamed", to="after").read_bytes()
    (old, *old_rest), (new, *new_rest) = commands_of(before), commands_of(renamed)
    changed = {kind for kind in old.attributes if old.attributes[kind] != new.attributes[kind]}
    trial.holds("of the first command only the path differs", changed == {15})
    trial.holds(
        "everything after the first command is equal, byte for byte",
        before[HEADER_BYTES + old.size_bytes :] == renamed[HEADER_BYTES + new.size_bytes :]
        and len(old_rest) == len(new_rest) > 0,
    )


@behaviour
def test_no_data_announces_the_exact_size(trial: Trial) -> None:
    """`send --no-data` tells exactly how many bytes of content the real stream will write.

    Expected: the sizes of its UPDATE_EXTENT commands add up to the sum of all WRITE payloads, full and
    incremental, with holes and compressed files; the stream itself is small.

    btrsync: can know the total before the first byte.

    Source: send_update_extent(), fs/btrfs/send.c; measured.
    """
    share = trial.share()
    trial.run("truncate", "--size", "20M", share / "sparse")
    trial.run("btrfs", "property", "set", share / "letters", "compression", "lzo")
    (share / "letters" / "long").write_bytes(b"All work and no play. " * 50_000)
    first = trial.snapshot(share, trial.source / "snapshot-1")
    with (share / "photo").open("r+b") as photo:
        photo.seek(1_234_567)
        photo.write(b"scratched" * 10_000)
    with (share / "sparse").open("r+b") as sparse:
        sparse.seek(7_000_001)
        sparse.write(b"island")
    second = trial.snapshot(share, trial.source / "snapshot-2")
    for parent, kind in ((None, "full"), (first, "incremental")):
        announced = trial.send(second, parent, "--no-data", to=f"{kind}.announced").read_bytes()
        stream = trial.send(second, parent, to=f"{kind}.stream").read_bytes()
        trial.holds(
            f"{kind}: announced and written are the same number of bytes",
            announced_bytes(announced) == data_bytes(stream) > 0,
        )
        trial.holds(
            f"{kind}: the announcement is less than a thirtieth of the stream",
            len(announced) * 30 < len(stream),
        )


@behaviour
def test_compressed_data_travels_compressed(trial: Trial) -> None:
    """`send --proto 2 --compressed-data` moves compressed extents as they lie on the disk.

    Expected: a smaller stream for text compressed with lzo; the received tree is the same. Without
    `--compressed-data` protocol 2 saves nothing.

    btrsync: nothing yet; it needs a kernel of 6.0 at the sender and btrfs-progs 6.2 at the receiver.

    Source: btrfs-send(8); measured.
    """
    share = trial.share()
    trial.run("btrfs", "property", "set", share / "letters", "compression", "lzo")
    words = [f"word{number}" for number in range(500)]
    text = " ".join(random.Random(3).choices(words, k=800_000))
    (share / "letters" / "long").write_text(text)
    sync(share)
    snapshot = trial.snapshot(share, trial.source / "snapshot-1")
    plain = trial.send(snapshot, None, "--proto", "1", to="plain").read_bytes()
    second = trial.send(snapshot, None, "--proto", "2", to="proto-2").read_bytes()
    compressed = trial.send(snapshot, None, "--proto", "2", "--compressed-data", to="compressed")
    packed = compressed.read_bytes()
    sizes = len(plain) - PHOTO_BYTES, len(second) - PHOTO_BYTES, len(packed) - PHOTO_BYTES
    trial.holds("protocol 2 alone is within 1 % of protocol 1", abs(sizes[0] - sizes[1]) * 100 < sizes[0])
    trial.holds("with --compressed-data the text takes less than 70 % of that", sizes[2] * 10 < sizes[0] * 7)
    trial.holds("its header says version 2", version_of(packed) == 2)
    trial.holds(
        "the text comes as ENCODED_WRITE", any(each.type == ENCODED_WRITE for each in commands_of(packed))
    )
    trial.receive(compressed)
    trial.holds("the whole tree is the same", trial.same_tree(snapshot, trial.target / "snapshot-1"))


@behaviour
def test_flags_are_not_carried_compression_is(trial: Trial) -> None:
    """The flags NOCOW, immutable and append-only are not sent; the compression property is.

    Expected: `lsattr` shows C, i and a on the source and none of them on the backup, with protocol 1 and 2;
    the property travels as the xattr btrfs.compression.

    btrsync: nothing; who needs these flags has to set them again after a restore.

    Source: measured.
    """
    share = trial.share()
    flagged = share / "flagged"
    flagged.mkdir()
    for flag, name in (("C", "nocow"), ("i", "immutable"), ("a", "append-only")):
        (flagged / name).touch()
        trial.run("chattr", f"+{flag}", flagged / name)
    trial.run("btrfs", "property", "set", share / "letters", "compression", "zstd")
    snapshot = trial.snapshot(share, trial.source / "snapshot-1")
    trial.run("chattr", "-i", flagged / "immutable")
    trial.run("chattr", "-a", flagged / "append-only")
    trial.run("lsattr", snapshot / "flagged")
    for protocol in ("1", "2"):
        into = trial.target / f"proto-{protocol}"
        trial.mkdir(into)
        trial.receive(trial.send(snapshot, None, "--proto", protocol, to=f"proto-{protocol}"), into)
        said = trial.run("lsattr", into / "snapshot-1" / "flagged")
        trial.holds(
            f"protocol {protocol}: no flag arrives",
            all(set(line.split()[0]) <= {"-"} for line in said.splitlines()),
        )
        said = trial.run("btrfs", "property", "get", into / "snapshot-1" / "letters", "compression")
        trial.holds(f"protocol {protocol}: the compression property does", "zstd" in said)


@behaviour
def test_a_clone_source_saves_what_is_shared(trial: Trial) -> None:
    """With `-c`, what the snapshot shares with another common snapshot is cloned, not sent.

    Expected: a file that came back from an older snapshot (`cp --reflink`) costs its whole size with `-p`
    alone, and a CLONE command with `-c` of the snapshot that has it.

    btrsync: passes the latest other common snapshots as clone sources, as many as `clone_sources` says.

    Source: btrfs-send(8), -c; measured.
    """
    share = trial.share()
    first = trial.snapshot(share, trial.source / "snapshot-1")
    trial.run("rm", share / "photo")
    second = trial.snapshot(share, trial.source / "snapshot-2")
    trial.run("cp", "--reflink=always", first / "photo", share / "back")
    third = trial.snapshot(share, trial.source / "snapshot-3")
    without = trial.send(third, second, to="without").read_bytes()
    stream = trial.send(third, second, "-c", str(first), to="with")
    trial.holds("with -p alone the photo is sent again", len(without) > PHOTO_BYTES)
    trial.holds(
        "with -c it is not",
        stream.stat().st_size < 1000 and any(c.type == CLONE for c in commands_of(stream.read_bytes())),
    )
    for each, parent in ((first, None), (second, first)):
        trial.receive(trial.send(each, parent))
    trial.receive(stream)
    trial.holds("the whole tree is the same", trial.same_tree(third, trial.target / "snapshot-3"))
    assert show(trial.target / "snapshot-3").is_readonly
