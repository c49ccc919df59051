"""What may be written in the two configuration files: one class for each kind of table.

The fields are described here once: the annotated samples are compared with these descriptions, the
manual page and the remedies in error messages are made of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta
from msgspec.structs import fields

from btrsync.config.array_fields import ArrayConfig
from btrsync.errors import RefusedError
from btrsync.plan.rates import HIGHEST_RATE, LOWEST_RATE

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_RULE = "1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or a digit"
DEFAULT_SNAPSHOT_NAME = "snapshot-%Y%m%d%H%M%S"

MIB = 1 << 20
GIB = 1 << 30
SMALLEST_CHECKPOINT_BYTES = 64 << 10

Seconds = Annotated[int, Meta(ge=0, le=7 * 24 * 3600)]
Timeout = Annotated[int, Meta(ge=1, le=7 * 24 * 3600)]
Bytes = Annotated[int, Meta(ge=0, le=1 << 60)]
Quota = Annotated[int, Meta(ge=1, le=1 << 60)]
Rate = Annotated[int, Meta(ge=LOWEST_RATE, le=HIGHEST_RATE)]
BufferBytes = Annotated[int, Meta(ge=64 << 10, le=64 * MIB)]
Nice = Annotated[int, Meta(ge=0, le=19)]
IoClass = Literal["idle", "best-effort"]
Compressed = Literal["auto", "always", "never"]


class TargetConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One place that backups go to: a host behind ssh, or a directory on this machine."""

    host: Annotated[
        str | None, Meta(description="Name or address of the server; not together with `path`.")
    ] = None
    path: Annotated[
        Path | None,
        Meta(
            description="For a target on this machine, a disk that is plugged in for example: a directory"
            " on its btrfs filesystem, in which each job gets a directory of its own. It is never made by"
            " btrsync: without it, the disk is taken for not mounted. Not together with `host`."
        ),
    ] = None
    user: Annotated[str, Meta(description="User to log in as on `host`.")] = "root"
    port: Annotated[int, Meta(ge=1, le=65535, description="Port of the ssh server on `host`.")] = 22
    key: Annotated[
        Path | None,
        Meta(
            description="Private key that the server binds to its forced command. Without it, ssh offers"
            " the keys it offers by itself."
        ),
    ] = None
    known_hosts: Annotated[
        Path | None,
        Meta(
            description="File with the server's host key. Without it, ssh's own files count. A host key"
            " that is unknown or has changed is never accepted."
        ),
    ] = None
    ssh_options: Annotated[
        tuple[str, ...],
        Meta(description='More options for ssh, each as "Key=value", as ssh_config(5) names them.'),
    ] = ()
    connect_timeout_s: Annotated[
        int, Meta(ge=1, le=3600, description="Seconds until a silent host counts as unreachable.")
    ] = 10
    busy_wait_s: Annotated[
        Seconds, Meta(description="Seconds to wait while the target is busy with another run of this client.")
    ] = 600
    compressed: Annotated[
        Compressed,
        Meta(
            description="Whether compressed data is sent as it lies on disk: auto where kernel and"
            " btrfs-progs of both ends can, always, or the run fails, or never."
        ),
    ] = "auto"
    rate_limit_bytes: Annotated[
        Rate | None,
        Meta(
            description="Bytes per second that are sent or fetched at most, at hours that `rate_limits`"
            " does not name. Without it, as fast as the line goes.",
        ),
    ] = None
    rate_limits: Annotated[
        tuple[str, ...],
        Meta(
            description='Rates for hours of the day, each as "08:00-18:00 2000000": from, to and bytes'
            " per second, in local time; it may go over midnight. No two may share a minute."
        ),
    ] = ()
    retries: Annotated[
        int,
        Meta(
            ge=0,
            le=100,
            description="How often a transfer is tried again within a run after the link failed; it goes"
            " on from the server's last checkpoint, and a try that got further is not counted.",
        ),
    ] = 5
    retry_pause_s: Annotated[
        int,
        Meta(ge=0, le=3600, description="Seconds before the first new try; each further pause is doubled."),
    ] = 5
    parallel: Annotated[
        int, Meta(ge=1, le=8, description="How many jobs are sent at once, over the one connection.")
    ] = 1
    nice: Annotated[
        Nice, Meta(description="Niceness of `btrfs send`: with 19 it takes the time that others leave.")
    ] = 0
    io_class: Annotated[
        IoClass | None,
        Meta(
            description="I/O class of `btrfs send`, as ionice(1) names it. Without it, that of btrsync. Only"
            " some I/O schedulers mind it."
        ),
    ] = None
    buffer_bytes: Annotated[
        BufferBytes, Meta(description="Size of the pipe behind `btrfs send`, which evens out its bursts.")
    ] = MIB


class JobConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One subvolume that is mirrored, and to where."""

    subvolume: Annotated[Path, Meta(description="The btrfs subvolume to mirror.")]
    snapshots: Annotated[
        Path,
        Meta(
            description="Directory that its read-only snapshots are made in: on the same filesystem;"
            " it may lie inside the subvolume."
        ),
    ]
    targets: Annotated[
        tuple[str, ...], Meta(description="Names of the targets that the snapshots are sent to.")
    ]
    snapshot_name: Annotated[
        str,
        Meta(
            description="Names of new snapshots: text and the directives %Y %m %d %H %M %S, all six in"
            " this order, so that names sort by time. The time is UTC."
        ),
    ] = DEFAULT_SNAPSHOT_NAME
    clone_sources: Annotated[
        int,
        Meta(
            ge=0,
            le=64,
            description="How many other common snapshots `btrfs send` may refer to (its -c), so that data"
            " they share is not sent again.",
        ),
    ] = 2


class ClientConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What /etc/btrsync/btrsync.toml holds, checked."""

    targets: Annotated[
        dict[str, TargetConfig], Meta(description="One table for each place that backups go to.")
    ]
    jobs: Annotated[dict[str, JobConfig], Meta(description="One table for each subvolume that is mirrored.")]
    file: Path


class ClientEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One client that may connect to the server."""

    directory: Annotated[
        str | None,
        Meta(description="Name of its directory below `root`. Without it, the name of the client."),
    ] = None
    quota_bytes: Annotated[
        Quota | None,
        Meta(
            description="Bytes of data that its backups may have written, before compression; what would"
            " exceed it is refused before the first byte. Without it, the disk is the limit.",
        ),
    ] = None
    allow_fetch: Annotated[
        bool, Meta(description="Whether it may have its backups sent back, for a restore.")
    ] = False


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What /etc/btrsync/server.toml holds, checked; `file` is None when `--root` stood for it."""

    root: Annotated[
        Path,
        Meta(description="Directory on btrfs below which each client has a directory with its backups."),
    ]
    lock_wait_s: Annotated[
        Seconds,
        Meta(description="Seconds that a second connection of one client waits for the first to end."),
    ] = 600
    checkpoint_bytes: Annotated[
        Bytes,
        Meta(
            description="Bytes of a stream after which what was received is made safe, so that a transfer"
            " that breaks off goes on from there; 0: never for its size."
        ),
    ] = 4 * GIB
    checkpoint_seconds: Annotated[
        Seconds, Meta(description="Seconds after which the same is done; 0: never for its time.")
    ] = 300
    partial_ttl_days: Annotated[
        int,
        Meta(ge=1, le=3650, description="Days that the partial of a broken transfer is kept for its sender."),
    ] = 7
    buffer_bytes: Annotated[
        BufferBytes,
        Meta(description="Size of the pipe before `btrfs receive`, which evens out its bursts."),
    ] = MIB
    receive_timeout_s: Annotated[
        Timeout,
        Meta(
            description="Seconds that `btrfs receive` may stand still, as it does on a disk that hangs, until"
            " it is killed; the transfer then goes on from its last checkpoint."
        ),
    ] = 600
    nice: Annotated[
        Nice, Meta(description="Niceness of `btrfs receive`: with 19 it takes the time that others leave.")
    ] = 0
    io_class: Annotated[
        IoClass | None,
        Meta(
            description="I/O class of `btrfs receive`, as ionice(1) names it. Without it, that of btrsync."
            " Only some I/O schedulers mind it."
        ),
    ] = None
    clients: Annotated[
        dict[str, ClientEntry],
        Meta(description="The clients that may connect. Without this table, every forced command may."),
    ] = msgspec.field(default_factory=dict)
    arrays: Annotated[
        dict[str, ArrayConfig],
        Meta(description="Arrays of encrypted disks that `btrsync array` opens and closes."),
    ] = msgspec.field(default_factory=dict)
    file: Path | None = None

    def client_directory(self, client: str) -> Path:
        """Return the directory that holds the backups of `client`, the name in the forced command.

        Raises RefusedError for a name with forbidden characters, or one that is not among `clients`
        where these are listed.
        """
        if not NAME_PATTERN.fullmatch(client):
            raise RefusedError(
                f"{client!r} is not a name for a client",
                hint=f"in the forced command, write `btrsync serve NAME` with {NAME_RULE}",
            )
        if self.clients and client not in self.clients:
            raise RefusedError(
                f"the client {client!r} may not connect: {self.file} does not list it",
                hint=f"add a table [clients.{client}] to that file, on the server",
            )
        return self.root / (self.entry(client).directory or client)

    def entry(self, client: str) -> ClientEntry:
        """Return what the configuration says of `client`; the defaults where it says nothing."""
        return self.clients.get(client, ClientEntry())


def describe(struct: type[msgspec.Struct], name: str) -> str:
    """Return the description of one field of a table, a sentence or two."""
    for field in fields(struct):
        if field.name == name and get_origin(field.type) is Annotated:
            metas: list[Any] = [meta for meta in get_args(field.type)[1:] if isinstance(meta, Meta)]
            return " ".join(meta.description for meta in metas if meta.description)
    raise KeyError(f"{struct.__name__} has no described field {name}")
