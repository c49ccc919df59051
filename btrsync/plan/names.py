"""Names of snapshots, jobs and clients: what is allowed, and the next free one."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container
    from datetime import datetime

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,127}\Z")
"""What may become one path component on a server: nothing hidden, no separator, no control character."""
STAGING_PATTERN = re.compile(r"\.(incoming|partial)-[0-9a-f]{16}\Z")
"""What is on its way in, or was cut: `btrsync.incoming` and `btrsync.partials` give such names."""
PASSING_PATTERN = re.compile(r"\.dry-run-[0-9a-f]{16}\Z")
"""A snapshot that is there while a dry run counts: `btrsync.source` gives such names."""


def is_valid_name(name: str) -> bool:
    """Tell whether `name` may name a client, job or backup on a server."""
    return NAME_PATTERN.match(name) is not None


def is_staging_name(name: str) -> bool:
    """Tell whether `name` is one of ours for what is received and not, or not yet, complete."""
    return STAGING_PATTERN.match(name) is not None


def is_passing_name(name: str) -> bool:
    """Tell whether `name` is one of ours for a snapshot that goes when its run ends."""
    return PASSING_PATTERN.match(name) is not None


def printable_name(name: str) -> str:
    """Return a name of somebody else's choice fit for a line and for JSON: what is not printable is escaped.

    A snapshot may be called whatever the filesystem allows, newlines and bytes that are not UTF-8 too.
    """
    if name.isprintable():
        return name
    escaped = (word if word.isprintable() else word.encode("unicode_escape").decode() for word in name)
    return "".join(escaped)


def new_snapshot_name(pattern: str, now: datetime, taken: Container[str]) -> str:
    """Return the name of a snapshot made at `now` (aware, UTC), not one of `taken`.

    pattern: strftime, from year to second. A second snapshot within one second, or a clock set
    back, takes the next free second: the original's minutes put one snapshot inside the other.
    """
    name = now.strftime(pattern)
    while name in taken:
        now += timedelta(seconds=1)
        name = now.strftime(pattern)
    return name
