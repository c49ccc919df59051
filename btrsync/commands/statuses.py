"""The exit statuses, in one table: for the manual, for --help, and for a test that asks the error classes."""

from __future__ import annotations

from typing import NamedTuple


class ExitStatus(NamedTuple):
    """One row: the status, what it means, and the names of the error classes that carry it."""

    status: str
    meaning: str
    classes: tuple[str, ...] = ()


EXIT_STATUSES = (
    ExitStatus("0", "Done, or nothing to send."),
    ExitStatus("1", "Finished, but the answer is no: not every target was served; each is named."),
    ExitStatus("2", "The command line is wrong."),
    ExitStatus("3", "The configuration is wrong, or not there.", ("ConfigError",)),
    ExitStatus("4", "Another run holds the lock, here or on the server.", ("LockedError",)),
    ExitStatus("5", "The server was not reached, or went silent.", ("UnreachableError",)),
    ExitStatus(
        "6",
        "A program failed, was not found, or did not end in time.",
        ("CommandError", "CommandNotFoundError", "CommandTimeoutError", "StalledError", "PipelineError"),
    ),
    ExitStatus("7", "Source and target do not allow a send; a person has to choose.", ("ConflictError",)),
    ExitStatus(
        "8",
        "A filesystem, subvolume or device is not what it must be, or has no room.",
        ("StorageError", "NoSpaceError"),
    ),
    ExitStatus(
        "9", "The bytes that arrived are wrong.", ("IntegrityError", "StreamError", "PrefixMismatchError")
    ),
    ExitStatus(
        "10",
        "Well formed but not allowed, or the other end speaks otherwise.",
        ("RefusedError", "ProtocolError"),
    ),
    ExitStatus("70", "A bug in btrsync.", ("BtrsyncError",)),
    ExitStatus(
        "128+N", "Stopped by signal N: 130 by Ctrl-C, 143 by SIGTERM, 141 when nobody read the output."
    ),
)
"""255 is left to ssh, through which the status of `serve` travels."""
