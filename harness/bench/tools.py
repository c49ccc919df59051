"""Rows against other tools: btrbk and rsync, each as its own documentation has it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from harness.bench import sources, stage
from harness.bench.figures import FIGURES
from harness.bench.peers import Btrbk, Rsync
from harness.bench.row import paired, timed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.bench.row import Row
    from harness.bench.stage import Stage

MIB = 1 << 20
LZO_BYTES = 512 * MIB
LINE_BITS = 200_000_000
ALONE = "baseline without the sync, s"


def nothing_changed(on: Stage) -> Row:
    """A timer's common run: nothing to do, over ssh. btrbk by its own filter script, `onchange`."""
    both = on.hosts("small", functools.partial(sources.mixed, scale=0))
    peer = Btrbk(both, "snapshot_create onchange")
    peer.run()
    both.sync()
    before = both.backups()

    def ours() -> float:
        return timed(lambda: stage.sync(both, "nothing_changed"))

    def theirs() -> float:
        peer.run()
        return peer.alone_s[-1]  # nothing was written, so nothing has to reach the disk

    ours()
    theirs()
    row = paired(
        "nothing-changed", ours, theirs,
        pairs=on.pairs, target=FIGURES["nothing-changed"].target,
        baseline="btrbk run, snapshot_create onchange",
    )  # fmt: skip
    if both.backups() != before:
        raise AssertionError("something was sent though nothing changed")
    return row


def small_change_btrbk(on: Stage) -> Row:
    """Four KiB changed: snapshot, send, receive, and what stands around them."""
    both = on.hosts("small", functools.partial(sources.mixed, scale=0))
    peer = Btrbk(both)
    change, other_change = (_Change(tree / "data/changing") for tree in (both.source(), peer.subvolume))

    def ours() -> float:
        change.make()
        return timed(lambda: stage.sync(both, "sent"))

    def theirs() -> float:
        other_change.make()
        return peer.run()

    ours()
    theirs()
    peer.alone_s.clear()
    return paired(
        "small-change-btrbk", ours, theirs,
        pairs=on.pairs, target=FIGURES["small-change-btrbk"].target, baseline="btrbk run",
        details={ALONE: peer.alone_s},
    )  # fmt: skip


def small_change_rsync(on: Stage) -> Row:
    """Four KiB changed among fifty thousand files, which rsync has to look at one by one."""
    fill = functools.partial(sources.small_files, scale=on.scale)
    both = on.hosts("small-files", fill, gib=4)
    peer = Rsync(both)
    change = _Change(both.source() / "data/changing")

    def ours() -> float:
        change.make()
        return timed(lambda: stage.sync(both, "sent"))

    def theirs() -> float:
        change.make()
        return peer.run()

    # Neither the first full transfer nor the first small one counts.
    for _ in range(2):
        ours()
        theirs()
    peer.alone_s.clear()
    return paired(
        "small-change-rsync", ours, theirs,
        pairs=on.pairs, target=FIGURES["small-change-rsync"].target,
        baseline="rsync -aHAX --numeric-ids --delete", details={ALONE: peer.alone_s},
    )  # fmt: skip


class _Change:
    """A file that is changed again and again."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._count = 0
        if not file.exists():
            file.write_bytes(bytes(100_000))

    def make(self) -> None:
        self._count += 1
        sources.change_one(self._file, self._count)


def lzo_defaults(on: Stage) -> Row:
    """A compressed tree, each by its defaults: btrsync sends it as it lies on disk."""
    return _lzo(on, "lzo-defaults", None)


def lzo_defaults_200mbit(on: Stage) -> Row:
    """The same where the line is what costs."""
    return _lzo(on, "lzo-defaults-200mbit", LINE_BITS)


def _lzo(on: Stage, name: str, rate_bits: int | None) -> Row:
    size_bytes = round(LZO_BYTES * on.scale)
    both = on.hosts("lzo", functools.partial(sources.compressible, size_bytes=size_bytes), gib=4)
    peer = Btrbk(both)
    moved: dict[str, list[float]] = {
        "on the link, btrsync, MB": [], "on the link, baseline, MB": [], ALONE: peer.alone_s,
    }  # fmt: skip

    def counted(action: Callable[[], float], samples: list[float]) -> float:
        stage.settle(both)
        before = both.bytes_on_link()
        seconds = action()
        samples.append((both.bytes_on_link() - before) / 1e6)
        return seconds

    def ours() -> float:
        seconds = counted(lambda: timed(lambda: stage.sync(both, "sent")), moved["on the link, btrsync, MB"])
        stage.forget(both)
        return seconds

    def theirs() -> float:
        seconds = counted(peer.run, moved["on the link, baseline, MB"])
        peer.forget()
        return seconds

    try:
        if rate_bits is None:
            ours()
            theirs()
            for samples in moved.values():
                samples.clear()
        else:
            both.link.slow(rate_bits)
        return paired(
            name, ours, theirs, pairs=on.pairs, target=FIGURES[name].target,
            baseline="btrbk run, then btrfs filesystem sync", details=moved,
        )  # fmt: skip
    finally:
        both.link.normal()


ROWS: dict[str, Callable[[Stage], Row]] = {
    "small-change-rsync": small_change_rsync,
    "lzo-defaults": lzo_defaults,
    "lzo-defaults-200mbit": lzo_defaults_200mbit,
    "nothing-changed": nothing_changed,
    "small-change-btrbk": small_change_btrbk,
}
