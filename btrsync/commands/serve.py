"""`btrsync serve CLIENT`: the server's end, started by sshd. Imports little: it starts at every sync."""

from __future__ import annotations

import contextlib
import os
import sys
import syslog
from functools import partial
from typing import TYPE_CHECKING

import btrsync
from btrsync import serve
from btrsync.errors import RefusedError
from btrsync.plan.names import printable_name

if TYPE_CHECKING:
    from pathlib import Path

    from btrsync.config import ServerConfig

ORIGINAL_COMMAND_CHARACTERS = 200
LINE_CHARACTERS = 2000
"""Of one line in the log: a client has a say in what is in it."""


def run_serve(
    client: str, file: Path | None = None, root: Path | None = None, *, allow_fetch: bool = False
) -> int:
    """Serve one client over standard input and output, and return the exit status.

    client: the name in the forced command; file: another configuration than the server's usual one;
    root: instead of a configuration, the directory on btrfs that holds the clients' directories;
    allow_fetch: with it, whether the client may have its backups sent back.
    Raises RefusedError on a terminal.
    """
    if os.isatty(0):
        # And a terminal made non-blocking would stay so for whoever uses it next.
        raise RefusedError(
            "btrsync serve speaks to another btrsync, not to a terminal",
            hint='sshd starts it: it belongs into command="…" of authorized_keys, see btrsync serve --help',
        )
    syslog.openlog("btrsync", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(_connection_line(client))
    read_fd, write_fd = _take_standard_streams()
    return serve.serve(
        partial(_load, client, file, root, allow_fetch=allow_fetch),
        client,
        read_fd=read_fd,
        write_fd=write_fd,
        software=f"btrsync {btrsync.__version__}",
        log=_log,
    )


def _load(client: str, file: Path | None, root: Path | None, *, allow_fetch: bool) -> ServerConfig:
    """Return the configuration; imported now, when the client has its banner and does its own work."""
    from btrsync.config import SERVER_FILE, ClientEntry, ServerConfig, load_server

    if root is None:
        return load_server(file or SERVER_FILE)
    return ServerConfig(root=root, clients={client: ClientEntry(allow_fetch=allow_fetch)})


def printable_command(original_command: str) -> str:
    """Return what the client asked ssh to run, fit for a log: cut short, nothing but printable ASCII.

    It is only ever logged. The forced command decides what is done.
    """
    head = original_command[:ORIGINAL_COMMAND_CHARACTERS]
    return head.encode("unicode_escape", "backslashreplace").decode("ascii")


def _connection_line(client: str) -> str:
    """Return the line for the log that tells who connected, and what they asked ssh for in vain."""
    line = f"client {printable_command(client)} connected"
    address = os.environ.get("SSH_CLIENT", "").split(" ", 1)[0]
    if address:
        line += f" from {printable_command(address)}"
    asked = os.environ.get("SSH_ORIGINAL_COMMAND")
    return line if asked is None else f'{line}, its own command is ignored: "{printable_command(asked)}"'


def _log(line: str) -> None:
    """Write a line to the system's log, and to stderr, which ssh shows to whoever tries by hand.

    Nothing in it but what is printable: a client's words are in some.
    """
    line = printable_name(line[:LINE_CHARACTERS])
    syslog.syslog(line)
    with contextlib.suppress(OSError):
        print(f"btrsync serve: {line}", file=sys.stderr, flush=True)


def _take_standard_streams() -> tuple[int, int]:
    """Return the wire's two ends, and leave a null input and stderr in their place.

    Whatever prints by mistake, here or in a child, then writes beside the wire and not into it.
    """
    read_fd, write_fd = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return read_fd, write_fd
