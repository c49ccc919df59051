"""Scenarios that are no single change: things that go on around a snapshot, and long chains.

Host commands used: `umount`, `mount`.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Self

from harness import command, ioctls, wait
from harness.tree.mutations import MUTATIONS, format_replay, mutate
from harness.tree.root import Root
from harness.tree.survey import survey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

_JOIN_S = 60.0


def remount(mount_point: Path) -> None:
    """Unmount and mount a filesystem of our mount namespace, with the options it had.

    Its device must outlive the umount: not one that `mount -o loop` made.
    """
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(mount_point):
            after = fields[fields.index("-") + 1 :]
            break
    else:
        raise FileNotFoundError(f"{mount_point}: nothing is mounted there (spell it as mountinfo does)")
    kind, source, options = after[0], after[1], f"{fields[5]},{after[2]}"
    command.run(["umount", mount_point])
    # A namespace made meanwhile by others may hold the mount: umount succeeds, and nothing is forgotten.
    wait.until(
        lambda: not list(Path("/sys/fs/btrfs").glob(f"*/devices/{Path(source).name}")),
        timeout_s=_JOIN_S,
        what=f"{source} is mounted nowhere (does a mount namespace hold it?)",
    )
    command.run(["mount", "-t", kind, "-o", options, source, mount_point])


class _Background:
    """A function called again and again in a thread, until the context is left; its error is raised there."""

    def __init__(self, name: str, action: Callable[[], None], pause_s: float) -> None:
        self.name = name
        self._pause_s = pause_s
        self.rounds = 0
        self._action = action
        self._error: BaseException | None = None
        self._must_stop = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._must_stop.is_set():
                self._action()
                with self._changed:
                    self.rounds += 1
                    self._changed.notify_all()
                self._must_stop.wait(self._pause_s)
        except BaseException as error:  # noqa: BLE001 - raised again in stop()
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def wait_for_rounds(self, count: int, timeout_s: float) -> None:
        """Wait until it was called `count` more times; raise what it raised, or TimeoutError."""
        with self._changed:
            wanted = self.rounds + count
            ready = self._changed.wait_for(lambda: self._error or self.rounds >= wanted, timeout_s)
        if self._error is not None:
            raise self._error
        if not ready:
            raise TimeoutError(f"{self.name} came to round {self.rounds} of {wanted} in {timeout_s:g} s")

    def stop(self) -> None:
        self._must_stop.set()
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            raise TimeoutError(f"{self.name} did not end within {_JOIN_S:g} s")

    def raise_error(self) -> None:
        if self._error is not None:
            raise self._error


class Meanwhile:
    """Actions repeated in threads while the body runs (scenario 19): a context manager.

    actions: by name: balance, scrub, dedupe, quota rescan, a snapshot timer… An action that raises
    ends, and its error is raised on leaving. Entering waits for the first round of each, so that
    none comes too late; `rounds` says how often each had been done. pause_s: the rest between two
    rounds of one action. timeout_s: how long a round may take.
    """

    def __init__(
        self, actions: Mapping[str, Callable[[], None]], *, pause_s: float = 0.1, timeout_s: float = 120
    ) -> None:
        self._threads = [_Background(name, action, pause_s) for name, action in actions.items()]
        self._timeout_s = timeout_s

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        try:
            self.wait_for_rounds(1)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        if error is None:
            for thread in self._threads:
                thread.raise_error()

    def _stop(self) -> None:
        for thread in self._threads:
            thread.stop()

    def wait_for_rounds(self, count: int) -> None:
        """Wait until each was done `count` more times."""
        for thread in self._threads:
            thread.wait_for_rounds(count, self._timeout_s)

    @property
    def rounds(self) -> dict[str, int]:
        return {thread.name: thread.rounds for thread in self._threads}


@contextmanager
def live_writers(root: Path, seed: int) -> Iterator[Meanwhile]:
    """Writers at work while a snapshot is taken (scenario 17), in the new directory `live` of `root`.

    An open but unlinked file, an O_TMPFILE, a shared memory mapping, and appends that nothing ever
    flushes. One thread does all of it in turn. The oracle is the snapshot, not the tree.
    """
    import mmap

    rng = Random(f"live:{seed}")
    with Root(root) as tree:
        tree.make_directory(tree_live := tree.free_name(b"live"))
        tree.write(tree_live + b"/mapped", bytes(256 << 10))
        with (
            tree.open(tree_live + b"/unlinked", os.O_RDWR | os.O_CREAT) as unlinked,
            tree.open(tree_live, os.O_RDWR | os.O_TMPFILE) as unnamed,
            tree.open(tree_live + b"/mapped") as mapped_fd,
            mmap.mmap(mapped_fd, 0) as mapped,
        ):
            tree.unlink(tree_live + b"/unlinked")

            def write() -> None:
                for fd in (unlinked, unnamed):
                    os.pwrite(fd, rng.randbytes(rng.randint(1, 20_000)), rng.randrange(1 << 20))
                page = rng.randrange(len(mapped) - 100)
                mapped[page : page + 100] = rng.randbytes(100)
                log = tree_live + b"/log-%d" % rng.randrange(4)
                end = tree.stat(log).st_size if tree.exists(log) else 0
                tree.write(log, rng.randbytes(rng.randint(1, 9000)), offset=end if end < 1 << 20 else 0)
                aside = tree.write(tree_live + b"/.aside", rng.randbytes(3000))
                tree.rename(aside, tree_live + b"/replaced")

            with Meanwhile({"live writers": write}, pause_s=0) as writers:
                yield writers


@contextmanager
def active_swap(path: Path) -> Iterator[None]:
    """A prepared file in use as swap: while it is, the kernel refuses a snapshot (scenario 16)."""
    ioctls.swap_on(os.fsencode(path))
    try:
        yield
    finally:
        ioctls.swap_off(os.fsencode(path))


def dedupe_against(root: Path, snapshot: Path) -> int:
    """Let files of the tree share the extents of equal ones in a snapshot of it (scenario 13).

    Returns how many do. Files of the tree that have changed since are left alone.
    """
    deduped = 0
    with Root(root) as tree, Root(snapshot) as past:
        for file in survey(tree).files:
            if file.size_bytes == 0 or not past.exists(file.path):
                continue
            with tree.open(file.path) as target, past.open(file.path, os.O_RDONLY) as source:
                size_bytes = min(file.size_bytes, 16 << 20)
                if os.fstat(source).st_size == file.size_bytes:
                    deduped += ioctls.dedupe_range(source, target, length=size_bytes) > 0
    return deduped


@dataclass(frozen=True, slots=True)
class Hop:
    """One transfer of a relay: the newest state goes from one site to another.

    is_changed: the sending site changes the tree first, in a writable child of what it has.
    """

    source: str
    target: str
    is_changed: bool


def relay(sites: Sequence[str], steps: int, seed: int) -> Iterator[Hop]:
    """Plan a relay (scenario 18): along the sites, then back to the first, again and again.

    With sites A, B, C: A to B, B to C, C's child back to A, and so on; after the first round the
    direction is drawn, so that fail-over and fail-back both come. At least two sites.
    """
    rng = Random(f"relay:{seed}")
    at = 0
    for step in range(steps):
        forward = step < len(sites) or rng.random() < 0.5
        to = (at + (1 if forward else -1)) % len(sites)
        yield Hop(sites[at], sites[to], is_changed=to == 0 or step >= len(sites) or step == 0)
        at = to


def soak(
    root: Path,
    seed: int,
    after_step: Callable[[int, list[str]], None],
    *,
    steps: int = 10,
    mutations_per_step: int = 2,
    remount: Callable[[], None] | None = None,
) -> str:
    """Change the tree by chance, step after step (scenario 20); return the replay of all of it.

    after_step: called with the step's number, from 1, and the names of what was applied: it takes
    the snapshot, moves it, compares and deletes the parent. Its error gets the replay as a note.
    """
    rng = Random(f"soak:{seed}")
    possible = [name for name in MUTATIONS if remount is not None or not MUTATIONS[name].needs_remount]
    done: list[str] = []
    for step in range(1, steps + 1):
        names = rng.choices(possible, k=mutations_per_step)
        step_seed = rng.randrange(1 << 32)
        try:
            applied = mutate(root, step_seed, names, remount=remount)
            done.append(format_replay(step_seed, applied))
            after_step(step, applied)
        except Exception as error:
            error.add_note(f"step {step} of the soak with seed {seed}; steps so far: {' '.join(done)}")
            raise
    return " ".join(done)


def mess_up(stream: bytes, rng: Random) -> tuple[bytes, str]:
    """Return a send stream cut off or with one bit flipped at some place, and what was done to it."""
    offset = rng.randrange(1, len(stream))
    if rng.random() < 0.5:
        return stream[:offset], f"cut at byte {offset} of {len(stream)}"
    messed = bytearray(stream)
    messed[offset] ^= 1 << rng.randrange(8)
    return bytes(messed), f"one bit flipped in byte {offset} of {len(stream)}"
