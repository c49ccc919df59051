"""A backup on its way back to its client: what may be fetched, and the stream of it.

From here on the server has the part of who sends, as `btrsync.sending` plays it, and the client that of
who receives.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from btrsync.errors import RefusedError
from btrsync.plan.names import is_valid_name
from btrsync.plan.stream_choice import COMPRESSED, PLAIN, StreamChoice, why_not_again
from btrsync.protocol import Begin
from btrsync.rate import RateLimit
from btrsync.sending import Order, Sending
from btrsync.system import btrfs
from btrsync.totals import count_totals

if TYPE_CHECKING:
    from collections.abc import Callable

    from btrsync.config import ServerConfig
    from btrsync.protocol import BackupEntry, Committed, Fetch, PartialEntry
    from btrsync.target import Target
    from btrsync.wire import Wire


class _Manner(msgspec.Struct, frozen=True):
    """How a server sends: as it receives."""

    nice: int
    io_class: Literal["idle", "best-effort"] | None
    buffer_bytes: int
    compressed: Literal["auto", "always", "never"] = "auto"


class Outflow:
    """Answers what the client `client` asks to have back of its own `target`.

    log: takes one line for the server's log.
    """

    def __init__(
        self, wire: Wire, target: Target, client: str, config: ServerConfig, log: Callable[[str], None]
    ) -> None:
        self._wire = wire
        self._target = target
        self._client = client
        self._config = config
        self._log = log

    def answer(self, fetch: Fetch) -> Committed | None:
        """Send what is asked for and return what came of it, None for a look.

        Raises RefusedError if it may not be fetched, CommandError if `btrfs send` fails, RemoteError with
        what failed at the client, and what the wire raises.
        """
        self._check_allowed()
        entries = self._entries(fetch.job)
        wanted = self._entry(fetch, entries)
        parent = self._parent(fetch, entries)
        directory = self._target.directory / fetch.job
        snapshot = directory / wanted.name
        parent_path = directory / parent.name if parent else None
        version = min(COMPRESSED.stream_version, btrfs.send_protocol())
        totals = count_totals(
            btrfs.send_argv(snapshot, send_parent=parent_path, stream_version=version, is_without_data=True),
            wait=self._wait,
        )
        assert wanted.received_uuid is not None, "_entry() sees to that"
        begin = Begin(
            fetch.job, wanted.name, wanted.received_uuid, btrfs.subvolume(snapshot).ctransid,
            parent.received_uuid if parent else None,
            cloned_bytes=totals.cloned_bytes,
        )  # fmt: skip
        if fetch.is_look_only:
            self._wire.send(msgspec.structs.replace(begin, total_bytes=totals.written_bytes(version)))
            return None

        def argv(choice: StreamChoice) -> list[str]:
            return btrfs.send_argv(
                snapshot, send_parent=parent_path,
                stream_version=choice.stream_version, is_compressed=choice.is_compressed,
            )  # fmt: skip

        order = Order(
            begin, argv, totals.written_bytes, btrfs.send_protocol(), _continued(fetch.partial, begin)
        )
        manner = _Manner(self._config.nice, self._config.io_class, self._config.buffer_bytes)
        unlimited = RateLimit(None, (), lambda: datetime.now(UTC))
        heard = _Heard(f"{fetch.job}/{fetch.name}", self._log)
        return Sending(self._wire, f"client {self._client}", manner, order, unlimited, heard).run()

    def _check_allowed(self) -> None:
        if not self._config.entry(self._client).allow_fetch:
            raise RefusedError(
                f"the client {self._client} may not fetch its backups from this server",
                # Where that file is, is no client's business.
                hint=f"on the server, set `allow_fetch = true` in [clients.{self._client}] of its settings"
                if self._config.file
                else "on the server, add --allow-fetch to `btrsync serve --root`",
            )

    def _entries(self, job: str) -> list[BackupEntry]:
        # A name is asked for nowhere but here: what is listed is this client's own, and no partial.
        return self._target.inventory().get(job, []) if is_valid_name(job) else []

    def _entry(self, fetch: Fetch, entries: list[BackupEntry]) -> BackupEntry:
        found = next((entry for entry in entries if entry.name == fetch.name), None)
        if found is None or found.received_uuid is None or not is_valid_name(found.name):
            raise RefusedError(
                f"there is no backup {fetch.name[:200]!r} of job {fetch.job[:200]!r} here",
                hint="`btrsync list` shows the backups that there are",
            )
        if not _is_intact(found):
            raise RefusedError(
                f"the backup {fetch.job}/{found.name} is writable or was edited on the server,"
                " so it is no longer what was sent"
            )
        return found

    def _parent(self, fetch: Fetch, entries: list[BackupEntry]) -> BackupEntry | None:
        if fetch.send_parent is None:
            return None
        for entry in entries:
            if entry.received_uuid == fetch.send_parent and _is_intact(entry) and is_valid_name(entry.name):
                return entry
        raise RefusedError(
            f"the send parent {fetch.send_parent} is not among the intact backups of job {fetch.job} here"
        )

    def _wait(self, fd: int) -> None:
        if not self._wire.wait_input(fd):
            # Nobody has anything to say now but that it gives up.
            raise RefusedError(f"client {self._client} gave up before its fetch began")


def _is_intact(entry: BackupEntry) -> bool:
    return entry.is_readonly and not entry.was_edited


def _continued(partial: PartialEntry | None, begin: Begin) -> PartialEntry | None:
    """Return what the client says that it has, if that stream can be made again; its proofs tell the rest."""
    if partial is None or not partial.proofs or not partial.proofs[0].offset_bytes > 0:
        return None
    before = StreamChoice(partial.stream_version, partial.is_compressed)
    if before not in (PLAIN, COMPRESSED) or why_not_again(before, "auto", btrfs.send_protocol()):
        return None
    known = partial.uuid, partial.ctransid, partial.send_parent, tuple(partial.clone_sources)
    return partial if known == (begin.uuid, begin.ctransid, begin.send_parent, ()) else None


class _Heard:
    """Hears how a fetch goes, and logs what is no news to the client."""

    def __init__(self, name: str, log: Callable[[str], None]) -> None:
        self._name = name
        self._log = log

    def step(self, text: str) -> None:
        """Pass over a step."""

    def warning(self, text: str) -> None:
        """Log a warning."""
        self._log(f"{self._name}: {text}")

    def progress(self, data_bytes: int, total_bytes: int | None) -> None:
        """Pass over progress: the client sees it before we do."""

    def starts_over(self, why: str) -> None:
        """Log why what the client has is of no use."""
        self._log(f"{self._name}: starts over: {why}")
