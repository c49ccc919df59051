"""Sender and receiver of different Debian releases: `python -m tests.vmimages.version_pairs` writes the page.

Two guests of User Mode Linux on a link, a real sshd and a forced command; each mirrors to the other. The
page is docs/compatibility.md; --json keeps what was seen as data. With names of images only these are paired.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import manifest
from tests.vmimages import mirror_machines as mirror
from vmimages.build import build_image
from vmimages.link import ADDRESSES, Link
from vmimages.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmimages.image import Image

TREE = Path(__file__).parents[2]
PAGE = TREE / "docs" / "compatibility.md"
IMAGES = ("bookworm", "trixie", "forky")
DISK_BYTES = 320 << 20
TEXT_BYTES = 4 << 20
BULK_BYTES = 1 << 20
NEWEST_STREAM = 2
"""The newest send stream that is ever chosen; 3 is not finished in any kernel."""
COMPRESSED_FROM_PROGS = (6, 2)
HEAD = """\
# Which releases mirror to which

Each release of Debian that btrsync runs on mirrors to each other one: kernel, btrfs-progs, Python and OpenSSH as the
release has them, each end in a virtual machine of its own ([vmimages](vmimages.md)), with a real sshd and a forced
command between. This page is written by that run: **do not edit it**, run `tox -e compatibility`.

A tree of every kind of node is sent whole, changed, and sent again, from a filesystem that compresses. After each the
trees are compared in all that a copy must carry, and the send stream must be the best one that both ends can:
version 2 with compressed data, if the sender's kernel makes it and the receiver's btrfs-progs are 6.2 or newer,
otherwise version 1.

"""


@dataclass(frozen=True, slots=True)
class Versions:
    """What one end consists of."""

    image: str
    kernel: str
    progs: str
    python: str
    openssh: str


@dataclass(frozen=True, slots=True)
class Direction:
    """One sender and one receiver that were tried. bytes: that went over the link, of each sync."""

    sender: Versions
    receiver: Versions
    stream: str
    full_bytes: int
    incremental_bytes: int


def try_both(one: Image, other: Image) -> list[Direction]:
    """Mirror each of two releases to the other. Raises AssertionError, CommandFailed."""
    sizes = [DISK_BYTES] * 2
    with (
        Link() as link,
        Machine(one, name=one.name, backend="uml", disks=sizes, tree=TREE, link=link.ends[0]) as first,
        Machine(other, name=other.name, backend="uml", disks=sizes, tree=TREE, link=link.ends[1]) as second,
    ):
        for machine, peer, address in ((first, second, ADDRESSES[1]), (second, first, ADDRESSES[0])):
            _install(machine, peer.name, address.partition("/")[0])
        return [_try(first, second), _try(second, first)]


def _install(machine: Machine, peer: str, peer_address: str) -> None:
    machine.start()
    mirror.make_source(machine, machine.device(1), seed=1)
    machine.succeed(
        "mount -o remount,compress-force=zstd /source",
        f"yes 'all work and no play' | head -c {TEXT_BYTES} > {mirror.LIVE}/text",
        f"mkfs.btrfs -q {machine.device(2)} && mkdir -p /MirrorRoot && mount {machine.device(2)} /MirrorRoot",
        f"mkdir {mirror.ROOT}",
    )
    mirror.configure_client(machine, peer_address, peer)
    mirror.configure_server(machine)
    machine.succeed("/usr/sbin/sshd")


def _try(sender: Machine, receiver: Machine) -> Direction:
    stream = _best(sender, receiver)
    sent = []
    for kind in ("full", "incremental"):
        completed = mirror.sync(sender)
        outcome = mirror.outcome(completed)
        assert outcome["kind"] == kind, outcome
        assert _chosen(completed.stderr) == stream, completed.stderr
        _assert_mirrored(sender, receiver)
        sent.append(int(outcome["bytes_sent"]))
        if kind == "full":
            assert (sent[0] < TEXT_BYTES) == ("compressed" in stream), f"{sent[0]} bytes were sent"
            mirror.change(sender, seed=2, bulk_bytes=BULK_BYTES)
    return Direction(versions(sender), versions(receiver), stream, *sent)


def _best(sender: Machine, receiver: Machine) -> str:
    """Say what the two ends can, from the kernel's and the receiver's own words."""
    newest = int(sender.succeed("cat /sys/fs/btrfs/features/send_stream_version"))
    progs = tuple(int(word) for word in versions(receiver).progs.split(".")[:2])
    if newest >= NEWEST_STREAM and progs >= COMPRESSED_FROM_PROGS:
        return f"{NEWEST_STREAM}, compressed"
    return "1"


def _chosen(stderr: str) -> str:
    """Return the stream that `btrfs send` was asked for, from what `sync -vv` shows of it."""
    shown = [line for line in stderr.splitlines() if " btrfs send " in line]
    lines = [line for line in shown if "--no-data" not in line]  # such a one only counts
    assert lines, stderr
    version = re.search(r"--proto[ =](\d)", lines[-1])
    return (version[1] if version else "1") + (", compressed" if "--compressed-data" in lines[-1] else "")


def _assert_mirrored(sender: Machine, receiver: Machine) -> None:
    names = mirror.names(receiver, mirror.BACKUPS)
    assert not [name for name in names if name.startswith(".")], names
    assert sorted(names) == sorted(mirror.names(sender, mirror.SNAPSHOTS))
    (live,) = mirror.manifests(sender, [mirror.LIVE])
    (backup,) = mirror.manifests(receiver, [f"{mirror.BACKUPS}/{max(names)}"])
    lines = manifest.difference(live, backup, names=(sender.name, receiver.name))
    assert not lines, "\n".join(lines)


def versions(machine: Machine) -> Versions:
    """Return what a machine consists of, in its own words."""
    kernel, progs, python, openssh = machine.succeed(
        "uname -r; btrfs version | head -1; python3 --version; ssh -V 2>&1"
    ).splitlines()
    found = re.match(r"OpenSSH_([\w.]+)", openssh)
    assert found, openssh
    return Versions(
        machine.image.name,
        kernel,
        progs.split()[-1].removeprefix("v"),
        python.split()[-1],
        found[1],
    )


def format_page(directions: Iterable[Direction]) -> str:
    """Render the page."""
    directions = list(directions)
    ends = {end.image: end for one in directions for end in (one.sender, one.receiver)}
    lines = ["| release | kernel | btrfs-progs | Python | OpenSSH |", "|---|---|---|---|---|"]
    lines += [
        f"| {end.image} | {end.kernel} | {end.progs} | {end.python} | {end.openssh} |"
        for end in ends.values()
    ]
    lines += [
        "",
        "| sender | receiver | send stream | first sync | second | trees |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.sender.image} | {one.receiver.image} | {one.stream} | {one.full_bytes / 1e6:.1f} MB |"
        f" {one.incremental_bytes / 1e6:.1f} MB | equal, both times |"
        for one in directions
    ]
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    """Try every pair, and write the page unless only some images were named."""
    parser = argparse.ArgumentParser(prog="python -m tests.vmimages.version_pairs", description=__doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=f"by default {', '.join(IMAGES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was seen as data, too")
    options = parser.parse_args()
    images = [build_image(name, backends=["uml"]) for name in options.images or IMAGES]
    seen = [found for pair in itertools.combinations(images, 2) for found in try_both(*pair)]
    page = format_page(seen)
    print(page.removeprefix(HEAD), end="")
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in seen], indent=1) + "\n")
    if not options.images:
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
