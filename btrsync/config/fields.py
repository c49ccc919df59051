"""What may be written in the two configuration files: one class for each kind of table.

The fields are described here once: the annotated samples are compared with these descriptions, the
manual page and the remedies in error messages are made of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import msgspec
from msgspec import Meta
from msgspec.structs import fields

from btrsync.errors import RefusedError

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_RULE = "1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or a digit"
DEFAULT_SNAPSHOT_NAME = "snapshot-%Y%m%d%H%M%S"

Seconds = Annotated[int, Meta(ge=0, le=7 * 24 * 3600)]


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
    clients: Annotated[
        dict[str, ClientEntry],
        Meta(description="The clients that may connect. Without this table, every forced command may."),
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
        entry = self.clients.get(client, ClientEntry())
        return self.root / (entry.directory or client)


def describe(struct: type[msgspec.Struct], name: str) -> str:
    """Return the description of one field of a table, a sentence or two."""
    for field in fields(struct):
        if field.name == name and get_origin(field.type) is Annotated:
            metas: list[Any] = [meta for meta in get_args(field.type)[1:] if isinstance(meta, Meta)]
            return " ".join(meta.description for meta in metas if meta.description)
    raise KeyError(f"{struct.__name__} has no described field {name}")
